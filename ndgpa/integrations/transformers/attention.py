"""What transformers calls in place of its own attention, and the mask that it hands over.

Both are registered under one name. A model whose mask function is not registered hands every
attention a mask of None, so that padding would be attended to.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    sdpa_mask,
)

from ndgpa.attention.far_field import Far
from ndgpa.functional import gpa
from ndgpa.integrations.spaces import Space
from ndgpa.operators.base import Attends
from ndgpa.selection import Rule
from ndgpa.structures import Sampling, SpatialStructure

NAME = "ndgpa"  # of the implementation, and of what `enable` leaves on an attention module
INPUT = "ndgpa_input"  # the keyword that takes the input of a model to its attention modules
CHANGES = ("softcap", "position_bias", "sliding_window", "s_aux", "cache", "head_mask")

Attended = tuple[Float[Tensor, "b n h d"], None]


@dataclass(frozen=True)
class ByCall:
    """GPA whose scale and whether it is causal come with each call; fields as for `ndgpa.gpa`."""

    rule: Rule | int
    read: Sampling | None = None
    far: Far | None = None
    backend: str | None = None

    def __call__(
        self,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b hk n_k d"],
        value: Float[Tensor, "b hk n_k dv"],
        structure: SpatialStructure,
        key_structure: SpatialStructure | None = None,
        **options: Any,
    ) -> Float[Tensor, "b h n dv"]:
        return gpa(
            query,
            key,
            value,
            structure,
            key_structure=key_structure,
            **vars(self),
            **options,
        )


@dataclass
class Sparse(Attends):
    """Attend with an operator from one attention module.

    Args:
        space: Gives the structure of a call.
        operator: A `ByCall`, or what watches one.
        ignore_dropout: Whether a module that asks for dropout of its weights is served without.
    """

    space: Space
    operator: Any
    ignore_dropout: bool = False

    def __call__(
        self,
        module: nn.Module,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b hk n_k d"],
        value: Float[Tensor, "b hk n_k dv"],
        mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        is_causal: bool | None = None,
        **given: Any,
    ) -> Attended:
        causal = bool(module.is_causal) if is_causal is None else is_causal
        if query.shape[2] != key.shape[2]:  # decoding with a cache
            return dense(module, query, key, value, mask, scaling, dropout, causal, **given)
        self._check(module, mask, dropout, given)
        structure = self.space.of(query.shape[2], given.get(INPUT))
        out = self.operator(
            query, key, value, structure, scale=scaling, causal=causal, key_mask=mask
        )
        return out.transpose(1, 2).contiguous(), None

    def _check(
        self, module: nn.Module, mask: Tensor | None, dropout: float, given: dict[str, Any]
    ) -> None:
        who = type(module).__name__
        if mask is not None and mask.ndim != 2:
            raise NotImplementedError(
                f"{who} was given a mask for pairs of tokens (packed sequences, a sliding window, "
                "or a mask of four axes); GPA takes a mask of padding, (batch, tokens)"
            )
        if dropout and not self.ignore_dropout:
            raise NotImplementedError(
                f"{who} drops out {dropout} of its weights in training, which GPA does not: set it "
                "to 0 in the config, or pass ignore_dropout=True to enable"
            )
        if given.get("output_attentions"):
            raise NotImplementedError(
                f"GPA does not return the weights that output_attentions=True asks {who} for"
            )
        changes = [name for name in CHANGES if given.get(name) is not None]
        if changes:
            raise NotImplementedError(f"GPA does not know {changes[0]}, which {who} asks for")


def dense(
    module: nn.Module,
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b hk n_k d"],
    value: Float[Tensor, "b hk n_k dv"],
    mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **given: Any,
) -> Attended:
    """Attend as transformers' "sdpa" does."""
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    if mask is not None and mask.ndim == 2:
        mask = _for_pairs(mask, causal)
    return sdpa_attention_forward(
        module, query, key, value, mask, dropout, scaling, causal, **given
    )


def _for_pairs(mask: Bool[Tensor, "b n"], causal: bool) -> Bool[Tensor, "b 1 n n"]:
    """Turn a mask of padding into one of pairs."""
    pairs = mask[:, None, None].expand(-1, 1, mask.shape[1], -1)
    return pairs.tril() if causal else pairs


def attention(
    module: nn.Module,
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b hk n_k d"],
    value: Float[Tensor, "b hk n_k dv"],
    attention_mask: Tensor | None,
    **given: Any,
) -> Attended:
    """Attend as `enable` told the module to; transformers' AttentionInterface calls this.

    Raises:
        ValueError: The module was told nothing.
    """
    run = getattr(module, NAME, None)
    if run is None:
        raise ValueError(
            f'attn_implementation="{NAME}" was set, but nothing is known about this '
            f"{type(module).__name__}: call ndgpa.integrations.transformers.enable(model, rule, "
            "block=...)"
        )
    return run(module, query, key, value, attention_mask, **given)


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,  # a tensor where the cache is static
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    **given: Any,
) -> Bool[Tensor, "b n_k"] | Bool[Tensor, "b 1 n n_k"] | None:
    """Hand over which tokens are not padding; None for all.

    Where more than padding is hidden, or queries are not all tokens, it is transformers' own mask
    of pairs. transformers' AttentionMaskInterface calls this.
    """
    plain = mask_function in (bidirectional_mask_function, causal_mask_function)
    square = isinstance(q_offset, int) and q_offset == kv_offset == 0 and q_length == kv_length
    if attention_mask is not None:
        square = square and attention_mask.shape == (batch_size, kv_length)
    if not (plain and square):
        return sdpa_mask(
            batch_size,
            q_length,
            kv_length,
            q_offset,
            kv_offset,
            mask_function,
            attention_mask,
            **given,
        )
    if attention_mask is None or torch.compiler.is_compiling():
        return attention_mask
    return None if bool(attention_mask.all()) else attention_mask


def register() -> None:
    """Tell transformers the name of the implementation, as often as one likes."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)

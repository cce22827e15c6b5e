"""Generation with transformers at a cost for each token that does not grow with the text.

    from ndgpa.integrations.transformers_cache import NAME, GPACache

    model.set_attn_implementation(NAME)
    cache = GPACache(rule=16, block=16, cell=1)
    model.generate(**inputs, past_key_values=cache)

Any decoder whose attention goes through transformers' AttentionInterface will do. Prompts of
different lengths (padded on the left), beams, and drafts that are dropped are understood. Without
such a cache the attention named is transformers' own "sdpa".
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

import ndgpa

NAME = "ndgpa_cached"


@dataclass(frozen=True)
class _Held:
    """What came last to the cache of a layer; it travels with the keys that the layer returns."""

    cache: ndgpa.Cache
    key: Float[Tensor, "b hk m d"]
    value: Float[Tensor, "b hk m dv"]

    def attend(
        self, query: Float[Tensor, "b h m d"], mask: Tensor | None, scale: float | None
    ) -> Float[Tensor, "b h m dv"]:
        """Attend from the newest tokens.

        Args:
            mask: (b, 1, m, length) bool, True where a key is seen, as transformers makes it.
        """
        count = query.shape[2]
        if mask is not None:  # the last token sees all that is no padding
            seen = mask[:, 0, -1, -count:].expand(len(query), -1)
            self.cache.crop(self.cache.length - count)
            self.cache.append(self.key, self.value, seen)
        self.cache.scale = scale
        return self.cache.attend(query)


def _held_by(key: Tensor) -> _Held | None:
    """What a layer of a `GPACache` sent along with the keys it returned; None for other keys."""
    return getattr(key, "ndgpa_held", None)


class _Layer(CacheLayerMixin):
    """The keys and values of one layer of a model, in an `ndgpa.Cache`."""

    is_croppable = True

    def __init__(self, cache: ndgpa.Cache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the newest keys and values; return all, as any attention may read them."""
        self.lazy_initialization(key_states, value_states)
        self.cache.append(key_states, value_states)
        key, value = self.cache.keys_and_values
        key.ndgpa_held = _Held(self.cache, key_states, value_states)  # type: ignore[attr-defined]
        return key, value

    def get_seq_length(self) -> int:
        return self.cache.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.length + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, whose number is given as a negative one."""
        self.cache.crop(self.cache.length + tokens_to_remove)

    def reset(self) -> None:
        self.cache.crop(0)

    def reorder_cache(self, beam_idx: Int[Tensor, " b"]) -> None:
        self.cache.reorder(beam_idx)

    def batch_select_indices(self, indices: Int[Tensor, " b"]) -> None:
        self.cache.reorder(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        key, _ = self.cache.keys_and_values
        samples = torch.arange(key.shape[0], device=key.device)
        self.cache.reorder(samples.repeat_interleave(repeats))

    def offload(self) -> None:
        raise NotImplementedError("GPACache is not offloaded; keep it on the model's device")


class GPACache(Cache):
    """A cache whose layers attend with GPA; give it to `generate` as `past_key_values`.

    Args:
        rule: Which key blocks each cell reads; an int k means `TopK(k)`.
        block: Tokens of a block.
        cell: Blocks of a cell.

    Raises:
        ValueError, TypeError: As for `ndgpa.Cache`.
    """

    def __init__(self, rule: ndgpa.Rule | int, block: int = 16, cell: int = 1) -> None:
        ndgpa.Cache(block, cell, rule)  # refuses now what every layer would refuse later
        layer: Any = lambda: _Layer(ndgpa.Cache(block, cell, rule))  # noqa: E731
        super().__init__(layer_class_to_replicate=layer)


def _attention(
    module: nn.Module,
    query: Float[Tensor, "b h m d"],
    key: Float[Tensor, "b hk n d"],
    value: Float[Tensor, "b hk n dv"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """Attend through the cache that the keys come from, else as "sdpa" does."""
    held = _held_by(key)
    if held is None:
        options = {"dropout": dropout, "scaling": scaling, **given}
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return out, None
    return held.attend(query, attention_mask, scaling).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)

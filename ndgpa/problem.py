"""What passes between the phases: the checked call and what a rule answers.

A call is checked and completed once, by `Problem.of`; everything after it trusts it. Both
affinities are brought to one form here: scale q.k plus a bias for each key.
"""

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ndgpa import arguments
from ndgpa.structures.base import SpatialStructure, check_structure
from ndgpa.structures.sampling import Sampling
from ndgpa.structures.tokens import without_tokens

Affinity = Literal["dot", "euclidean"]
AFFINITIES = get_args(Affinity)


@dataclass(frozen=True)
class Selection:
    """For each cell, the key blocks that it reads.

    Args:
        blocks: (batch, selection heads, cells, width) int32 ids of key blocks, -1 for an empty
            slot. One selection head serves all heads, or there is one for each key head, or one
            for each head.
        bias: Floating, of the same shape, or None; added to every logit of that slot. A gradient
            can flow through it.
        full: Promise that no slot is empty; an empty one may then be read as block 0.

    Raises:
        TypeError, ValueError: A tensor has the wrong dtype or shape.
    """

    blocks: Int[Tensor, "b hs C K"]
    bias: Float[Tensor, "b hs C K"] | None = None
    full: bool = False

    def __post_init__(self) -> None:
        _check_selection_fields(self.blocks, self.bias)


@dataclass(frozen=True)
class Problem:
    """All that a rule may look at: the arguments of `ndgpa.select`, checked and completed.

    query is (batch, heads, n, d), key (batch, key heads, n_k, d); key_mask is (batch, n_k), True
    where a key is seen; query_mask is (batch, n), True where a query takes part in the selection.
    None means all, but in self-attention (one structure) a key that is hidden is no query either.
    key_means are known means of the key blocks and their seen sites; `key` may then be empty.
    """

    query: Float[Tensor, "b h n d"]
    key: Float[Tensor, "b hk n_k d"]
    structure: SpatialStructure
    key_structure: SpatialStructure
    scale: float
    affinity: Affinity = "dot"
    causal: bool = False
    key_mask: Bool[Tensor, "b n_k"] | None = None
    query_mask: Bool[Tensor, "b n"] | None = None
    key_means: tuple[Float[Tensor, "b hk B_k d"], Int[Tensor, "#b B_k"]] | None = None

    def __post_init__(self) -> None:
        if self.query_mask is None and self.structure is self.key_structure:
            object.__setattr__(self, "query_mask", self.key_mask)

    @classmethod
    def of(
        cls,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b hk n_k d"],
        structure: SpatialStructure,
        *,
        key_structure: SpatialStructure | None = None,
        scale: float | None = None,
        affinity: Affinity = "dot",
        causal: bool = False,
        key_mask: Bool[Tensor, "b n_k"] | None = None,
        query_mask: Bool[Tensor, "b n"] | None = None,
        value: Float[Tensor, "b hk n_k dv"] | None = None,
    ) -> "Problem":
        """Check the arguments of a call and complete them, once; all that follows trusts them.

        Arguments as for `ndgpa.gpa`. None as `key_structure` means `structure`, None as `scale`
        1/sqrt(d). The structures move to the device of `query`. A `value` is checked, not kept.

        Raises:
            ValueError, TypeError: An argument does not fit the others.
        """
        keys = structure if key_structure is None else key_structure
        check_query_and_key(query, key, structure, keys)
        if value is not None:
            check_value(key, value)
        check_key_mask(key_mask, key)
        check_query_mask(query_mask, query)
        check_scale(scale)
        arguments.one_of("affinity", affinity, AFFINITIES)
        if causal:
            _check_time(structure, keys)
        on_device = structure.to(query.device)
        return cls(
            query,
            key,
            on_device,
            on_device if keys is structure else keys.to(query.device),
            query.shape[-1] ** -0.5 if scale is None else scale,
            affinity,
            causal,
            key_mask,
            query_mask,
        )

    @property
    def without_tokens(self) -> "Problem":
        """The same of the sites alone; what the special tokens ask and say is left out."""
        own, keys = self.structure, self.key_structure
        if own.inner is own and keys.inner is keys:
            return self
        mask, voters = self.key_mask, self.query_mask
        return replace(
            self,
            query=without_tokens(own, self.query),
            key=without_tokens(keys, self.key),
            structure=own.inner,
            key_structure=keys.inner,
            key_mask=None if mask is None else without_tokens(keys, mask, dim=1),
            query_mask=None if voters is None else without_tokens(own, voters, dim=1),
        )

    def of_heads(self, heads: list[int]) -> "Problem":
        """Ask the same for some of the heads, ascending."""
        keys = self.key_heads_of(heads)
        means = self.key_means and (self.key_means[0][:, keys], self.key_means[1])
        return replace(self, query=self.query[:, heads], key=self.key[:, keys], key_means=means)

    def key_heads_of(self, heads: list[int]) -> list[int]:
        """List the key head of each head; each once if all are shared by equally many heads."""
        keys = [h * self.key.shape[1] // self.query.shape[1] for h in heads]
        counts = Counter(keys)
        return list(counts) if len(set(counts.values())) == 1 else keys


def dot_form(
    key: Float[Tensor, "*batch n_k d"], affinity: str, scale: float
) -> tuple[Float[Tensor, "*batch n_k"] | None, float]:
    """Turn an affinity into a dot product with a bias for each key.

    -scale |q-k|^2 = 2 scale q.k - scale |k|^2 - scale |q|^2, and the last term, being the same for
    all keys, cancels in a softmax.

    Returns:
        The biases in float32 or wider, None where they are zero, and the scale of the dot product.
    """
    if affinity == "dot":
        return None, scale
    wide = torch.promote_types(key.dtype, torch.float32)
    return -scale * key.to(wide).square().sum(dim=-1), 2 * scale


def hide_keys(
    bias: Float[Tensor, "b hk n_k"] | None,
    key: Float[Tensor, "b hk n_k d"],
    key_mask: Bool[Tensor, "b n_k"] | None,
) -> Float[Tensor, "b hk n_k"] | None:
    """Set the bias of the keys that are not seen to -inf."""
    if key_mask is None:
        return bias
    if bias is None:
        bias = key.new_zeros(key.shape[:3], dtype=torch.promote_types(key.dtype, torch.float32))
    return bias.masked_fill(~key_mask[:, None], -torch.inf)


# What a call must satisfy


def check_query_and_key(query: Any, key: Any, structure: Any, key_structure: Any) -> None:
    for name, x, place, space in (
        ("query", query, "structure", structure),
        ("key", key, "key_structure", key_structure),
    ):
        check_features(name, x)
        _check_space(place, space)
        _check_sites(name, x, place, space.num_sites)
    check_heads_and_features(query, key)


def check_features(name: str, x: Any) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(x).__name__}")
    if not x.dtype.is_floating_point:
        raise TypeError(f"{name} must have a floating-point dtype; got {x.dtype}")
    if x.dtype.itemsize < 2:
        raise TypeError(
            f"{name} is {x.dtype}, but attention needs at least 16 bits: use "
            f"{name}.to(torch.bfloat16)"
        )
    if x.ndim != 4:
        hint = f"; flatten the grid with {name}.flatten(2, -2)" if x.ndim > 4 else ""
        raise ValueError(
            f"{name} must have shape (batch, heads, sites, features); got {tuple(x.shape)}{hint}"
        )


def _check_space(place: str, space: Any) -> None:
    if isinstance(space, Sampling):
        raise TypeError(
            f"{place} must be a SpatialStructure; got the sampling {space}: pass the structure "
            f"that it samples, and read={space}"
        )
    check_structure(place, space)


def _check_sites(name: str, x: Tensor, place: str, num_sites: int) -> None:
    if x.shape[2] == num_sites:
        return
    hint = ""
    if x.shape[1] == num_sites:
        hint = f"; if its axes are (batch, sites, heads, features), use {name}.transpose(1, 2)"
    raise ValueError(f"{name} has {x.shape[2]} sites but {place} has {num_sites}{hint}")


def check_heads_and_features(query: Tensor, key: Tensor) -> None:
    _check_alike("query", query, "key", key)
    if key.shape[3] != query.shape[3]:
        raise ValueError(f"query has {query.shape[3]} features per head but key has {key.shape[3]}")
    if key.shape[1] == 0 or query.shape[1] % key.shape[1]:
        raise ValueError(
            f"query has {query.shape[1]} heads, which is not a multiple of key's {key.shape[1]}"
        )


def check_value(key: Tensor, value: Any) -> None:
    check_features("value", value)
    _check_alike("key", key, "value", value)
    if value.shape[1:3] != key.shape[1:3]:
        raise ValueError(
            f"value has {value.shape[1]} heads and {value.shape[2]} sites but key has "
            f"{key.shape[1]} and {key.shape[2]}"
        )


def _check_alike(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    if x.shape[0] != other.shape[0]:
        raise ValueError(
            f"{name} has a batch of {x.shape[0]} but {other_name} has {other.shape[0]}"
        )
    if x.dtype != other.dtype:
        raise ValueError(f"{name} is {x.dtype} but {other_name} is {other.dtype}")
    if x.device != other.device:
        raise ValueError(f"{name} is on {x.device} but {other_name} is on {other.device}")


def check_key_mask(mask: Any, key: Tensor) -> None:
    _check_mask("key", "is seen", mask, key)


def check_query_mask(mask: Any, query: Tensor) -> None:
    _check_mask("query", "takes part in the selection", mask, query)


def _check_mask(of: str, meaning: str, mask: Any, x: Tensor) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{of}_mask must be a bool tensor, True where a {of} {meaning}; got {got}")
    wanted = (x.shape[0], x.shape[2])
    if tuple(mask.shape) != wanted:
        raise ValueError(
            f"{of}_mask must have shape (batch, sites) = {wanted}; got {tuple(mask.shape)}"
        )
    if mask.device != x.device:
        raise ValueError(f"{of}_mask is on {mask.device} but {of} is on {x.device}")


def check_scale(value: Any) -> None:
    if value is None:
        return
    if isinstance(value, Tensor) or not hasattr(value, "__float__"):
        raise TypeError(
            f"scale must be a number; got {type(value).__name__}: to learn a scale, multiply the "
            "queries by it"
        )
    if not math.isfinite(value):
        raise ValueError(f"scale must be finite; got {value}")


def _check_time(structure: SpatialStructure, key_structure: SpatialStructure) -> None:
    for place, space in (("structure", structure), ("key_structure", key_structure)):
        if space.time is None:
            raise ValueError(f"causal=True needs structures with time; {place} has none")


# What a selection must satisfy


def _check_selection_fields(blocks: Any, bias: Any) -> None:
    arguments.int_tensor("blocks", blocks)
    if blocks.ndim != 4:
        raise ValueError(
            f"blocks must have shape (batch, heads, cells, width); got {tuple(blocks.shape)}"
        )
    if bias is None:
        return
    if not isinstance(bias, Tensor) or not bias.dtype.is_floating_point:
        raise TypeError("bias must be a floating tensor")
    if bias.shape != blocks.shape:
        raise ValueError(f"bias has shape {tuple(bias.shape)} but blocks has {tuple(blocks.shape)}")


def check_selection(
    selection: Any, query: Tensor, key: Tensor, structure: SpatialStructure
) -> None:
    if not isinstance(selection, Selection):
        raise TypeError(
            f"selection must be a Selection; got {type(selection).__name__}: wrap a table of "
            "blocks as Selection(blocks)"
        )
    blocks = selection.blocks
    batch, heads, cells, _ = blocks.shape
    if batch != query.shape[0]:
        raise ValueError(f"selection has a batch of {batch} but query has {query.shape[0]}")
    if heads not in (1, key.shape[1], query.shape[1]):
        raise ValueError(
            f"selection has {heads} heads; expected 1, {key.shape[1]} (key) or "
            f"{query.shape[1]} (query)"
        )
    if cells != structure.inner.num_cells:
        raise ValueError(
            f"selection has {cells} cells but structure has {structure.inner.num_cells}"
        )
    if blocks.device != query.device:
        raise ValueError(f"selection is on {blocks.device} but query is on {query.device}")


def check_block_ids(blocks: Tensor, num_blocks: int) -> None:
    """Look on the CPU alone, where looking at values costs nothing, and outside traces."""
    if blocks.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if blocks.numel() and int(blocks.max()) >= num_blocks:
        raise ValueError(
            f"selection names block {int(blocks.max())} but key_structure has {num_blocks} blocks"
        )

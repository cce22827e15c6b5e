"""What a rule is given, and what it answers."""

import abc
from collections import Counter
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ndgpa import _checks
from ndgpa.affinity import dot_form
from ndgpa.selection.means import seen_sums
from ndgpa.structures.base import SpatialStructure


@dataclass(frozen=True)
class Selection:
    """For each cell, the key blocks that it reads.

    Args:
        blocks: (batch, selection heads, cells, width) int32 ids of key blocks, -1 for an empty
            slot. One selection head serves all heads, or there is one for each key head, or one
            for each head.
        bias: Floating, of the same shape, or None; added to every logit of that slot. A gradient
            can flow through it.

    Raises:
        TypeError, ValueError: A tensor has the wrong dtype or shape.
    """

    blocks: Int[Tensor, "b hs C K"]
    bias: Float[Tensor, "b hs C K"] | None = None

    def __post_init__(self) -> None:
        _checks.selection_fields(self.blocks, self.bias)


@dataclass(frozen=True)
class Problem:
    """All that a rule may look at: the arguments of `ndgpa.select`, checked and completed.

    query is (batch, heads, n, d), key (batch, key heads, n_k, d); key_mask is (batch, n_k), True
    where a key is seen; query_mask is (batch, n), True where a query takes part in the selection.
    None means all, but in self-attention (one structure) a key that is hidden is no query either.
    """

    query: Float[Tensor, "b h n d"]
    key: Float[Tensor, "b hk n_k d"]
    structure: SpatialStructure
    key_structure: SpatialStructure
    scale: float
    affinity: str = "dot"
    causal: bool = False
    key_mask: Bool[Tensor, "b n_k"] | None = None
    query_mask: Bool[Tensor, "b n"] | None = None

    def __post_init__(self) -> None:
        if self.query_mask is None and self.structure is self.key_structure:
            object.__setattr__(self, "query_mask", self.key_mask)

    def of_heads(self, heads: list[int]) -> "Problem":
        """The same question for some of the heads, ascending."""
        keys = self.key_heads_of(heads)
        return replace(self, query=self.query[:, heads], key=self.key[:, keys])

    def key_heads_of(self, heads: list[int]) -> list[int]:
        """The key head of each; named once where as many of the heads share every one of them."""
        keys = [h * self.key.shape[1] // self.query.shape[1] for h in heads]
        counts = Counter(keys)
        return list(counts) if len(set(counts.values())) == 1 else keys

    def coarse(self) -> "Coarse":
        """The means over the blocks, for rules that work at the coarse level.

        If causal, the mean of a block of queries is over its sites of the cell's earliest time.
        """
        query, weight = _seen_means(self.structure, self.query, self._voters())
        key, seen = _seen_means(self.key_structure, self.key, self.key_mask)
        log_size = None
        if self.key_mask is not None or not self.key_structure.is_even:
            log_size = seen.log()
        bias, scale = dot_form(key, self.affinity, self.scale)
        return Coarse(query, key, bias, seen, log_size, weight, scale)

    def _voters(self) -> Bool[Tensor, "b n"] | None:
        """The queries that a selection is made from; None for all."""
        if not self.causal:
            return self.query_mask
        first = self.structure.first_in_cell.expand(self.query.shape[0], -1)
        return first if self.query_mask is None else first & self.query_mask


def _seen_means(
    structure: SpatialStructure, x: Float[Tensor, "b h n d"], seen: Bool[Tensor, "b n"] | None
) -> tuple[Float[Tensor, "b h B d"], Float[Tensor, "#b B"]]:
    """Means over the seen sites of each block, 0 where there are none, and their number."""
    wide = torch.promote_types(x.dtype, torch.float32)
    count = structure.block_sizes.to(wide)[None]
    if seen is not None:
        count = structure.block_sums(seen[..., None].to(wide))[..., 0]
    return seen_sums(structure, x, seen) / count.clamp(min=1)[:, None, :, None], count


@dataclass(frozen=True)
class Coarse:
    """The coarse level: the logit of query block i and key block j is scale q_i.k_j + bias_j.

    The bias is the part of a euclidean affinity that depends on the key alone; None is zero. The
    softmax weighs a key block by its `seen` sites; `log_size` is their logarithm, -inf for a block
    of which nothing is seen and which therefore does not exist. None is one weight for all.
    `weight` is how many sites the mean of each query block stands for; 0 for a block that takes no
    part.
    """

    query: Float[Tensor, "b h B d"]
    key: Float[Tensor, "b hk B_k d"]
    bias: Float[Tensor, "b hk B_k"] | None
    seen: Float[Tensor, "#b B_k"]
    log_size: Float[Tensor, "#b B_k"] | None
    weight: Float[Tensor, "#b B"]
    scale: float


class Rule(abc.ABC):
    """Says which key blocks each cell reads. Final rules are frozen dataclasses."""

    @abc.abstractmethod
    def select(self, problem: Problem) -> Selection:
        """Answer for every cell of `problem.structure`."""

    def __or__(self, other: "Rule") -> "Rule":
        """The rule that reads what either reads."""
        from ndgpa.selection.union import Union

        if not isinstance(other, Rule):
            return NotImplemented
        return Union((self, other))

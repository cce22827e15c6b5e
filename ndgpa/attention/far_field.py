"""The far field: the blocks that a cell did not select take part through their means.

What a query q does not read site by site, it reads as keys at means,

    scale q.k' + log m ,  with the value v' ,

where k' and v' are means over m seen sites: those of one block each (`far="site"`, the field of
this file), or those of a bundle of similar blocks (`Bundles`; `far_cells` makes them keys of each
cell, which any backend reads beside those that are selected).

Near field and far field are parts of one softmax. Here they are merged by their log-sum-exp.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ndgpa import arguments
from ndgpa.problem import Problem, Selection, dot_form
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.means import row_means, seen_means
from ndgpa.structures.tables import span_of_rows


@dataclass(frozen=True)
class Bundles:
    """A far field of so many keys for each cell: each is the mean of a bundle of similar blocks.

    Args:
        count: How many bundles the blocks are in; each costs one entry of the affinity matrix for
            each query, and memory for one key and one value for each cell.

    Raises:
        ValueError, TypeError: `count` is no positive int.
    """

    count: int = 16

    def __post_init__(self) -> None:
        arguments.positive_count("count", self.count)


Far = Literal["site", "block"]
FAR = get_args(Far)


def check_far(far: Any) -> None:
    if not isinstance(far, Bundles):
        arguments.one_of("far", far, FAR)


def as_bundles(far: "Far | Bundles") -> Bundles | None:
    """Return the bundles; None for "site"."""
    if isinstance(far, Bundles):
        return far
    return None if far == "site" else Bundles()


@dataclass(frozen=True)
class BlockMeans:
    """The mean keys and values of all blocks, and of how many seen sites they are.

    `time` is the latest of each block, None if not causal.
    """

    key: Float[Tensor, "b hk B d"]
    value: Float[Tensor, "b hk B w"]
    seen: Float[Tensor, "b hk B"]
    time: Int[Tensor, " B"] | None
    group: Int[Tensor, " B"] | None

    @classmethod
    def of(
        cls,
        problem: Problem,
        value: Float[Tensor, "b hk n_k dv"],
        key_sites: Int[Tensor, "B S"] | None = None,
    ) -> "BlockMeans":
        """Average over the seen sites that are read of each block.

        Args:
            key_sites: The sites that are read where a block is selected; None means the blocks.
        """
        structure, mask = problem.key_structure, problem.key_mask
        means = partial(seen_means, structure, seen=mask)
        if key_sites is not None:
            means = partial(row_means, rows=key_sites, seen=mask)
        (key, seen), (value, _) = means(problem.key), means(value)
        latest = latest_of_blocks(structure, key_sites) if problem.causal else None
        return cls(key, value, seen[:, None].expand(key.shape[:3]), latest, structure.group)


@dataclass(frozen=True)
class FarKeys:
    """Each key block as one key.

    `bias` is the part of the affinity that depends on the key alone plus the logarithm of the
    number of seen sites; -inf for a block of which nothing is seen. `time` is the latest of each
    block, None if not causal.
    """

    key: Float[Tensor, "b hk B d"]
    value: Float[Tensor, "b hk B w"]
    bias: Float[Tensor, "b hk B"]
    time: Int[Tensor, " B"] | None
    group: Int[Tensor, " B"] | None
    scale: float

    @classmethod
    def of(cls, means: BlockMeans, problem: Problem) -> "FarKeys":
        bias, scale = dot_form(means.key, problem.affinity, problem.scale)
        size = means.seen.log()
        bias = size if bias is None else size + bias
        return cls(means.key, means.value, bias, means.time, means.group, scale)


@dataclass(frozen=True)
class FarQueries:
    """The queries of the far field and their cells; None as time or group means any may be seen.

    `dtype` is that of the features of the call.
    """

    query: Float[Tensor, "b h Q d"]
    dtype: torch.dtype
    cell: Int[Tensor, " Q"]
    time: Int[Tensor, " Q"] | None
    group: Int[Tensor, " Q"] | None


@dataclass(frozen=True)
class FarBackend:
    """How to attend to the far field (`literal` is the definition) and to merge it (`merged`)."""

    attend: Callable[[FarQueries, FarKeys, Int[Tensor, "b hs C K"]], tuple[Tensor, Tensor]]
    merge: Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class FarField:
    """The far field "site" of a call, before it is known what the cells select.

    A block is in the far field of a query if the query's cell did not select it, if it is of the
    query's group and, if causal, wholly past.
    """

    queries: FarQueries
    keys: FarKeys

    @classmethod
    def of(cls, problem: Problem, means: BlockMeans) -> "FarField":
        """Call it before the near field: then its gradients are computed first, and are not in
        memory together with those of the near field."""
        return cls(_site_queries(problem), FarKeys.of(means, problem))

    def merge(
        self,
        near: tuple[Float[Tensor, "b h n dv"], Float[Tensor, "b h n"]],
        selection: Selection,
        backend: FarBackend,
    ) -> tuple[Float[Tensor, "b h n dv"], Float[Tensor, "b h n"]]:
        """Merge the far field into the near field.

        Args:
            near: What a backend of `attend` returned, the log-sum-exp without the term of a
                euclidean affinity that depends on the query alone.
        """
        far, far_lse = backend.attend(self.queries, self.keys, selection.blocks)
        hides = self.keys.time is not None
        return backend.merge(*near, far, far_lse, hides)


def literal(
    queries: FarQueries, keys: FarKeys, selected: Int[Tensor, "b hs C K"]
) -> tuple[Float[Tensor, "b h Q w"], Float[Tensor, "b h Q"]]:
    """Attend to the blocks that are not selected: dense, any order of derivative."""
    heads, num_blocks = queries.query.shape[1], keys.key.shape[2]
    key, value, bias = (_per_head(x, heads) for x in (keys.key, keys.value, keys.bias))
    # (b, h, Q, B); an empty slot names a block after the last
    taken = _per_head(selected, heads)[:, :, queries.cell].long() % (num_blocks + 1)
    hidden = torch.zeros(*taken.shape[:3], num_blocks + 1, dtype=torch.bool, device=taken.device)
    hidden = hidden.scatter(3, taken, True)[..., :-1] | (bias == -torch.inf)[:, :, None]
    if queries.time is not None and keys.time is not None:
        hidden = hidden | (keys.time > queries.time[:, None])
    if queries.group is not None and keys.group is not None:
        hidden = hidden | (keys.group != queries.group[:, None])
    no_key, no_value = ~key.isfinite().all(dim=-1), ~value.isfinite()
    key, value = (x.masked_fill(~x.isfinite(), 0) for x in (key, value))  # 0 NaN is NaN
    logits = keys.scale * einsum(queries.query.to(key.dtype), key, "b h q d, b h j d -> b h q j")
    logits = (logits + bias[:, :, None]).masked_fill(no_key[:, :, None], torch.nan)
    logits = logits.masked_fill(hidden, -torch.inf)
    masked = hidden.all(dim=-1, keepdim=True)
    weights = logits.masked_fill(masked, 0).softmax(dim=-1).masked_fill(masked, 0)
    reads = (weights > 0).to(value.dtype) @ no_value.to(value.dtype) > 0
    out = (weights @ value).masked_fill(reads, torch.nan)
    lse = logits.masked_fill(masked, 0).logsumexp(dim=-1).masked_fill(masked[..., 0], -torch.inf)
    return out, lse


def latest_of_blocks(
    structure: SpatialStructure, key_sites: Int[Tensor, "B S"] | None
) -> Int[Tensor, " B"]:
    """Find the latest time among the sites that are read of each block."""
    if key_sites is None:
        return structure.block_span[1]
    assert structure.time is not None
    return span_of_rows(structure.time, structure.time, key_sites)[1]


def _site_queries(problem: Problem) -> FarQueries:
    space, query = problem.structure, problem.query
    cell, group = space.cell_of_site, space.cell_group
    time = space.time if problem.causal else None
    group = None if group is None else group[cell]
    return FarQueries(query, query.dtype, cell, time, group)


def far_mask(
    far: Far | Bundles,
    structure: SpatialStructure,
    key_structure: SpatialStructure,
    key_sites: Int[Tensor, "B S"],
    causal: bool,
) -> Bool[Tensor, "n n_k"]:
    """Return which keys the far field of each site can contain, whatever its cell selects."""
    blocks = torch.ones(structure.num_sites, key_structure.num_blocks, dtype=torch.bool)
    blocks = blocks.to(structure.device)
    if structure.cell_group is not None and key_structure.group is not None:
        blocks &= structure.cell_group[structure.cell_of_site, None] == key_structure.group
    if causal:
        time = structure.time
        if as_bundles(far) is not None:
            time = structure.cell_span[0][structure.cell_of_site]
        assert time is not None
        blocks &= time[:, None] >= latest_of_blocks(key_structure, key_sites)
    members = blocks.new_zeros(key_structure.num_blocks, key_structure.num_sites + 1)
    members.scatter_(1, key_sites % members.shape[1], True)  # -1 is the last
    return (blocks.float() @ members[:, :-1].float()) > 0


def _per_head(x: Tensor, heads: int) -> Tensor:  # (b, some heads, ...) -> (b, heads, ...)
    return x.repeat_interleave(heads // x.shape[1], dim=1)

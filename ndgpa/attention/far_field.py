"""The far field: the blocks that a cell did not select take part through their means.

A key block j that the cell of a query q did not select is one key at its mean,

    scale q.k'_j + log s_j ,  with the value v'_j ,

where k'_j and v'_j are means over its s_j seen sites. It is attended to

* from each site ("site"), or
* from the mean query q' of each block or of each cell (`Tangents`). The far blocks are in bundles
  of similar keys; for each, the log-sum-exp L of its logits is moved to the query of the site along
  its gradient: L(q') + (q - q').L'(q'). L'(q') is scale times the mean key of the bundle under the
  weights of q', so a bundle is one key, one value and one bias.
  L is convex in the query, so a tangent never gives the far field more weight than "site" does.

Near and far field are merged by their log-sum-exp, as parts of one softmax.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ndgpa import arguments
from ndgpa.attention.far_bundles import bundle_blocks
from ndgpa.problem import Problem, Selection, dot_form
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.means import row_means, seen_means, seen_sums
from ndgpa.structures.tables import span_of_rows, take_sites

At = Literal["block", "cell"]


@dataclass(frozen=True)
class Tangents:
    """A far field by tangents: expanded about mean queries, one tangent for each bundle of blocks.

    Args:
        at: Whose mean query: of each "block", or of each "cell", which has fewer products.
        bundles: How many bundles the far blocks are in; each costs one entry of the affinity matrix
            for each query.

    Raises:
        ValueError, TypeError: `at` is an unknown word, or `bundles` no positive int.
    """

    at: At = "block"
    bundles: int = 16

    def __post_init__(self) -> None:
        arguments.one_of("at", self.at, get_args(At))
        arguments.positive_count("bundles", self.bundles)


Far = Literal["site", "block", "cell"]
FAR = get_args(Far)


def check_far(far: Any) -> None:
    if not isinstance(far, Tangents):
        arguments.one_of("far", far, FAR)


def as_tangents(far: "Far | Tangents") -> Tangents | None:
    """Return the tangents; None for "site"."""
    if isinstance(far, Tangents):
        return far
    return None if far == "site" else Tangents(far)


def bundles_of(far: "Far | Tangents") -> int:
    """Into how many bundles the blocks are put."""
    tangents = as_tangents(far)
    return 1 if tangents is None else tangents.bundles


@dataclass(frozen=True)
class FarKeys:
    """Each key block as one key.

    `bias` is the part of the affinity that depends on the key alone plus the logarithm of the
    number of seen sites; -inf for a block of which nothing is seen. `time` is the latest of each
    block, None if not causal. `bundle` numbers the bundle of each block, of which there are
    `bundles`.
    """

    key: Float[Tensor, "b hk B d"]
    value: Float[Tensor, "b hk B w"]
    bias: Float[Tensor, "b hk B"]
    bundle: Int[Tensor, "b hk B"]
    bundles: int
    time: Int[Tensor, " B"] | None
    group: Int[Tensor, " B"] | None
    scale: float


@dataclass(frozen=True)
class FarQueries:
    """The queries of the far field and their cells; None as time or group means any may be seen.

    `sites` are those that each stands for, -1 for an empty place; `dtype` is that of the features
    of the call, where means are float32 or wider.
    """

    query: Float[Tensor, "b h Q d"]
    dtype: torch.dtype
    cell: Int[Tensor, " Q"]
    time: Int[Tensor, " Q"] | None
    group: Int[Tensor, " Q"] | None
    sites: Int[Tensor, "Q X"]


@dataclass(frozen=True)
class FarBackend:
    """How to attend to the far field (`literal` is the definition) and to merge it (`merged`)."""

    attend: Callable[[FarQueries, FarKeys, Int[Tensor, "b hs C K"]], tuple[Tensor, Tensor]]
    merge: Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class FarField:
    """The far field of a call, before it is known what the cells select.

    A block is in the far field of a query if the query's cell did not select it, if it is of the
    query's group and, if causal, wholly past: at the time of the query for "site", at the earliest
    time of its block or cell for tangents.
    """

    tangents: Tangents | None
    problem: Problem
    queries: FarQueries
    keys: FarKeys

    @classmethod
    def of(cls, far: Far | Tangents, problem: Problem, keys: FarKeys) -> "FarField":
        """Take the mean queries.

        Call it before the near field: then its gradients are computed first, and are not in memory
        together with those of the near field.
        """
        tangents = as_tangents(far)
        queries = _site_queries(problem) if tangents is None else _MEAN[tangents.at](problem)
        return cls(tangents, problem, queries, keys)

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
        keys, mean = self.keys, None
        if self.tangents is not None:  # which are made of the mean query and the mean keys
            mean = self.queries.query
            keys = replace(keys, value=torch.cat([keys.value, keys.key], dim=-1))
        value, bias = backend.attend(self.queries, keys, selection.blocks)
        given = *near, self.problem.query, mean, value, bias, self.queries.sites
        out, lse = backend.merge(*given, keys.scale, self.problem.causal)
        return out.to(near[0].dtype), lse


def literal(
    queries: FarQueries, keys: FarKeys, selected: Int[Tensor, "b hs C K"]
) -> tuple[Float[Tensor, "b h Q G w"], Float[Tensor, "b h Q G"]]:
    """Attend to the blocks of each bundle that are not selected: dense, any order of derivative."""
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
    # (b, h, Q, G, B)
    bundle = _per_head(keys.bundle, heads)[:, :, None, None]
    other = bundle != torch.arange(keys.bundles, device=bundle.device)[:, None]
    hidden = hidden[:, :, :, None] | other
    logits = logits[:, :, :, None].masked_fill(hidden, -torch.inf)
    masked = hidden.all(dim=-1, keepdim=True)
    weights = logits.masked_fill(masked, 0).softmax(dim=-1).masked_fill(masked, 0)
    reads = (weights > 0).to(value.dtype) @ no_value[:, :, None].to(value.dtype) > 0
    out = (weights @ value[:, :, None]).masked_fill(reads, torch.nan)
    lse = logits.masked_fill(masked, 0).logsumexp(dim=-1).masked_fill(masked[..., 0], -torch.inf)
    return out, lse


def far_keys(
    problem: Problem,
    value: Float[Tensor, "b hk n_k dv"],
    key_sites: Int[Tensor, "B S"] | None = None,
    bundles: int = 1,
) -> FarKeys:
    """Average keys and values over the seen sites that are read of each block, and bundle them.

    Args:
        key_sites: The sites that are read where a block is selected; None means the blocks.
    """
    structure, mask, latest = problem.key_structure, problem.key_mask, None
    means = partial(seen_means, structure, seen=mask)
    if key_sites is not None:
        means = partial(row_means, rows=key_sites, seen=mask)
    (key, seen), (value, _) = means(problem.key), means(value)
    bias, scale = dot_form(key, problem.affinity, problem.scale)
    size = seen.log()[:, None].expand(key.shape[:3])
    if problem.causal:
        latest = latest_of_blocks(structure, key_sites)
    bundle = bundle_blocks(key.detach(), size > -torch.inf, latest, structure.group, bundles)
    bias = size if bias is None else size + bias
    return FarKeys(key, value, bias, bundle, bundles, latest, structure.group, scale)


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
    sites = torch.arange(query.shape[2], device=query.device)[:, None]
    group = None if group is None else group[cell]
    return FarQueries(query, query.dtype, cell, time, group, sites)


def _block_queries(problem: Problem) -> FarQueries:
    """Average each block over the sites that take part, if causal over those of its first time.

    The mean is 0 where no site takes part.
    """
    space, voters, time = problem.structure, problem.query_mask, None
    if problem.causal:
        time = space.block_span[0]
        voters = _first(voters, time[space.block_of_site], problem)
    mean, _ = seen_means(space, problem.query, voters)
    return FarQueries(
        mean, problem.query.dtype, space.cell_of_block, time, space.group, space.blocks
    )


def _cell_queries(problem: Problem) -> FarQueries:
    """The same for the sites of each cell."""
    space, voters, time = problem.structure, problem.query_mask, None
    if problem.causal:
        time = space.cell_span[0]
        voters = _first(voters, time[space.cell_of_site], problem)
    sums = take_sites(seen_sums(space, problem.query, voters), space.cells).sum(dim=-2)
    count = row_means(problem.query[:, :, :, :0], space.cell_sites, voters)[1]
    cells = torch.arange(space.num_cells, device=sums.device)
    mean = sums / count.clamp(min=1)[:, None, :, None]
    return FarQueries(mean, problem.query.dtype, cells, time, space.cell_group, space.cell_sites)


_MEAN = {"block": _block_queries, "cell": _cell_queries}


def _first(
    voters: Bool[Tensor, "b n"] | None, first: Int[Tensor, " n"], problem: Problem
) -> Bool[Tensor, "b n"]:
    """Of those that take part, the sites of the first time."""
    assert problem.structure.time is not None
    now = (problem.structure.time == first).expand(len(problem.query), -1)
    return now if voters is None else now & voters


def far_mask(
    far: Far | Tangents,
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
        time, tangents = structure.time, as_tangents(far)
        if tangents is not None:
            by_cell = tangents.at == "cell"
            row = structure.cell_of_site if by_cell else structure.block_of_site
            time = (structure.cell_span if by_cell else structure.block_span)[0][row]
        assert time is not None
        blocks &= time[:, None] >= latest_of_blocks(key_structure, key_sites)
    members = blocks.new_zeros(key_structure.num_blocks, key_structure.num_sites + 1)
    members.scatter_(1, key_sites % members.shape[1], True)  # -1 is the last
    return (blocks.float() @ members[:, :-1].float()) > 0


def _per_head(x: Tensor, heads: int) -> Tensor:  # (b, some heads, ...) -> (b, heads, ...)
    return x.repeat_interleave(heads // x.shape[1], dim=1)

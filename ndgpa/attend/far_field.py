"""The far field: the blocks that a cell did not select take part through their means.

A key block j that the cell of a query x did not select is one key at its mean,

    scale q_x.k'_j + log s_j ,  with the value v'_j ,

k'_j and v'_j being means over its s_j seen sites. The kinds differ in whose query asks:

* "site" asks with q_x itself.
* "block" asks with the mean q' of the block of x and moves the log-sum-exp of the answer, L, to the
  query of each site along its gradient: L(q') + (q_x - q').L'(q'). L'(q') is scale times the mean
  far key under the weights of q', so a block's far field is one key, one value and one bias.
  L is convex in the query, so this never claims more weight for the far field than "site" does.

Near and far field are merged by their log-sum-exp, as parts of one softmax.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ndgpa.affinity import dot_form
from ndgpa.selection.base import Problem, Selection
from ndgpa.selection.means import seen_sums
from ndgpa.structures.base import SpatialStructure

FAR = ("block", "site")


@dataclass(frozen=True)
class FarKeys:
    """Each key block as one key.

    `bias` is the part of the affinity that depends on the key alone and the logarithm of the seen
    sites; -inf for a block of which nothing is seen. `time` is the latest in each block, or None.
    """

    key: Float[Tensor, "b hk B d"]
    value: Float[Tensor, "b hk B w"]
    bias: Float[Tensor, "b hk B"]
    time: Int[Tensor, " B"] | None
    group: Int[Tensor, " B"] | None
    scale: float


@dataclass(frozen=True)
class Askers:
    """Queries of the far field, the cell of each, and which blocks it may see, if not all."""

    query: Float[Tensor, "b h Q d"]
    cell: Int[Tensor, " Q"]
    time: Int[Tensor, " Q"] | None
    group: Int[Tensor, " Q"] | None


@dataclass(frozen=True)
class FarBackend:
    """How the far field is asked (`literal` is the definition), and how it is merged (`merged`)."""

    ask: Callable[[Askers, FarKeys, Int[Tensor, "b hs C K"]], tuple[Tensor, Tensor]]
    merge: Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class FarField:
    """The far field of a call, before it is known what the cells select.

    A block is in the far field of a query if the query's cell did not select it, if it is of the
    query's group and, if causal, wholly past: at the time of the query for "site", at the earliest
    time of the query's block for "block", whose mean query is then over its sites of that time.
    """

    kind: str
    problem: Problem
    askers: Askers
    keys: FarKeys

    @classmethod
    def of(cls, kind: str, problem: Problem, value: Float[Tensor, "b hk n_k dv"]) -> "FarField":
        """Take the means. Before the near field, so that its gradients come first, and are not
        held beside theirs."""
        askers = _sites(problem) if kind == "site" else _blocks(problem)
        return cls(kind, problem, askers, far_keys(problem, value))

    def merge(
        self,
        near: tuple[Float[Tensor, "b h n dv"], Float[Tensor, "b h n"]],
        selection: Selection,
        backend: FarBackend,
    ) -> tuple[Float[Tensor, "b h n dv"], Float[Tensor, "b h n"]]:
        """Merge the far field into what a backend of `attend` returned.

        Args:
            near: The output and its log-sum-exp, without what a euclidean affinity adds for the
                query.
        """
        query, keys, row = self.askers.query, self.keys, None
        if self.kind == "block":
            row = self.problem.structure.block_of_site
            keys = replace(keys, value=torch.cat([keys.value, keys.key], dim=-1))
        value, bias = backend.ask(self.askers, keys, selection.blocks)
        key = None
        if self.kind == "block":  # the tangent: the logit of one key, and what it lacks at q'
            value, key = value.split([value.shape[-1] - query.shape[-1], query.shape[-1]], dim=-1)
            bias = bias - keys.scale * (query * key).sum(dim=-1)
        given = *near, self.problem.query, key, value, bias, row
        out, lse = backend.merge(*given, keys.scale, self.problem.causal)
        return out.to(near[0].dtype), lse


def literal(
    askers: Askers, keys: FarKeys, selected: Int[Tensor, "b hs C K"]
) -> tuple[Float[Tensor, "b h Q w"], Float[Tensor, "b h Q"]]:
    """Attend to the blocks that are not selected: dense, any order of derivative."""
    heads, num_blocks = askers.query.shape[1], keys.key.shape[2]
    key, value, bias = (_per_head(x, heads) for x in (keys.key, keys.value, keys.bias))
    # (b, h, Q, B); an empty slot names a block after the last
    taken = _per_head(selected, heads)[:, :, askers.cell].long() % (num_blocks + 1)
    hidden = torch.zeros(*taken.shape[:3], num_blocks + 1, dtype=torch.bool, device=taken.device)
    hidden = hidden.scatter(3, taken, True)[..., :-1] | (bias == -torch.inf)[:, :, None]
    if askers.time is not None and keys.time is not None:
        hidden = hidden | (keys.time > askers.time[:, None])
    if askers.group is not None and keys.group is not None:
        hidden = hidden | (keys.group != askers.group[:, None])
    no_key, no_value = ~key.isfinite().all(dim=-1), ~value.isfinite()
    key, value = (x.masked_fill(~x.isfinite(), 0) for x in (key, value))  # 0 NaN is NaN
    logits = keys.scale * einsum(askers.query, key, "b h q d, b h j d -> b h q j")
    logits = (logits + bias[:, :, None]).masked_fill(no_key[:, :, None], torch.nan)
    logits = logits.masked_fill(hidden, -torch.inf)
    blind = hidden.all(dim=-1, keepdim=True)
    weights = logits.masked_fill(blind, 0).softmax(dim=-1).masked_fill(blind, 0)
    reads = (weights > 0).to(value.dtype) @ no_value.to(value.dtype) > 0
    out = (weights @ value).masked_fill(reads, torch.nan)
    lse = logits.masked_fill(blind, 0).logsumexp(dim=-1).masked_fill(blind[..., 0], -torch.inf)
    return out, lse


def far_keys(problem: Problem, value: Float[Tensor, "b hk n_k dv"]) -> FarKeys:
    """Average keys and values over the seen sites of each block, in float32 or wider."""
    structure, mask = problem.key_structure, problem.key_mask
    wide = torch.promote_types(problem.key.dtype, torch.float32)
    seen = structure.block_sizes.to(wide)[None]
    if mask is not None:
        seen = seen_sums(structure, mask[:, None, :, None].to(wide))[:, 0, :, 0]
    count = seen.clamp(min=1)[:, None, :, None]
    key = seen_sums(structure, problem.key, mask) / count
    bias, scale = dot_form(key, problem.affinity, problem.scale)
    size = seen.log()[:, None].expand(key.shape[:3])
    return FarKeys(
        key,
        seen_sums(structure, value, mask) / count,
        size if bias is None else size + bias,
        structure.block_span[1] if problem.causal else None,
        structure.group,
        scale,
    )


def _sites(problem: Problem) -> Askers:
    """Every site for itself."""
    space = problem.structure
    cell, group = space.cell_of_site, space.cell_group
    wide = torch.promote_types(problem.query.dtype, torch.float32)
    time = space.time if problem.causal else None
    return Askers(problem.query.to(wide), cell, time, None if group is None else group[cell])


def _blocks(problem: Problem) -> Askers:
    """Each block by its mean query; if causal, that of its earliest time."""
    space, query = problem.structure, problem.query
    wide = torch.promote_types(query.dtype, torch.float32)
    count, time = space.block_sizes.to(wide), None
    if problem.causal:
        assert space.time is not None
        time = space.block_span[0]
        first = (space.time == time[space.block_of_site])[:, None]
        query, count = query.masked_fill(~first, 0), space.block_sums(first.to(wide))[:, 0]
    mean = seen_sums(space, query) / count[:, None]
    return Askers(mean, space.cell_of_block, time, space.group)


def far_mask(
    kind: str, structure: SpatialStructure, key_structure: SpatialStructure, causal: bool
) -> Bool[Tensor, "n n_k"]:
    """Which keys the far field of a site can hold, whatever its cell selects."""
    blocks = torch.ones(structure.num_sites, key_structure.num_blocks, dtype=torch.bool)
    blocks = blocks.to(structure.device)
    if structure.cell_group is not None and key_structure.group is not None:
        blocks &= structure.cell_group[structure.cell_of_site, None] == key_structure.group
    if causal:
        time = structure.time
        assert time is not None
        if kind == "block":
            time = structure.block_span[0][structure.block_of_site]
        blocks &= time[:, None] >= key_structure.block_span[1]
    members = blocks.new_zeros(key_structure.num_blocks, key_structure.num_sites + 1)
    members.scatter_(1, key_structure.blocks % members.shape[1], True)  # -1 is the last
    return (blocks.float() @ members[:, :-1].float()) > 0


def _per_head(x: Tensor, heads: int) -> Tensor:  # (b, some heads, ...) -> (b, heads, ...)
    return x.repeat_interleave(heads // x.shape[1], dim=1)

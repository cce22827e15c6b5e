"""`gpa` over many ranks: each holds a run of cells, and fetches the foreign blocks they select."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from ndgpa._ops import cast_for_autocast, without_autocast
from ndgpa.attention import FAR_BACKENDS, BackendName, pick
from ndgpa.attention.far_cells import FarCells
from ndgpa.attention.far_field import BlockMeans, Bundles, Far, latest_of_blocks
from ndgpa.attention.near_and_far import (
    FarWays,
    attend_near_and_far,
    check_backend,
    check_read,
)
from ndgpa.distributed.agreement import agree, telling_of_failure, told
from ndgpa.distributed.apart import Apart
from ndgpa.distributed.collectives import gather_blocks
from ndgpa.distributed.part import Part, check_part, shard
from ndgpa.distributed.placement import Placement
from ndgpa.distributed.tensors import like, local
from ndgpa.functional import as_rule
from ndgpa.problem import Affinity, Problem, Selection
from ndgpa.selection import Rule
from ndgpa.structures import Sampling, SpatialStructure
from ndgpa.structures.means import seen_means


def gpa(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b hk n_k d"],
    value: Float[Tensor, "b hk n_k dv"],
    structure: SpatialStructure,
    rule: Rule | int,
    *,
    mesh: DeviceMesh | None = None,
    placement: Placement | None = None,
    key_structure: SpatialStructure | None = None,
    scale: float | None = None,
    affinity: Affinity = "dot",
    causal: bool = False,
    key_mask: Bool[Tensor, "b n_k"] | None = None,
    query_mask: Bool[Tensor, "b n"] | None = None,
    read: Sampling | None = None,
    far: Far | Bundles | None = None,
    backend: BackendName | str | None = None,
) -> Float[Tensor, "b h n dv"]:
    """Grid Partitioned Attention over the ranks of a mesh: what `ndgpa.gpa` computes on one.

    Every rank calls it with its own sites, in the order of its part. The block means are gathered,
    each rank selects for its own cells, fetches exactly the foreign blocks that they selected, in
    one all-to-all while it attends to its own, and merges the two. Gradients return by the same
    way. Equal input gives equal bits.

    Args:
        query, key, value: The sites of this rank (`part.take(x)` takes them of the whole), or
            DTensors sharded along their sites, of which each rank holds its part.
        structure: This rank's part, from `shard`; or the whole, with `mesh`.
        rule: As for `ndgpa.gpa`. A rule that looks at keys (`Refine`, `Antidiagonal`) is
            refused; one that draws at random draws on each rank for itself.
        mesh, placement: As for `shard`, to have structures sharded that are whole; better keep the
            parts, which remember what was worked out for them.
        key_structure: The part or the space of the keys; None means that of the queries.
        key_mask, query_mask: Of the sites of this rank; all ranks give one or none does.
        read: As for `ndgpa.gpa`; what it reads for a block must be sites of the block.
        scale, affinity, causal, far, backend: As for `ndgpa.gpa`.

    Returns:
        The output of this rank's sites; a DTensor if `query` is one.

    Raises:
        ValueError, TypeError, NotImplementedError: An argument does not fit; the other ranks are
            told, and raise a RuntimeError.
        ValueError: The ranks make different calls; all of them raise it.
        RuntimeError: Another rank has died, or does not make this call within the timeout of the
            process group.
    """
    part, keys = _parts(structure, key_structure, mesh, placement)
    with telling_of_failure(_on_device(query), part.group_name):
        wrap = like(query, part)
        query, key, value = (
            local(name, x, own)
            for name, x, own in (("query", query, part), ("key", key, keys), ("value", value, keys))
        )
        rule = as_rule(rule)
        _check_same_ranks(part, keys)
        problem = Problem.of(
            query,
            key,
            part,
            key_structure=keys,
            scale=scale,
            affinity=affinity,
            causal=causal,
            key_mask=local("key_mask", key_mask, keys, 1),
            query_mask=local("query_mask", query_mask, part, 1),
            value=value,
        )
        check_read(read)
        check_backend(backend, far, query, value)
        sites = None
        if read is not None:
            sites = keys.to(query.device).stand_in.sites_read_by(read)
    call, sizes = _said(problem, value, rule, read, far), _sizes(problem, value)
    after = agree(call, sizes, _on_device(query), part.group_name)
    problem, value = _stood_in(problem, value)
    with without_autocast(query):
        selection = rule.select(_coarse(problem, rule, after))
    return wrap(_attend(problem, value, selection, read, sites, far, backend, after, part))


def _attend(
    problem: Problem,
    value: Tensor,
    selection: Selection,
    read: Sampling | None,
    sites: Tensor | None,  # that are read of each block, in the numbers of this rank
    far: Far | Bundles | None,
    backend: str | None,
    after: Tensor,
    part: Part,
) -> Tensor:
    """Phase 2 over all ranks."""
    query, key, value = cast_for_autocast(problem.query, problem.key, value)
    keys: Any = problem.key_structure
    table = None if read is None else read.sites(keys.whole)
    merge = FAR_BACKENDS["reference" if backend == "reference" else "torch"].merge
    alone = pick(backend, query, value)
    run = Apart(alone, merge, table, part.num_cells == 0, after)
    out, _ = attend_near_and_far(
        run,
        replace(problem, query=query, key=key),
        value,
        selection,
        lambda _: sites,
        far,
        backend,
        FarWays(
            partial(_means_of_all, read=table, after=after),
            partial(_far_of_all, read=table),
            alone,
        ),
    )
    return out[:, :, : part.num_sites]


def _coarse(problem: Problem, rule: Rule, after: Tensor) -> Problem:
    """What a rule may look at: the cells of this rank, and the means of the keys of all."""
    keys: Any = problem.key_structure
    known = replace(problem, key=problem.key[:, :, :0], key_structure=keys.whole)
    if rule.is_static:
        return known
    means, seen = seen_means(keys, problem.key, problem.key_mask)
    if problem.key_mask is None:
        (means,) = _of_all(keys, after, means)
        return replace(known, key_means=(means, keys.whole.block_sizes[None]))
    count = seen[:, None, :, None].expand(*means.shape[:3], 1)
    means, count = _of_all(keys, after, means, count)
    return replace(known, key_means=(means, count[:, 0, :, 0].long()))


def _means_of_all(
    problem: Problem,
    value: Tensor,
    key_sites: Tensor | None,
    *,
    read: Tensor | None,
    after: Tensor,
) -> BlockMeans:
    """As `BlockMeans.of`, for the blocks of all ranks.

    Args:
        key_sites, read: The sites that are read of each block, of this rank and of the whole.
    """
    keys: Any = problem.key_structure
    own = BlockMeans.of(problem, value, key_sites)
    key, value, seen = _of_all(keys, after, own.key, own.value, own.seen[..., None])
    latest = latest_of_blocks(keys.whole, read) if problem.causal else None
    return BlockMeans(key, value, seen[..., 0], latest, keys.whole.group)


def _far_of_all(
    bundles: Bundles,
    problem: Problem,
    selection: Selection,
    key_sites: Tensor | None,
    *,
    read: Tensor | None,
) -> FarCells:
    """As `FarCells`, for the blocks of all ranks, which the selection names."""
    keys: Any = problem.key_structure
    return FarCells(bundles, replace(problem, key_structure=keys.whole), selection, read)


def _of_all(keys: Part, after: Tensor, *xs: Tensor) -> list[Tensor]:
    """Gather what each rank has for its blocks, in one go."""
    counts = keys.layout.blocks_per_rank
    found = gather_blocks(
        torch.cat(xs, dim=-1), keys.index, counts, keys.rank, keys.group_name, after
    )
    return [*found.split([x.shape[-1] for x in xs], dim=-1)]


def _stood_in(problem: Problem, value: Tensor) -> tuple[Problem, Tensor]:
    """Let a rank without cells, or without keys, take the same steps as the others, with zeros."""
    part: Any = problem.structure
    keys: Any = problem.key_structure
    to_query, to_key = (
        partial(_padded, count=own.stand_in.num_sites - own.num_sites) for own in (part, keys)
    )
    problem = replace(
        problem,
        query=to_query(problem.query, -2),
        key=to_key(problem.key, -2),
        structure=part.stand_in,
        key_structure=keys.stand_in,
        key_mask=to_key(problem.key_mask, -1),
        query_mask=to_query(problem.query_mask, -1),
    )
    return problem, to_key(value, -2)


def _padded(x: Any, axis: int, *, count: int) -> Any:
    """Add so many zeros along an axis counted from the end."""
    return x if x is None or not count else F.pad(x, (*[0, 0] * (-axis - 1), 0, count))


def _parts(
    structure: Any, key_structure: Any, mesh: DeviceMesh | None, placement: Placement | None
) -> tuple[Part, Part]:
    """The parts of queries and keys, sharded here if they are whole."""
    if mesh is not None:
        is_one = key_structure is None or key_structure is structure
        structure = shard(structure, mesh, placement)
        key_structure = structure if is_one else shard(key_structure, mesh, placement)
    elif placement is not None:
        raise ValueError("placement needs mesh; a part has its placement from shard")
    keys = structure if key_structure is None else key_structure
    check_part("structure", structure)
    check_part("key_structure", keys)
    return structure, keys


def _check_same_ranks(part: Part, keys: Part) -> None:
    if part.group_name != keys.group_name:
        raise ValueError(f"structure is sharded over {part.mesh}, key_structure over {keys.mesh}")


def _said(
    problem: Problem, value: Tensor, rule: Rule, read: Sampling | None, far: Far | Bundles | None
) -> str:
    """Tell of a call what must be the same on all ranks, one line for each of `SUBJECTS`."""
    part: Any = problem.structure
    keys: Any = problem.key_structure
    lines = (
        part.fingerprint,
        keys.fingerprint,
        told(rule),
        problem.query.dtype,
        problem.scale,
        problem.affinity,
        problem.causal,
        (problem.key_mask is None, problem.query_mask is None),
        told(read),
        far,
        torch.is_grad_enabled() and (problem.key.requires_grad, value.requires_grad),
    )
    return "\n".join([str(line) for line in lines])


def _sizes(problem: Problem, value: Tensor) -> list[int]:
    """The sizes that must be the same on all ranks, as in `SIZES`."""
    (batch, heads, _, features), key_heads = problem.query.shape, problem.key.shape[1]
    return [batch, heads, features, key_heads, value.shape[3]]


def _on_device(x: Any) -> Tensor:
    """An empty tensor where the ranks' tensors are."""
    return torch.empty(0, device=x.device if isinstance(x, Tensor) else "cpu")

"""Phase 2 of a call: what is selected, the far field and special tokens, in one softmax."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from ndgpa._ops import wide, without_autocast
from ndgpa.attention import (
    Backend,
    block_order,
    pick,
    pick_far,
    pick_tokens,
    reading_far_keys,
    skips_hidden_keys,
)
from ndgpa.attention.block_order import Fields
from ndgpa.attention.chunked import chunked
from ndgpa.attention.far_beside import read_alone
from ndgpa.attention.far_cells import FarCells
from ndgpa.attention.far_field import BlockMeans, Bundles, Far, FarField, as_bundles
from ndgpa.attention.scores import Scores, needs_pairs, offsets_of
from ndgpa.attention.tokens import Tokens
from ndgpa.problem import Problem, Selection, dot_form, hide_keys
from ndgpa.structures import Sampling, SpatialStructure


def sites_read_by(read: Sampling | None) -> Callable[[SpatialStructure], Tensor | None]:
    """Return what lists the sites that are read of each block; None where they are its own."""
    return lambda keys: None if read is None else read.sites(keys)


@dataclass(frozen=True)
class FarWays:
    """How a far field is made: where all keys are here, unless something else is said.

    Args:
        means_of: Takes the means of the blocks, as `BlockMeans.of` does.
        cells_of: Makes the far field of bundles, as `FarCells` does.
        alone: The backend that reads far keys, where that of the call cannot read them beside its
            blocks.
    """

    means_of: Callable[..., BlockMeans] = BlockMeans.of
    cells_of: Callable[..., FarCells] = FarCells
    alone: Backend | None = None


def attend_near_and_far(
    run: Backend,
    problem: Problem,
    value: Tensor,  # (b, hk, n_k, dv)
    selection: Selection,
    sites_of: Callable[[SpatialStructure], Tensor | None],
    far: Far | Bundles | None,
    backend: str | None,
    ways: FarWays = FarWays(),
    scores: Scores | None = None,
) -> Fields:
    """Attend with a backend to what is selected, and to the far field; return log-sum-exps too.

    Args:
        sites_of: Lists the sites that are read of each block of the keys, as `sites_read_by`.
        backend: The name of the backend, by which that of the far field is picked.
        ways: How the far field is made.
        scores: What happens to scores; checked.
    """
    with without_autocast(problem.query):
        problem, value, bias, scale = _hidden(run, problem, value, scores)
        given = _of_pairs(scores, problem.without_tokens)
        own, key_sites = problem.structure, sites_of(problem.key_structure.inner)
        lay_out = run is chunked and key_sites is None and far is None and "offsets" not in given
        lay_out = lay_out and block_order.pays(problem)
        if lay_out:
            tokens, selection = block_order.in_block_order(problem, value, bias, selection)
        else:
            tokens = Tokens.of(problem, value, bias)
        sites, site_value, site_bias = tokens.sites
        reads, complete = _reading_far(
            run, far, sites, site_value, selection, key_sites, backend, ways, scale
        )
        near = reads(
            sites.query,
            sites.key,
            site_value,
            selection,
            sites.structure,
            sites.key_structure,
            scale=scale,
            key_bias=site_bias,
            key_sites=key_sites,
            causal=problem.causal,
            **given,
        )
        out, lse = tokens.complete(complete(near), scale, pick_tokens(backend, run))
        if lay_out:
            out, lse = block_order.in_own_order(own, out, lse)
        if problem.affinity == "euclidean":
            lse = lse - problem.scale * problem.query.to(lse.dtype).square().sum(dim=-1)
    return out, lse


def _hidden(
    run: Backend, problem: Problem, value: Tensor, scores: Scores | None
) -> tuple[Problem, Tensor, Tensor | None, float]:
    """Hide what the key mask hides; return the bias of the keys and the scale of the products."""
    key, mask = problem.key, problem.key_mask
    if mask is not None and not (skips_hidden_keys(run) and problem.affinity == "dot"):
        unseen = ~mask[:, None, :, None]
        key, value = key.masked_fill(unseen, 0), value.masked_fill(unseen, 0)
    bias, scale = dot_form(key, problem.affinity, problem.scale)
    if scores is not None and scores.key_bias is not None:
        bias = scores.key_bias.to(wide(key)).expand(key.shape[:3])
    return replace(problem, key=key), value, hide_keys(bias, key, mask), scale


def _reading_far(
    run: Backend,
    far: Far | Bundles | None,
    sites: Problem,
    value: Tensor,
    selection: Selection,
    key_sites: Tensor | None,
    backend: str | None,
    ways: FarWays,
    scale: float,
) -> tuple[Callable[..., Fields], Callable[[Fields], Fields]]:
    """Return the backend that reads what it can of the far field, and what adds the rest."""
    if far is None:
        return run, lambda near: near
    site, bundles = pick_far("site", backend, sites.query, value), as_bundles(far)
    if bundles is None:
        field = FarField.of(sites, ways.means_of(sites, value, key_sites))
        return run, lambda near: field.merge(near, selection, site)
    cells = ways.cells_of(bundles, sites, selection, key_sites)
    alone = ways.alone
    if alone is None:
        return partial(reading_far_keys(run), far=cells), lambda near: near
    means = ways.means_of(sites, value, key_sites)

    def add(near: Fields) -> Fields:
        options = sites.structure, cells, means, scale, sites.causal
        return site.merge(*near, *read_alone(alone, sites.query, sites.key, *options), sites.causal)

    return run, add


def _of_pairs(scores: Scores | None, sites: Problem) -> dict[str, Any]:
    """What a backend is told of the scores of pairs; nothing where there is nothing to tell."""
    given: dict[str, Any] = {}
    if scores is not None and scores.offset_bias is not None:
        places = sites.structure, sites.key_structure
        given["offsets"] = offsets_of(scores.offset_bias, *places, sites.query)
    if scores is not None and scores.softcap is not None:
        given["softcap"] = scores.softcap
    return given


def check_backend(
    backend: str | None, far: Far | Bundles | None, query: Tensor, value: Tensor
) -> None:
    if far is not None:
        pick_far(far, backend, query, value)
    pick(backend, query, value)


def pick_for(backend: str | None, query: Tensor, value: Tensor, scores: Scores | None) -> Backend:
    """The backend of a call; kernels do nothing to the scores of pairs."""
    return pick("torch" if backend is None and needs_pairs(scores) else backend, query, value)


def check_read(read: Any) -> None:
    if read is not None and not isinstance(read, Sampling):
        raise TypeError(
            f"read must be a sampling, such as ndgpa.structures.Strided(2); got {read!r}"
        )

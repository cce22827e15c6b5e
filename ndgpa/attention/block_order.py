"""One copy of the sites for all that reads them: cell by cell the queries, block by block the keys.

The near field lays sites out like this for itself. Where special tokens read them too, the backward
would keep the sites in their own order beside that; so they are laid out beforehand, tokens of the
keys in blocks of their own which no cell selects, and both read, and keep, the same tensors.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa.attention.tokens import Tokens, time_of_tokens
from ndgpa.problem import Problem, Selection
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.line import Line
from ndgpa.structures.tokens import between_tokens, split_tokens, with_tokens, without_tokens

Fields = tuple[Float[Tensor, "b h n dv"], Float[Tensor, "b h n"]]  # output and log-sum-exp


def pays(problem: Problem) -> bool:
    """Whether there are tokens, and no place of a block is empty."""
    own, keys = problem.structure, problem.key_structure
    has_tokens = own.inner is not own or keys.inner is not keys
    return has_tokens and own.inner.is_even and keys.inner.is_even


def in_block_order(
    problem: Problem,
    value: Float[Tensor, "b hk n_k dv"],
    key_bias: Float[Tensor, "b hk n_k"] | None,
    selection: Selection,
) -> tuple[Tokens, Selection]:
    """Take the same call apart, of sites in another order; the selection names the same blocks."""
    own, keys = problem.structure, problem.key_structure
    size = keys.inner.sites_per_block
    before, after = -keys.prefix % size, -keys.suffix % size
    every = slice(before, before + keys.num_sites)
    laid_key, laid_value = (_laid_out(keys, x, before, after) for x in (problem.key, value))
    laid_bias = key_bias
    if key_bias is not None:
        laid_bias = _laid_out(keys, key_bias[..., None], before, after)[..., 0]
        key_bias = laid_bias[:, :, every]
    sites, token_query = split_tokens(own, problem.query)
    ordered = replace(
        problem,
        query=own.inner.partition(sites).flatten(2, 3),
        key=laid_key[:, :, every],
        structure=_in_order(own, own.inner.cell_sites),
        key_structure=_in_order(keys, keys.inner.blocks),
        key_mask=None,  # which the bias says
        query_mask=None,
    )
    time = ordered.key_structure.time
    time = None if time is None else F.pad(time, (before, after))
    alone = replace(
        ordered,
        key=laid_key,
        structure=ordered.structure.inner,
        key_structure=Line(laid_key.shape[2], size, time, laid_key.device),
    )
    value = laid_value[:, :, every]
    tokens = Tokens(
        ordered,
        value,
        key_bias,
        (alone, laid_value, laid_bias),
        token_query,
        (
            split_tokens(keys, ordered.key)[1],
            split_tokens(keys, value)[1],
            None if key_bias is None else split_tokens(keys, key_bias)[1],
        ),
    )
    return tokens, _later(selection, (before + keys.prefix) // size)


def in_own_order(structure: SpatialStructure, out: Tensor, lse: Tensor) -> Fields:
    """Put what was computed in the order of blocks into that of the structure."""
    out, lse = (_by_site(structure, x) for x in (out, lse[..., None]))
    return out, lse[..., 0]


def _laid_out(keys: SpatialStructure, x: Tensor, before: int, after: int) -> Tensor:
    """Lay keys out block by block, their tokens in whole blocks before and after."""
    sites = keys.inner.by_block(without_tokens(keys, x)).flatten(2, 3)
    if keys.inner is keys:
        return sites
    end = keys.num_sites - keys.suffix
    first, last = (x.new_zeros(*x.shape[:2], pad, x.shape[3]) for pad in (before, after))
    return torch.cat([first, x[:, :, : keys.prefix], sites, x[:, :, end:], last], dim=2)


def _later(selection: Selection, shift: int) -> Selection:
    """Name blocks that come later by so many; an empty slot stays empty."""
    if shift == 0:
        return selection
    blocks = selection.blocks
    return replace(selection, blocks=(blocks + shift).where(blocks >= 0, -1).to(blocks.dtype))


def _by_site(structure: SpatialStructure, x: Tensor) -> Tensor:
    sites, inner = without_tokens(structure, x), structure.inner
    return between_tokens(structure, x, inner.compose(sites.unflatten(2, (inner.num_cells, -1))))


def _in_order(structure: SpatialStructure, sites: Int[Tensor, "rows R"]) -> SpatialStructure:
    """Make the space whose runs of sites are these rows, with the same tokens beside it."""
    inner = structure.inner
    time = None if inner.time is None else inner.time[sites.flatten()]
    line = Line(inner.num_sites, sites.shape[1], time, sites.device)
    if structure is inner:
        return line
    return with_tokens(line, structure.prefix, structure.suffix, time=time_of_tokens(structure))

"""The coarse level: what stands for each block, its mean or a site, for rules that work there."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import BFloat16, Bool, Float
from torch import Tensor

from ndgpa.problem import Problem, dot_form
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.means import means_in_two, seen_counts, seen_means
from ndgpa.structures.middles import seen_middles

StandIn = Literal["mean", "site"]
STAND_INS = get_args(StandIn)


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


def coarse_level(problem: Problem, estimate: StandIn = "mean") -> Coarse:
    """Take the means over the blocks of queries and keys, or the middle site of each block.

    If causal, what stands for a block of queries is of its sites of the cell's earliest time.
    """
    query, weight, key, seen = _means(problem) if estimate == "mean" else _middles(problem)
    log_size = None
    if problem.key_mask is not None or not problem.key_structure.is_even:
        log_size = seen.log()
    bias, scale = dot_form(key, problem.affinity, problem.scale)
    return Coarse(query, key, bias, seen, log_size, weight, scale)


def takes_two_parts(problem: Problem) -> bool:
    """Whether `coarse_in_two` serves: features of 16 bit, and nothing that needs whole means."""
    narrow = all(x.dtype in (torch.float16, torch.bfloat16) for x in (problem.query, problem.key))
    return narrow and problem.affinity == "dot" and problem.key_means is None


def coarse_in_two(
    problem: Problem,
) -> tuple[Coarse, BFloat16[Tensor, "b h C P 2 d"], Float[Tensor, "#b C P"]]:
    """Take the means in two parts of bfloat16, those of queries cell by cell, in one pass.

    Features of 16 bit are exact to 2^-9 or 2^-12, these means and their products to 2^-17. They
    carry no gradient.
    """
    structure, keys = problem.structure, problem.key_structure
    places = structure.cell_sites.unflatten(1, (structure.blocks_per_cell, -1))
    query = means_in_two(
        problem.query.detach(), voters(problem), places.flatten(0, 1), structure.is_even
    ).unflatten(2, places.shape[:2])
    key = means_in_two(problem.key.detach(), problem.key_mask, keys.blocks, keys.is_even)
    weight = seen_counts(structure, problem.query, voters(problem))
    seen = seen_counts(keys, problem.key, problem.key_mask)
    log_size = seen.log() if problem.key_mask is not None or not keys.is_even else None
    coarse = Coarse(query, key, None, seen, log_size, weight, problem.scale)
    return coarse, query, weight_by_cell(coarse, structure)


def _means(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mean of each block of queries and its voters, that of each key block and its seen sites.

    Known means of keys are taken as they are.
    """
    query, weight = seen_means(problem.structure, problem.query, voters(problem))
    if problem.key_means is None:
        return query, weight, *seen_means(problem.key_structure, problem.key, problem.key_mask)
    means, seen = problem.key_means
    return query, weight, means, seen.to(means.dtype)


def _middles(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same with the middle one of those sites in place of their mean."""
    check_has_keys('estimate="site"', problem)
    query, weight = seen_middles(problem.structure, problem.query, voters(problem))
    key, seen = seen_middles(problem.key_structure, problem.key, problem.key_mask)
    return query[..., 0, :], weight[..., 0], key[..., 0, :], seen[..., 0]


def voters(problem: Problem) -> Bool[Tensor, "b n"] | None:
    """The queries that a selection is made from; None for all."""
    if not problem.causal:
        return problem.query_mask
    first = problem.structure.first_in_cell.expand(problem.query.shape[0], -1)
    return first if problem.query_mask is None else first & problem.query_mask


def by_cell(
    coarse: Coarse, structure: SpatialStructure
) -> tuple[Float[Tensor, "b h C P d"], Float[Tensor, "#b C P"]]:
    """The coarse queries of each cell and what they weigh; zeros in the empty places."""
    cells, empty = structure.cells.clamp(min=0), structure.cells < 0
    query = coarse.query[:, :, cells].masked_fill(empty[..., None], 0)
    return query, weight_by_cell(coarse, structure).to(query.dtype)


def weight_by_cell(coarse: Coarse, structure: SpatialStructure) -> Float[Tensor, "#b C P"]:
    """What the coarse queries of each cell weigh; 0 in the empty places."""
    weight = coarse.weight[:, structure.cells.clamp(min=0)]
    return weight.masked_fill(structure.cells < 0, 0)


def check_has_keys(who: str, problem: Problem) -> None:
    """Refuse a problem of which the means of the keys are known, but not the keys."""
    if problem.key.shape[2] != problem.key_structure.num_sites:
        raise NotImplementedError(
            f"{who} needs the keys themselves, but only the means of the blocks are at hand: keys "
            "are on other ranks"
        )

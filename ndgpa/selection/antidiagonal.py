"""Relevance by strided sums along antidiagonals, and a share of it."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ndgpa import arguments
from ndgpa.problem import Problem, Selection
from ndgpa.selection.base import Rule
from ndgpa.selection.coarse import check_has_keys
from ndgpa.selection.ranking import ranked
from ndgpa.selection.slots import ascending

_TILE = {"cpu": 1 << 20, "cuda": 1 << 26}


@dataclass(frozen=True)
class Antidiagonal(Rule):
    """Blocks until a share p of the relevance, estimated from every stride-th antidiagonal.

    Runs of `stride` sites of a block are taken together: query s of a run meets key stride - 1 - s
    of another, so each logit is a sum along an antidiagonal, over the stride. The relevance of a
    key block is the softmax mass of its runs, summed over the runs of the cell's queries.

    Source: XAttention (Xu et al. 2025).

    Args:
        stride: Sites of a run; divides the sites of a block.
        p: The share of relevance that is read, in (0, 1].

    Raises:
        ValueError: A number out of range, or a structure of blocks that are not multiples of it.
        NotImplementedError: A causal call; the estimate looks ahead by up to a stride.
    """

    stride: int
    p: float

    def __post_init__(self) -> None:
        arguments.positive_count("stride", self.stride)
        arguments.share_of("p", self.p)

    def select(self, problem: Problem) -> Selection:
        _check_problem(problem, self.stride)
        structure, key_structure = problem.structure, problem.key_structure
        wide = torch.promote_types(problem.query.dtype, torch.float32)
        query = self._runs(structure.by_block(problem.query.detach()).flip(3)).to(wide)
        key = self._runs(key_structure.by_block(problem.key.detach())).to(wide)
        heads, blocks = query.shape[1], key.shape[2]
        key = key.repeat_interleave(heads // key.shape[1], dim=1).flatten(2, 3)
        query = query[:, :, structure.cells].flatten(3, 4)
        scale = problem.scale / self.stride
        runs = query.shape[0] * heads * query.shape[3] * key.shape[2]
        step = max(1, _TILE["cuda" if query.is_cuda else "cpu"] // max(1, runs))
        parts = []
        for begin in range(0, structure.num_cells, step):
            cells = slice(begin, begin + step)
            logits = torch.einsum("bhcrf,bhkf->bhcrk", query[:, :, cells], key)
            mass = logits.mul_(scale).softmax(dim=-1)
            relevance = mass.unflatten(-1, (blocks, -1)).sum(dim=(3, 5))
            parts.append(ranked(relevance, blocks, p=self.p))
        return Selection(ascending(torch.cat(parts, dim=2), blocks).int())

    def _runs(self, x: Float[Tensor, "b h B R d"]) -> Float[Tensor, "b h B runs sd"]:
        return rearrange(x, "b h B (r s) d -> b h B r (s d)", s=self.stride)


def _check_problem(problem: Problem, stride: int) -> None:
    if problem.causal:
        raise NotImplementedError(
            "Antidiagonal does not support causal=True: its estimate looks ahead"
        )
    if problem.affinity != "dot" or problem.key_mask is not None:
        raise ValueError("Antidiagonal needs affinity='dot' and no key_mask")
    if problem.query_mask is not None:
        raise ValueError("Antidiagonal takes no query_mask")
    check_has_keys("Antidiagonal", problem)
    for name in ("structure", "key_structure"):
        space = getattr(problem, name)
        if not space.is_even or space.sites_per_block % stride or space.group is not None:
            raise ValueError(
                f"Antidiagonal needs full blocks of a multiple of {stride} sites and no groups; "
                f"{name} is {space!r}"
            )

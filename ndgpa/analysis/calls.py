"""The calls of a model's attention, watched as they happen."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ndgpa.operators import Full
from ndgpa.operators.base import Attends
from ndgpa.problem import Problem
from ndgpa.structures import Clusters, SpatialStructure

See = Callable[[str, Problem], None]


@dataclass(frozen=True)
class Watched:
    """Show a call to `see`, then attend.

    Args:
        dense: Whether all keys are read, instead of what `operator` reads.
    """

    name: str
    operator: Any
    see: See
    dense: bool

    def __call__(
        self,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b hk n_k d"],
        value: Float[Tensor, "b hk n_k dv"],
        structure: SpatialStructure,
        key_structure: SpatialStructure | None = None,
        **given: Any,
    ) -> Float[Tensor, "b h n dv"]:
        names = ("scale", "affinity", "causal")
        options = {x: getattr(self.operator, x) for x in names if hasattr(self.operator, x)}
        options |= {x: given[x] for x in names if x in given}
        masks = {x: given[x] for x in ("key_mask", "query_mask") if x in given}
        _check_no_scores(given.get("scores"))
        problem = Problem.of(query, key, structure, key_structure=key_structure, **options, **masks)
        self.see(self.name, problem)
        if self.dense:
            return Full(**options)(query, key, value, structure, key_structure, **masks)
        return self.operator(query, key, value, structure, key_structure, **given)


@torch.no_grad()
def watch(model: nn.Module, inputs: Any, see: See, dense: bool) -> list[str]:
    """Call a model and show the first call of each module that attends.

    Args:
        inputs: What to call it with: a mapping is passed by name, a sequence in order, anything
            else as the only argument.

    Returns:
        The names of these modules, in their order in the model.

    Raises:
        ValueError: No module of the model attends through an operator.
    """
    owners = list(_owners(model))
    if not owners:
        raise ValueError(
            f"no module of {type(model).__name__} attends through ndgpa: use SpatialAttention, or "
            "turn the model's attention into GPA with ndgpa.integrations first"
        )
    seen: set[str] = set()

    def see_once(name: str, problem: Problem) -> None:
        if name not in seen:
            seen.add(name)
            see(name, problem)

    with _watching(owners, see_once, dense):
        if isinstance(inputs, Mapping):
            model(**inputs)
        elif isinstance(inputs, Sequence):
            model(*inputs)
        else:
            model(inputs)
    return [name for name, _ in owners]


def _owners(model: nn.Module) -> Iterator[tuple[str, Attends]]:
    for name, module in model.named_modules():
        for owner in (module, *vars(module).values()):
            if isinstance(owner, Attends):
                yield name or type(module).__name__, owner


@contextmanager
def _watching(owners: list[tuple[str, Attends]], see: See, dense: bool) -> Iterator[None]:
    before = [owner.operator for _, owner in owners]
    try:
        for name, owner in owners:
            owner.operator = Watched(name, owner.operator, see, dense)
        yield
    finally:
        for (_, owner), operator in zip(owners, before):
            owner.operator = operator


def _check_no_scores(scores: Any) -> None:
    if scores is not None:
        raise NotImplementedError("suggest does not measure attention whose scores are changed")


def of_cells(problem: Problem, cells: list[int]) -> Problem:
    """Ask the same for some cells alone: their queries, and all keys."""
    structure = problem.structure
    blocks = [row[row >= 0] for row in structure.cells[cells]]
    sites = [row[row >= 0] for row in structure.blocks[torch.cat(blocks)]]
    site = torch.cat(sites)
    counts = torch.tensor([len(x) for x in sites]), torch.tensor([len(x) for x in blocks])
    block_of_site, cell_of_block = (
        torch.arange(len(x)).repeat_interleave(x).to(site.device) for x in counts
    )
    time = None if structure.time is None else structure.time[site]
    group = None if structure.group is None else structure.group[torch.cat(blocks)]
    mask = problem.query_mask
    return replace(
        problem,
        query=problem.query[:, :, site],
        structure=Clusters(block_of_site, cell_of_block, time, group),
        query_mask=None if mask is None else mask[:, site],
    )

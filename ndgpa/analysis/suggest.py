"""Settings for GPA, from what the attention of a model does on a batch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ndgpa import arguments
from ndgpa.analysis._rows import logit_rows
from ndgpa.analysis.calls import of_cells, watch
from ndgpa.analysis.cost import full_entries, gpa_entries
from ndgpa.analysis.suggestion import Suggestion, Suggestions
from ndgpa.attention.far_field import Far
from ndgpa.functional import attend
from ndgpa.problem import Problem, Selection
from ndgpa.selection import TopK
from ndgpa.structures import Grid, SpatialStructure
from ndgpa.structures.tokens import without_tokens

PerAxis = int | tuple[int, ...]

# Logits held at a time.
_CHUNK = 1 << 22
# Blocks that are tried on a grid of one, two or three axes.
_BLOCKS: dict[int, tuple[PerAxis, ...]] = {
    1: (8, 16, 32, 64),
    2: (2, 4, 8),
    3: ((1, 4, 4), (2, 4, 4), (1, 8, 8)),
}


@torch.no_grad()
def suggest(
    model: nn.Module | tuple[Tensor, Tensor, SpatialStructure],
    inputs: Any = None,
    *,
    coverage: float = 0.9,
    memory: int | None = None,
    blocks: Iterable[PerAxis] | None = None,
    cells: Iterable[PerAxis] = (1, 2),
    dense: bool = True,
    samples: int = 256,
    seed: int = 0,
    verbose: bool = True,
) -> Suggestions:
    """Suggest block, cell, k and far field for each layer, from its attention on a batch.

    The model is called once. For each layer and each way to cut its space, the share of full
    attention that `TopK(k)` keeps is measured for rising k, on the cells of some queries. Of the
    settings that keep `coverage`, the one with the fewest affinities is taken; if none does within
    `memory`, the one that keeps most.

    Args:
        model: A model that attends through ndgpa (`ndgpa.nn.SpatialAttention`, `GPAConv`, what
            `ndgpa.integrations` has enabled), or a query, a key and their structure.
        inputs: What to call the model with: a mapping is passed by name, a sequence in order,
            anything else as the only argument.
        coverage: The share of full attention to keep, of each layer on the mean over its queries.
        memory: Bytes that the affinities of one layer may take, as `gpa_entries` counts them, in
            float32 and for all heads and samples. None sets no limit.
        blocks, cells: What to try on grids; one int serves all axes, and is cut to a shorter axis.
            None as `blocks` means a few common ones. The present ones are always tried; other
            spaces keep theirs.
        dense: Whether the model attends densely while it is called, as it did when it was trained;
            False leaves its own operators.
        samples: About how many queries to look at in each layer.
        seed: Seed of the draw.
        verbose: Whether to print the table.

    Returns:
        A suggestion for each layer, in the order of its modules; `plot` draws them.

    Raises:
        ValueError, TypeError: An argument is out of range, or nothing attends through ndgpa.
    """
    arguments.share_of("coverage", coverage)
    arguments.positive_count("samples", samples)
    if memory is not None:
        arguments.positive_count("memory", memory)
    tried = None if blocks is None else tuple(blocks)
    search = Search(coverage, memory, tried, tuple(cells), samples, seed)
    found: list[Suggestion] = []

    def see(name: str, problem: Problem) -> None:
        found.append(search.best(name, problem))

    if isinstance(model, tuple):
        query, key, structure = model
        see("", Problem.of(query, key, structure))
    elif isinstance(model, nn.Module):
        order = watch(model, inputs, see, dense)
        found.sort(key=lambda layer: order.index(layer.name))
    else:
        raise TypeError(
            "suggest takes a model, or a query, a key and their structure; got "
            f"{type(model).__name__}"
        )
    suggestions = Suggestions(tuple(found))
    if verbose:
        print(suggestions)
    return suggestions


@dataclass(frozen=True)
class Search:
    """The best of several ways to cut a space; arguments as for `suggest`."""

    coverage: float
    memory: int | None
    blocks: tuple[PerAxis, ...] | None
    cells: tuple[PerAxis, ...]
    samples: int
    seed: int

    def best(self, name: str, problem: Problem) -> Suggestion:
        options = [self._measure(name, problem, structure) for structure in self._cuts(problem)]
        enough = [x for x in options if x.coverage >= self.coverage and self._fits(x, problem)]
        if enough:
            return min(enough, key=lambda x: x.entries)
        fitting = [x for x in options if self._fits(x, problem)]
        if fitting:
            return max(fitting, key=lambda x: x.coverage)
        return min(options, key=lambda x: x.entries)

    def _fits(self, option: Suggestion, problem: Problem) -> bool:
        return self.memory is None or option.entries * _dense_bytes(problem) <= self.memory

    def _cuts(self, problem: Problem) -> Iterator[SpatialStructure]:
        """The structures to try, the present one first."""
        own = problem.structure.inner
        yield own
        if not isinstance(own, Grid) or problem.structure is not problem.key_structure:
            return
        seen = {(own.block_shape, own.cell_shape)}
        for block in _BLOCKS.get(len(own.shape), (2, 4)) if self.blocks is None else self.blocks:
            for cell in self.cells:
                grid = _cut(own, block, cell)
                if (grid.block_shape, grid.cell_shape) not in seen and grid.num_blocks > 1:
                    seen.add((grid.block_shape, grid.cell_shape))
                    yield grid

    def _measure(self, name: str, problem: Problem, structure: SpatialStructure) -> Suggestion:
        """Find the least k that keeps enough, or the largest that fits."""
        sites = problem.without_tokens
        if problem.structure is problem.key_structure:
            sites = replace(sites, structure=structure, key_structure=structure)
        keys = sites.key_structure
        few = of_cells(sites, self._draw(structure))
        mass = Mass.of(problem, few, self.samples, self.seed)
        dense = full_entries(structure.num_sites, keys.num_sites)
        ladder = list(_rising(keys.num_blocks))
        shares = [gpa_entries(structure, k, keys).total / dense for k in ladder]
        kept = [mass.kept(TopK(k).select(few)) for k in ladder]
        fits = [self.memory is None or x * _dense_bytes(problem) <= self.memory for x in shares]
        at = [place for place in range(len(ladder)) if fits[place]] or [0]
        enough = [place for place in at if kept[place] >= self.coverage]
        pick = enough[0] if enough else at[-1]
        with_far = mass.with_far(TopK(ladder[pick]).select(few))
        left = 1 - kept[pick]
        far: Far | None = "site" if left > 0.01 and with_far - kept[pick] > left / 2 else None
        return Suggestion(
            name,
            structure.shape if isinstance(structure, Grid) else (structure.num_sites,),
            *_shapes(structure),
            ladder[pick],
            far,
            kept[pick],
            with_far,
            shares[pick],
            tuple(zip(ladder, kept)),
        )

    def _draw(self, structure: SpatialStructure) -> list[int]:
        """Draw the cells to look at."""
        per_cell = structure.blocks_per_cell * structure.sites_per_block
        generator = torch.Generator().manual_seed(self.seed)
        cells = torch.randperm(structure.num_cells, generator=generator)
        return cells[: max(2, self.samples // per_cell)].tolist()


@dataclass(frozen=True)
class Mass:
    """Where the full attention of a few queries lies.

    Args:
        few: The problem of their cells.
        sites: Which sites of `few` they are.
        of_blocks: The share of each key block.
        of_tokens: The share of special tokens, which are always read.
        lse: The log-sum-exp of all logits.
        counts: Whether a query takes part: it sees something, and is not padding.
    """

    few: Problem
    sites: Int[Tensor, " s"]
    of_blocks: Float[Tensor, "b h s B"]
    of_tokens: Float[Tensor, "b h s"]
    lse: Float[Tensor, "b h s"]
    counts: Bool[Tensor, "b h s"]

    @classmethod
    def of(cls, problem: Problem, few: Problem, samples: int, seed: int) -> "Mass":
        """Measure; `problem` has the special tokens too."""
        everything = replace(
            few, key=problem.key, key_structure=problem.key_structure, key_mask=problem.key_mask
        )
        generator = torch.Generator().manual_seed(seed)
        sites = torch.randperm(few.structure.num_sites, generator=generator)[:samples]
        sites = sites.to(few.query.device)
        at_once = max(1, _CHUNK // (few.query.shape[:2].numel() * problem.key.shape[2]))
        parts = [_shares(everything, chunk, few.key_structure) for chunk in sites.split(at_once)]
        of_blocks, of_tokens, lse = (torch.cat(part, dim=2) for part in zip(*parts))
        counts = lse > -torch.inf
        if few.query_mask is not None:
            counts = counts & few.query_mask[:, None, sites]
        return cls(few, sites, of_blocks, of_tokens, lse, counts)

    def kept(self, selection: Selection) -> float:
        """The share of full attention on what is read, the mean over the queries."""
        return self._mean(self._read(selection))

    def _read(self, selection: Selection) -> Float[Tensor, "b h s"]:
        ids = selection.blocks[:, :, self.few.structure.cell_of_site[self.sites]].long()
        ids = ids.repeat_interleave(self.few.query.shape[1] // ids.shape[1], dim=1)
        read = self.of_blocks.gather(-1, ids.clamp(min=0)).masked_fill(ids < 0, 0)
        return read.sum(dim=-1) + self.of_tokens

    def with_far(self, selection: Selection) -> float:
        """The same where the other blocks count as far as their means get their share right."""
        few = self.few
        _, lse = attend(
            few.query,
            few.key,
            few.key[..., :1],
            selection,
            few.structure,
            key_structure=few.key_structure,
            scale=few.scale,
            affinity=few.affinity,
            causal=few.causal,
            key_mask=few.key_mask,
            query_mask=few.query_mask,
            far="site",
            return_lse=True,
        )
        if few.affinity == "euclidean":  # what logit_rows leaves out
            lse = lse + few.scale * few.query.to(lse.dtype).square().sum(dim=-1)
        read = self._read(selection)
        left = 1 - read
        by_means = (lse[:, :, self.sites] - self.lse).exp() + self.of_tokens - read
        return self._mean(read + (left - (by_means - left).abs()).clamp(min=0))

    def _mean(self, share: Float[Tensor, "b h s"]) -> float:
        return float(share[self.counts].mean()) if self.counts.any() else 1.0


def _shares(
    problem: Problem, sites: Int[Tensor, " s"], keys: SpatialStructure
) -> tuple[Float[Tensor, "b h s B"], Float[Tensor, "b h s"], Float[Tensor, "b h s"]]:
    """The shares of the blocks of `keys` and of tokens, and the log-sum-exp, for some sites."""
    rows = logit_rows(problem, sites)
    share = without_tokens(problem.key_structure, rows.softmax(dim=-1), dim=3)
    blocks = share.new_zeros(*share.shape[:3], keys.num_blocks)
    blocks = blocks.index_add(-1, keys.block_of_site, share)
    return blocks, 1 - share.sum(dim=-1), rows.logsumexp(dim=-1)


def _rising(blocks: int) -> Iterator[int]:
    """1, 2, 3, 4, 6, 8, 12, ... and all blocks."""
    k = 2
    yield 1
    while k < blocks:
        yield k
        if k * 3 // 2 < blocks:
            yield k * 3 // 2
        k *= 2
    if blocks > 1:
        yield blocks


def _dense_bytes(problem: Problem) -> int:
    heads = problem.query.shape[:2].numel()
    return 4 * heads * full_entries(problem.query.shape[2], problem.key.shape[2])


def _shapes(structure: SpatialStructure) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if isinstance(structure, Grid):
        return structure.block_shape, structure.cell_shape
    return (structure.sites_per_block,), (structure.blocks_per_cell,)


def _cut(own: Grid, block: PerAxis, cell: PerAxis) -> Grid:
    """Cut the same grid in another way, no factor longer than its axis."""
    block = _no_longer("blocks", block, own.shape)
    blocks = tuple(-(-size // b) for size, b in zip(own.shape, block))
    cut = Grid(own.shape, block, _no_longer("cells", cell, blocks), own.time_axis)
    return cut.to(own.device)


def _no_longer(name: str, factor: PerAxis, shape: tuple[int, ...]) -> tuple[int, ...]:
    factors = arguments.ints(name, factor)
    factors = factors * len(shape) if isinstance(factor, int) else factors
    if len(factors) != len(shape):
        raise ValueError(f"{name} has {factor}, but the grid has {len(shape)} axes")
    return tuple(map(min, factors, shape))

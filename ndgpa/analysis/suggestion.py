"""What `suggest` proposes: settings for each layer, a table and a picture of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ndgpa import arguments
from ndgpa.attention.far_field import Far
from ndgpa.operators import GPA
from ndgpa.selection import Rule, TopK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("layer", "space", "block", "cell", "k", "far", "coverage", "with far", "of dense")


@dataclass(frozen=True)
class Suggestion:
    """Settings for one layer, and what was measured of them.

    Args:
        name: The module; "" where a query and a key were given.
        space: The shape of a grid, or (sites,).
        block, cell: For the structure: one number for each axis of a grid, sites of a block and
            blocks of a cell of any other space.
        k: Blocks that each cell reads.
        far: For `ndgpa.gpa`: whether means are worth adding for the blocks that are not read.
        coverage: The share of full attention on what is read, the mean over the sampled queries.
        with_far: The same where the other blocks count as far as their means get their share right.
        entries: Entries of the affinity matrices of GPA as a share of those of full attention.
        curve: (k, coverage) for this block and cell, for rising k.
    """

    name: str
    space: tuple[int, ...]
    block: tuple[int, ...]
    cell: tuple[int, ...]
    k: int
    far: Far | None
    coverage: float
    with_far: float
    entries: float
    curve: tuple[tuple[int, float], ...]

    @property
    def rule(self) -> Rule:
        return TopK(self.k)

    @property
    def operator(self) -> GPA:
        return GPA(self.rule, far=self.far)


@dataclass(frozen=True)
class Suggestions:
    """Settings for the layers of a model, in the order of its modules; printed, a table."""

    layers: tuple[Suggestion, ...]

    def __iter__(self) -> Iterator[Suggestion]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, number: int) -> Suggestion:
        return self.layers[number]

    @property
    def rules(self) -> dict[str, Rule]:
        """The rule of each layer, by name."""
        return {layer.name: layer.rule for layer in self.layers}

    def __str__(self) -> str:
        rows = [COLUMNS, *(_row(layer) for layer in self.layers)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
        lines = ("  ".join(x.ljust(w) for x, w in zip(row, widths)).rstrip() for row in rows)
        return "\n".join(lines)

    def plot(self, to: "Axes | Path | str") -> None:
        """Plot coverage over k, one line for each layer, a dot where the suggestion is.

        Needs the extra `viz`.

        Args:
            to: Axes of matplotlib to draw on, or the path of a picture to write.
        """
        arguments.needs("Suggestions.plot", "matplotlib", "viz")
        if not isinstance(to, Path | str):
            self._draw(to)
            return
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4.5), layout="constrained")
        self._draw(figure.subplots())
        figure.savefig(to)

    def _draw(self, axes: "Axes") -> None:
        for layer in self.layers:
            (line,) = axes.plot(
                *zip(*layer.curve), label=f"{layer.name} {_by(layer.block)}".strip()
            )
            axes.plot(layer.k, layer.coverage, "o", color=line.get_color())
        axes.set_xscale("log", base=2)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("blocks that a cell reads (kappa)")
        axes.set_ylabel("share of full attention")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")


def _row(layer: Suggestion) -> tuple[str, ...]:
    shapes = (_by(shape) for shape in (layer.space, layer.block, layer.cell))
    shares = (f"{x:.3f}" for x in (layer.coverage, layer.with_far, layer.entries))
    return (layer.name or "-", *shapes, str(layer.k), layer.far or "-", *shares)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))

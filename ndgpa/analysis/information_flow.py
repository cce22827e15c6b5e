"""How information flows through a stack of attention steps.

A step is a bool matrix (queries, keys), True where the query reads the key, such as a row of
`operator.mask(...)`. The queries of one step are the keys of the next; steps are listed in the
order in which they are applied.

Source: Section 3 of Daras et al. 2020, "Your Local GAN": information flow graphs.
"""

from collections.abc import Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def information_flow(steps: Sequence[Bool[Tensor, "_ _"]]) -> Bool[Tensor, "queries inputs"]:
    """Compute which input reaches which output: the boolean product of the steps, last step first.

    Raises:
        ValueError: There is no step, or a step's keys are not as many as the queries before.
    """
    _check_steps(steps)
    reached = steps[0]
    for step in steps[1:]:
        reached = _then(reached, step)
    return reached


def has_full_information(steps: Sequence[Bool[Tensor, "_ _"]]) -> bool:
    """Tell whether every input reaches every output."""
    return bool(information_flow(steps).all())


def fewest_steps(steps: Sequence[Bool[Tensor, "_ _"]], at_most: int = 64) -> int | None:
    """Count the steps, applied in turn, until every input reaches every output.

    Returns:
        The number; None if `at_most` steps are not enough.
    """
    _check_steps([*steps, steps[0]] if len(steps) else steps)
    reached: Tensor | None = None
    for count, step in enumerate(islice(cycle(steps), at_most), start=1):
        reached = step if reached is None else _then(reached, step)
        if bool(reached.all()):
            return count
    return None


def path_counts(steps: Sequence[Bool[Tensor, "_ _"]]) -> Float[Tensor, "queries inputs"]:
    """Count the paths from each input to each output, in float64: exact below 2^53."""
    _check_steps(steps)
    counts = steps[0].double()
    for step in steps[1:]:
        counts = step.double() @ counts
    return counts


def picture_of_masks(
    masks: Bool[Tensor, "steps n n_k"], titles: Sequence[str] | None = None
) -> "Figure":
    """Plot each mask as an image with a row for each query; the last image counts all paths.

    Needs matplotlib. Save the figure with `figure.savefig(path)`.
    """
    from matplotlib.figure import Figure

    steps = list(masks)
    titles = [f"step {i + 1}" for i in range(len(steps))] if titles is None else list(titles)
    counts = path_counts(steps)
    figure = Figure(figsize=(3 * (len(steps) + 1), 3.2), layout="constrained")
    axes = figure.subplots(1, len(steps) + 1)
    for axis, mask, title in zip(axes, steps, titles):
        axis.imshow(mask.cpu().numpy(), cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(f"{title}: {float(mask.double().mean()):.0%}")
        axis.set_xlabel("keys")
    paths = axes[-1].imshow(counts.cpu().numpy(), cmap="Greys", vmin=0, interpolation="nearest")
    figure.colorbar(paths, ax=axes[-1], fraction=0.05)
    axes[-1].set_title(f"paths: {float((counts > 0).double().mean()):.0%}")
    axes[-1].set_xlabel("inputs")
    axes[0].set_ylabel("queries")
    return figure


def plot_flow(steps: Sequence[Bool[Tensor, "_ _"]], source: int) -> "Figure":
    """Plot the flow graph: columns of sites before and after each step, and the paths of one input.

    Needs matplotlib. Save the figure with `figure.savefig(path)`.

    Args:
        source: The input whose paths are in colour.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    _check_steps(steps)
    sizes = [steps[0].shape[1], *(step.shape[0] for step in steps)]
    figure = Figure(figsize=(2 + 2 * len(steps), max(3.0, 0.14 * max(sizes))), layout="constrained")
    axis = figure.subplots()
    heard = torch.zeros(sizes[0], dtype=torch.bool)
    heard[source] = True
    for column, step in enumerate(s.cpu() for s in steps):
        edges = step.nonzero()
        lines = [[(column, int(key)), (column + 1, int(query))] for query, key in edges]
        carries = heard[edges[:, 1]]
        for picked, colour, width in ((~carries, "0.85", 0.5), (carries, "tab:red", 0.9)):
            shown = [line for line, take in zip(lines, picked.tolist()) if take]
            axis.add_collection(LineCollection(shown, colors=colour, linewidths=width))
        _sites(axis, column, heard)
        heard = (step & heard).any(dim=1)
    _sites(axis, len(steps), heard)
    axis.set_xticks(range(len(sizes)), ["input", *(f"step {i + 1}" for i in range(len(steps)))])
    axis.set_ylabel("site")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.invert_yaxis()
    axis.set_title(f"input {source} reaches {int(heard.sum())} of {len(heard)}")
    return figure


def _sites(axis: "object", column: int, heard: Bool[Tensor, " n"]) -> None:
    colours = ["tab:red" if h else "0.6" for h in heard.tolist()]
    axis.scatter([column] * len(heard), range(len(heard)), s=9, c=colours, zorder=3)  # type: ignore[attr-defined]


def _then(reached: Bool[Tensor, "n n_in"], step: Bool[Tensor, "m n"]) -> Bool[Tensor, "m n_in"]:
    """Multiply as counts in float32: sums of up to 2^24 ones are exact, and never fall to 0."""
    return step.float() @ reached.float() > 0


def _check_steps(steps: Any) -> None:
    if len(steps) == 0:
        raise ValueError("steps is empty; information flow needs at least one")
    for i, step in enumerate(steps):
        if not isinstance(step, Tensor) or step.dtype != torch.bool:
            got = step.dtype if isinstance(step, Tensor) else type(step).__name__
            raise TypeError(f"step {i} must be a bool tensor (queries, keys); got {got}")
        if step.ndim != 2:
            raise ValueError(f"step {i} must have two axes; got shape {tuple(step.shape)}")
        if i and step.shape[1] != steps[i - 1].shape[0]:
            raise ValueError(
                f"step {i} has {step.shape[1]} keys but the step before has "
                f"{steps[i - 1].shape[0]} queries"
            )

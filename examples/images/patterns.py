"""One sheet: which keys a single query reads, for every operator, in one, two and three dimensions.

    python -m examples.images.patterns [--out docs/images/patterns.png]

The features are colours of a photograph (scikit-image's astronaut): a row of it as a sequence, a
part as an image, a camera move over it as a video. The query is the white dot. An operator that
reads every key is shaded by its weights, white where they are not above 0. Where groups of heads
read differently, the first is blue, the second orange, and a key of both is blue.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from skimage import data
from skimage.transform import resize
from torch import Tensor

import ndgpa
from examples.common.commands import command
from examples.common.figures import save_figure
from examples.common.files import check_output
from examples.common.untrusted import BadInput
from ndgpa.analysis import attention_map
from ndgpa.operators import SaysMask

COLOURS = ("#1f77b4", "#ff7f0e")


@dataclass(frozen=True)
class Space:
    """A grid, the features of its sites, and the query that is shown."""

    name: str
    grid: ndgpa.Grid
    features: Tensor  # (1, 1, sites, features)
    site: tuple[int, ...]

    @property
    def number(self) -> int:
        return int(np.ravel_multi_index(self.site, self.grid.shape))


def spaces() -> list[Space]:
    photo = torch.from_numpy(resize(data.astronaut()[:300, 100:400], (48, 48), anti_aliasing=True))
    video = torch.stack([photo[8 + t : 20 + t, 12 + 2 * t : 24 + 2 * t] for t in range(4)])
    image = photo[4:28, 10:34]
    return [
        Space("sequence", ndgpa.Sequence(48, 3), _features(photo[20]), (19,)),
        Space("image", ndgpa.Image((24, 24), 3), _features(image), (10, 18)),
        Space("video", ndgpa.Video((4, 12, 12), (1, 3, 3)), _features(video), (1, 5, 6)),
    ]


def _features(colours: Tensor) -> Tensor:
    """Standardise colours, append a constant, bring all to one length: like attends to like."""
    flat = colours.reshape(-1, 3)
    flat = (flat - flat.mean(dim=0)) / flat.std(dim=0)
    flat = torch.cat([flat, torch.ones_like(flat[:, :1])], dim=1)
    return 4 * torch.nn.functional.normalize(flat, dim=1)[None, None].float()


def operators(rank: int) -> dict[str, SaysMask]:
    kernel, far = {1: (7, 6), 2: (5, 4), 3: ((3, 3, 3), (1, 4, 4))}[rank]
    near, dilated = ndgpa.operators.Neighborhood(kernel), ndgpa.operators.Neighborhood(kernel, far)
    return {
        "Full": ndgpa.Full(),
        "GPA\n4 blocks": ndgpa.GPA(ndgpa.TopK(4, share="all")),
        "Nystrom\n12 landmarks": ndgpa.operators.Nystrom(12),
        "Performer\n64 features": ndgpa.operators.Performer(4, 64).eval(),
        "Neighborhood": near,
        "Hydra\nwindow, dilated": ndgpa.operators.Hydra([near, dilated]),
        "MultiAxis\nblock, place": ndgpa.operators.MultiAxis(),
        "LocalSparse\nltr: step 1, 2": ndgpa.operators.LocalSparse("ltr"),
        "LocalSparse\nrtl": ndgpa.operators.LocalSparse("rtl"),
        "LocalSparse\nstrided": ndgpa.operators.LocalSparse("strided"),
        "LocalSparse\nfixed": ndgpa.operators.LocalSparse("fixed"),
    }


def painted(operator: SaysMask, space: Space) -> np.ndarray:
    """Colour, as (sites, 3), what the shown query reads."""
    x = space.features.expand(-1, 2, -1, -1)
    groups = operator.mask(space.grid, space.grid, x, x)[:, space.number].numpy()
    colours = np.ones((groups.shape[1], 3))
    if groups.all():
        row = attention_map(operator, x, x, space.grid, torch.tensor([space.number]))[0, 0, 0]
        share = (row.clamp(min=0) / row.max()).sqrt().numpy()[:, None]
        return 1 - share * (1 - np.array(to_rgb(COLOURS[0])))
    for group, colour in reversed(list(zip(groups, COLOURS))):
        colours[group] = to_rgb(colour)
    return colours


def draw(axis: Axes, colours: np.ndarray, space: Space) -> None:
    """Paint the sites; frames of a video stand side by side, a sequence is a broad strip."""
    shape = space.grid.shape
    rows, columns = (1, shape[0]) if len(shape) == 1 else shape[-2:]
    height = 4 if len(shape) == 1 else 1
    frames = colours.reshape(-1, rows, columns, 3)
    for number, frame in enumerate(frames):
        left, bottom = number * (columns + 1), rows * height
        box = (left, left + columns, bottom, 0)
        axis.imshow(frame, extent=box, interpolation="nearest")
        axis.vlines(range(left, left + columns + 1), 0, bottom, color="0.85", linewidth=0.3)
        axis.hlines(range(0, bottom + 1, height), left, left + columns, color="0.85", linewidth=0.3)
    at = (0,) * (3 - len(space.site)) + space.site
    x, y = at[2] + at[0] * (columns + 1) + 0.5, (at[1] + 0.5) * height
    axis.plot(x, y, "o", markersize=4, color="white", markeredgecolor="black")
    axis.set_xlim(0, len(frames) * (columns + 1) - 1)
    axis.set_ylim(rows * height, 0)
    axis.set_aspect("equal")
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(False)


def sheet() -> Figure:
    columns = spaces()
    rows = [operators(len(space.grid.shape)) for space in columns]
    names = list(rows[0])
    figure = Figure(figsize=(11, 1.2 * len(names) + 0.3), layout="constrained")
    axes = figure.subplots(len(names), 3, width_ratios=[4, 2.4, 5])
    for line, name in zip(axes, names):
        for axis, space, named in zip(line, columns, rows):
            draw(axis, painted(named[name], space), space)
        line[0].set_ylabel(name, rotation=0, ha="left", va="center", labelpad=95, fontsize=10)
    for axis, space in zip(axes[0], columns):
        axis.set_title(f"{space.name}, {' x '.join(map(str, space.grid.shape))}", fontsize=11)
    return figure


def main(out: Path = Path("docs/images/patterns.png")) -> None:
    """Write the sheet.

    Args:
        out: Where to.
    """
    if out.suffix != ".png":
        raise BadInput(f"{out} must end in .png")
    check_output(out)
    torch.manual_seed(0)
    save_figure(sheet(), out, dpi=130)
    print(f"wrote {out}, {out.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    command(lambda: tyro.cli(main))

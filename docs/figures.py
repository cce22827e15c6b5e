"""Draw the pictures of docs/idea.md.

    python docs/figures.py [FOLDER]

Each function draws one picture of a photograph (scikit-image's astronaut) and what GPA reads.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from skimage import data
from skimage.transform import resize
from torch import Tensor
from torch.nn.functional import normalize, pad, unfold

import ndgpa
from ndgpa.selection.coarse import coarse_level

FOLDER = Path(__file__).parent / "images" / "idea"
SIDE, BLOCK, CELL, KEEP = 64, 4, 2, 12
ASKS = 41  # a cell at the collar
SHARPNESS = 12.0  # of the attention: the length of queries and keys
BLUE, ORANGE = "#1f77b4", "#ff7f0e"


def photograph(side: int) -> np.ndarray:
    return resize(data.astronaut()[:400, 60:460], (side, side), anti_aliasing=True)


def features(picture: np.ndarray) -> Tensor:
    """Describe each pixel by the 5x5 pixels around it: (1, 1, sites, 75)."""
    pixels = torch.from_numpy(picture).float().permute(2, 0, 1)[None]
    patches = unfold(pad(pixels, (2, 2, 2, 2), mode="reflect"), 5).mT
    return SHARPNESS * normalize(patches - patches.mean(dim=1), dim=-1)[:, None]


def outline(axes: Axes, box: tuple[int, int, int], **style: object) -> None:
    """Draw a square of a side, from its upper left pixel (row, column)."""
    row, column, side = box
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), side, side, fill=False, **style))


def lines(axes: Axes, size: tuple[int, int], step: int, **style: object) -> None:
    height, width = size
    for at in range(0, width + 1, step):
        axes.plot([at - 0.5] * 2, [-0.5, height - 0.5], **style)
    for at in range(0, height + 1, step):
        axes.plot([-0.5, width - 0.5], [at - 0.5] * 2, **style)


def bare(axes: Axes, picture: np.ndarray, title: str = "") -> None:
    axes.imshow(np.clip(picture, 0, 1), interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])


def blocks_of(image: ndgpa.Grid, block_ids: Tensor) -> list[tuple[int, int, int]]:
    """The square of each block: its first row and column, and its side."""
    columns = -(-image.shape[1] // BLOCK)
    return [(int(b) // columns * BLOCK, int(b) % columns * BLOCK, BLOCK) for b in block_ids]


def sites_blocks_cells(folder: Path) -> None:
    picture = photograph(SIDE)[16:32, 16:40]
    figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    bare(axes, picture)
    size = picture.shape[:2]
    lines(axes, size, 1, color="white", lw=0.4, alpha=0.6)
    lines(axes, size, BLOCK, color="white", lw=1.6)
    lines(axes, size, BLOCK * CELL, color=ORANGE, lw=3.2)
    for box, text in (
        ((1, 1, 1), "site"),
        ((4, 12, BLOCK), "block"),
        ((8, 16, BLOCK * CELL), "cell"),
    ):
        row, column, side = box
        outline(axes, box, edgecolor=BLUE, lw=3, zorder=4)
        middle = column + side / 2 - 0.5
        axes.text(
            middle + (2 if side == 1 else 0),
            row + side / 2 - 0.5,
            text,
            ha="center",
            va="center",
            color="white",
            fontsize=13,
            bbox={"facecolor": BLUE, "edgecolor": "none", "pad": 2},
            zorder=5,
        )
    save(figure, folder / "sites_blocks_cells.png")


def two_phases(folder: Path) -> None:
    picture = photograph(SIDE)
    image = ndgpa.Image((SIDE, SIDE), BLOCK, CELL)
    x = features(picture)
    chosen = ndgpa.select(x, x, image, KEEP).blocks[0, 0, ASKS]
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.4), layout="constrained")
    bare(axes[0], picture, "1. a cell asks")
    bare(axes[1], means(image, picture), "2. means over the blocks")
    axes[2].imshow(relevance(image, x, ASKS), cmap="magma")
    axes[2].set_title("3. relevance of each block, the best 12", fontsize=10)
    axes[2].set_xticks([])
    axes[2].set_yticks([])
    bare(axes[3], read(image, picture, chosen), "4. these are read, pixel by pixel")
    for box in blocks_of(image, chosen):
        row, column, _ = box
        outline(axes[2], (row // BLOCK, column // BLOCK, 1), edgecolor="white", lw=1.5)
        outline(axes[3], box, edgecolor=BLUE, lw=1)
    for at in (axes[0], axes[3]):
        outline(at, cell_box(image, ASKS), edgecolor=ORANGE, lw=2.5)
    save(figure, folder / "two_phases.png")


def near_and_far(folder: Path) -> None:
    picture = photograph(SIDE)
    image = ndgpa.Image((SIDE, SIDE), BLOCK, CELL)
    x = features(picture)
    chosen = ndgpa.select(x, x, image, KEEP).blocks[0, 0, ASKS]
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.5), layout="constrained")
    bare(axes[0], picture, "full attention: 4,096 keys")
    bare(axes[1], read(image, picture, chosen), f"near field: {KEEP * BLOCK**2} keys")
    far = read(image, picture, chosen, else_shown=means(image, picture, at_full_size=True))
    bare(axes[2], far, f"and the far field: {image.num_blocks - KEEP} means")
    for at in axes:
        outline(at, cell_box(image, ASKS), edgecolor=ORANGE, lw=2.5)
    for box in blocks_of(image, chosen):
        outline(axes[1], box, edgecolor=BLUE, lw=1)
        outline(axes[2], box, edgecolor=BLUE, lw=1)
    save(figure, folder / "near_and_far.png")


def spaces(folder: Path) -> None:
    """Blocks (colours) and cells (marked by one outline each) of four spaces."""
    generator = torch.Generator().manual_seed(0)
    angle = torch.rand(600, generator=generator) * 2 * torch.pi
    radius = 1 + 0.35 * torch.rand(600, generator=generator) + 0.3 * (3 * angle).cos()
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.3), layout="constrained")
    grid_of_colours(axes[0], ndgpa.Grid((1, 64), (1, 4), (1, 4)), "a sequence")
    axes[0].set_aspect(12)
    grid_of_colours(
        axes[1], ndgpa.Image((22, 30), block=4, cell=2), "an image that does not divide"
    )
    clip = ndgpa.Video((3, 12, 12), block=(1, 4, 4), cell=(1, 1, 3))
    frames = ndgpa_colours(clip).reshape(3, 12, 12, 4)
    gap = np.ones((3, 12, 1, 4))
    bare(axes[2], np.concatenate([frames, gap], axis=2).transpose(1, 0, 2, 3).reshape(12, 39, 4))
    axes[2].set_title("three frames of a video", fontsize=10)
    cloud = ndgpa.PointCloud(points, block=12, cell=4)
    axes[3].scatter(*points.T, c=ndgpa_colours(cloud), s=9)
    axes[3].set_title("points", fontsize=10)
    axes[3].set_aspect("equal")
    axes[3].set_axis_off()
    save(figure, folder / "spaces.png")


def walk(folder: Path) -> None:
    """What each of a row of cells reads, as an animation."""
    picture = photograph(SIDE)
    image = ndgpa.Image((SIDE, SIDE), BLOCK, CELL)
    x = features(picture)
    table = ndgpa.select(x, x, image, KEEP).blocks[0, 0]
    columns = SIDE // (BLOCK * CELL)
    path = [row * columns + c for row in (2, 5) for c in range(columns)]
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 3.9), layout="constrained")

    def draw(cell: int) -> None:
        for at, shown in ((axes[0], picture), (axes[1], read(image, picture, table[cell]))):
            at.clear()
            bare(at, shown)
            outline(at, cell_box(image, cell), edgecolor=ORANGE, lw=2.5)
        axes[0].set_title("the cell that asks", fontsize=10)
        axes[1].set_title("the 12 blocks that it reads", fontsize=10)
        for box in blocks_of(image, table[cell]):
            outline(axes[1], box, edgecolor=BLUE, lw=1)

    FuncAnimation(figure, draw, frames=path).save(folder / "walk.gif", PillowWriter(fps=2), dpi=56)
    plt.close(figure)


def grid_of_colours(axes: Axes, grid: ndgpa.Grid, title: str) -> None:
    bare(axes, ndgpa_colours(grid).reshape(*grid.shape, 4), title)


def ndgpa_colours(structure: ndgpa.SpatialStructure) -> np.ndarray:
    """A hue for the cell of each site, a shade for its block: (sites, 4)."""
    hue = structure.cell_of_site.numpy() * 0.618 % 1
    place = torch.empty(structure.num_blocks)  # of each block in its cell, from 0 to 1
    row, column = (structure.cells >= 0).nonzero(as_tuple=True)
    place[structure.cells[row, column]] = column / structure.cells.shape[1]
    shade = place[structure.block_of_site].numpy()
    colour = plt.get_cmap("hsv")(hue)
    colour[:, :3] = 0.35 + 0.65 * colour[:, :3] * (1 - 0.5 * shade[:, None])
    return np.clip(colour, 0, 1)


def means(image: ndgpa.Grid, picture: np.ndarray, at_full_size: bool = False) -> np.ndarray:
    pixels = torch.from_numpy(picture).reshape(1, -1, 3)
    coarse = image.downsample(pixels)[0].numpy()
    if at_full_size:
        return coarse[image.block_of_site.numpy()].reshape(*image.shape, 3)
    return coarse.reshape(image.shape[0] // BLOCK, image.shape[1] // BLOCK, 3)


def relevance(image: ndgpa.Grid, x: Tensor, cell: int) -> np.ndarray:
    """The coarse attention of the blocks of a cell, added up, on the grid of blocks."""
    coarse = coarse_level(ndgpa.Problem.of(x, x, image))
    logits = coarse.scale * coarse.query[0, 0, image.cells[cell]] @ coarse.key[0, 0].mT
    side = image.shape[0] // BLOCK
    return logits.softmax(dim=-1).sum(dim=0).reshape(side, side).sqrt().numpy()


def read(
    image: ndgpa.Grid, picture: np.ndarray, blocks: Tensor, else_shown: np.ndarray | None = None
) -> np.ndarray:
    """The picture where it is read; grey, or what is given, elsewhere."""
    is_read = torch.isin(image.block_of_site, blocks.long()).reshape(image.shape).numpy()
    other = np.full_like(picture, 0.85) if else_shown is None else else_shown
    return np.where(is_read[..., None], picture, other)


def cell_box(image: ndgpa.Grid, cell: int) -> tuple[int, int, int]:
    side = BLOCK * CELL
    columns = image.shape[1] // side
    return cell // columns * side, cell % columns * side, side


def save(figure: plt.Figure, file: Path) -> None:
    figure.savefig(file, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    to = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    to.mkdir(parents=True, exist_ok=True)
    for draw_one in (sites_blocks_cells, two_phases, near_and_far, spaces, walk):
        draw_one(to)

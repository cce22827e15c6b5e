"""Pictures in figures, and figures in files."""

from pathlib import Path

from einops import rearrange
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from examples.common.files import replacing


def save_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Write a PNG file whole or not at all."""
    with replacing(path) as part:
        figure.savefig(part, dpi=dpi, format="png")


def show_picture(
    axes: Axes,
    image: Float[Tensor, "3 h w"],
    extent: tuple[float, float, float, float] | None = None,
) -> None:
    """Show a picture of values from 0 to 1, each pixel as a square; others are clipped."""
    pixels = rearrange(image.detach().clamp(0, 1), "c h w -> h w c").numpy()
    axes.imshow(pixels, extent=extent, interpolation="nearest")

"""Contact sheets: rows of pictures under labelled columns."""

from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from examples.common.files import check_output, replacing

ENLARGED = 3  # so that print is legible
GAP = 6  # pixels between pictures
LABEL = 26  # pixels of the line of labels
PAPER, INK = (255, 255, 255), (0, 0, 0)

Picture = UInt8[np.ndarray, "h w 3"]


def as_pictures(images: Float[Tensor, "b 3 h w"]) -> list[Picture]:
    """Turn values of -1 to 1 into pictures of 8 bits."""
    values = ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    return list(rearrange(values, "b c h w -> b h w c").numpy())


def draw_sheet(columns: dict[str, list[Picture]], enlarged: int = ENLARGED) -> PIL.Image.Image:
    """Draw all columns side by side, each under its label.

    Args:
        columns: By label, the pictures from top to bottom; all of one size.
        enlarged: How many times.
    """
    h, w, _ = next(iter(columns.values()))[0].shape
    h, w = enlarged * h, enlarged * w
    rows = max(len(pictures) for pictures in columns.values())
    size = (len(columns) * (w + GAP) - GAP, LABEL + rows * (h + GAP) - GAP)
    sheet = PIL.Image.new("RGB", size, PAPER)
    draw = PIL.ImageDraw.Draw(sheet)
    for column, (label, pictures) in enumerate(columns.items()):
        left = column * (w + GAP)
        draw.text((left + w / 2, LABEL / 2), label, INK, fitting_font(label, w), anchor="mm")
        for row, picture in enumerate(pictures):
            larger = PIL.Image.fromarray(picture).resize((w, h), PIL.Image.Resampling.LANCZOS)
            sheet.paste(larger, (left, LABEL + row * (h + GAP)))
    return sheet


def fitting_font(label: str, width: float) -> PIL.ImageFont.FreeTypeFont:
    """Find the largest that fits both the line and the width."""
    for size in range(LABEL - 8, 8, -1):
        font = PIL.ImageFont.load_default(size)
        if font.getlength(label) <= width:
            break
    return font


def save_picture(picture: PIL.Image.Image, path: Path) -> None:
    """Write a picture of the format that its name says."""
    form = check_picture_name(path)
    with replacing(path) as part:
        picture.save(part, format=form)


def check_picture_name(path: Path) -> str:
    """Return the format that a name says.

    Raises:
        ValueError: It says none that can be written, or no file can have that name.
    """
    check_output(path)
    form = PIL.Image.registered_extensions().get(path.suffix.lower())
    if form not in PIL.Image.SAVE:
        raise ValueError(f"{path} has no ending of a picture format, such as .png")
    return form

"""Contact sheets: rows of pictures under labelled columns."""

import textwrap
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
LABEL = 26  # pixels of a line of labels
LEGIBLE = 11  # pixels of a font; a longer label takes more lines
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
    labels = {label: in_lines(label, w) for label in columns}
    top = LABEL * max(lines.count("\n") + 1 for lines in labels.values())
    size = (len(columns) * (w + GAP) - GAP, top + rows * (h + GAP) - GAP)
    sheet = PIL.Image.new("RGB", size, PAPER)
    draw = PIL.ImageDraw.Draw(sheet)
    for column, (label, pictures) in enumerate(columns.items()):
        left, lines = column * (w + GAP), labels[label]
        at, font = (left + w / 2, top / 2), fitting_font(lines, w)
        draw.multiline_text(at, lines, INK, font, anchor="mm", align="center")
        for row, picture in enumerate(pictures):
            larger = PIL.Image.fromarray(picture).resize((w, h), PIL.Image.Resampling.LANCZOS)
            sheet.paste(larger, (left, top + row * (h + GAP)))
    return sheet


def side_by_side(sheets: list[PIL.Image.Image]) -> PIL.Image.Image:
    """Put sheets beside one another, the first of which is the highest."""
    wide = PIL.Image.new("RGB", (sum(x.width for x in sheets), sheets[0].height), PAPER)
    left = 0
    for sheet in sheets:
        wide.paste(sheet, (left, 0))
        left += sheet.width
    return wide


def in_lines(label: str, width: float) -> str:
    """Break a label into as few lines as are legible; a word stays whole."""
    least = max(map(len, label.split()), default=1)
    for letters in range(len(label), least, -1):
        lines = textwrap.fill(label, letters)
        if longest(lines, PIL.ImageFont.load_default(LEGIBLE)) <= width:
            return lines
    return textwrap.fill(label, least)


def fitting_font(lines: str, width: float) -> PIL.ImageFont.FreeTypeFont:
    """Find the largest that fits both the height of a line and the width."""
    for size in range(LABEL - 8, 8, -1):
        font = PIL.ImageFont.load_default(size)
        if longest(lines, font) <= width:
            break
    return font


def longest(lines: str, font: PIL.ImageFont.FreeTypeFont) -> float:
    return max(font.getlength(line) for line in lines.split("\n"))


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

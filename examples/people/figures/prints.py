"""Pictures on clothes: text, numbers, logos; and how any picture comes onto a texture."""

from collections.abc import Callable

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from examples.people.figures.fabric import Colour

GLYPHS = "ABCDEFGHKLMNPRSTUVXYZ0123456789"
LOGOS = ("polygon", "star", "ring", "cross", "bars", "target")
FINE = 4  # prints are drawn this much larger, then made smaller

Draw = PIL.ImageDraw.ImageDraw
Font = PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont
Drawing = Callable[[Draw, int, int], None]  # onto a canvas of some height and width, in pixels


def stamp(
    texture: np.ndarray,
    centre: tuple[float, float],
    size: tuple[float, float],
    draw: Drawing,
) -> np.ndarray:
    """Put a drawing on a texture, whole even where the ends of the texture meet.

    Args:
        centre: (v, u) of the drawing, from the top and around the part, in shares of the texture.
        size: Its height and width in texels.
        draw: Draws on a transparent canvas.
    """
    rows, columns, _ = texture.shape
    height, width = max(1, round(size[0])), max(1, min(columns, round(size[1])))
    canvas = PIL.Image.new("RGBA", (width * FINE, height * FINE), (0, 0, 0, 0))
    draw(PIL.ImageDraw.Draw(canvas), height * FINE, width * FINE)
    small = np.asarray(canvas.convert("RGBa").resize((width, height), PIL.Image.Resampling.BOX))
    row = np.arange(height) + round(centre[0] * rows - height / 2)
    column = (np.arange(width) + round(centre[1] * columns - width / 2)) % columns
    inside = (row >= 0) & (row < rows)
    at = np.ix_(row[inside], column)
    small = small[inside].astype(np.float64)
    stamped = texture.copy()
    stamped[at] = (small[..., :3] + texture[at] * (1 - small[..., 3:] / 255)).round()
    return stamped


def panel(words: str, ink: Colour, ground: Colour) -> Drawing:
    """Draw bold letters on a board that fills the canvas."""

    def draw(canvas: Draw, height: int, width: int) -> None:
        board = (0, 0, width - 1, height - 1)
        canvas.rounded_rectangle(board, min(height, width) // 8, fill=ground)
        font, stroke = fitting_font(words, 0.8 * height, 0.8 * width)
        middle = width / 2, height / 2
        canvas.text(middle, words, ink, font, "mm", stroke_width=stroke)

    return draw


def outlined(words: str, ink: Colour, edge: Colour) -> Drawing:
    """Draw bold letters with an outline, legible on any background."""

    def draw(canvas: Draw, height: int, width: int) -> None:
        font, stroke = fitting_font(words, 0.9 * height, 0.9 * width)
        middle = width / 2, height / 2
        canvas.text(middle, words, edge, font, "mm", stroke_width=3 * stroke)
        canvas.text(middle, words, ink, font, "mm", stroke_width=stroke)

    return draw


def fitting_font(words: str, height: float, width: float) -> tuple[Font, int]:
    """Find the largest font for a canvas, and how much bolder to draw it, in pixels."""
    trial = PIL.ImageFont.load_default(100)
    left, top, right, bottom = trial.getbbox(words, stroke_width=4)
    size = 100 * min(height / (bottom - top), width / (right - left))
    return PIL.ImageFont.load_default(max(4, size)), max(1, round(0.04 * size))


def logo(name: str, corners: int, first: Colour, second: Colour) -> Drawing:
    """A shape in a disc."""

    def draw(canvas: Draw, height: int, width: int) -> None:
        middle, radius = (width / 2, height / 2), min(height, width) / 2 - 1
        _disc(canvas, middle, radius, first)
        _shape(canvas, name, corners, middle, 0.72 * radius, first, second)

    return draw


def _shape(
    canvas: Draw,
    name: str,
    corners: int,
    middle: tuple[float, float],
    radius: float,
    first: Colour,
    second: Colour,
) -> None:
    x, y = middle
    thin = radius / 3
    match name:
        case "polygon":
            canvas.regular_polygon((x, y, radius), corners, fill=second)
        case "star":
            canvas.polygon(_star(middle, radius, corners), fill=second)
        case "ring":
            _disc(canvas, middle, radius, second)
            _disc(canvas, middle, 0.5 * radius, first)
        case "target":
            _disc(canvas, middle, radius, second)
            _disc(canvas, middle, 0.66 * radius, first)
            _disc(canvas, middle, 0.33 * radius, second)
        case "cross":
            canvas.rectangle((x - radius, y - thin, x + radius, y + thin), fill=second)
            canvas.rectangle((x - thin, y - radius, x + thin, y + radius), fill=second)
        case "bars":
            for shift in (-1, 1):
                top = y + shift * 0.5 * radius - thin
                canvas.rectangle((x - radius, top, x + radius, top + 1.6 * thin), fill=second)


def _disc(canvas: Draw, middle: tuple[float, float], radius: float, colour: Colour) -> None:
    x, y = middle
    canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _star(middle: tuple[float, float], radius: float, corners: int) -> list[tuple[float, float]]:
    angles = np.pi * np.arange(2 * corners) / corners
    lengths = radius * np.where(np.arange(2 * corners) % 2, 0.45, 1.0)
    x, y = middle[0] + lengths * np.sin(angles), middle[1] - lengths * np.cos(angles)
    return list(zip(x.tolist(), y.tolist()))

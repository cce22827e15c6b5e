"""Eyes, brows, nose and mouth."""

from examples.people.figures.fabric import Colour, shade
from examples.people.figures.prints import Draw, Drawing

EYES = 0.33, 0.67  # across, in shares of the canvas
LINE = 0.03  # of the canvas' height


def face(skin: Colour, iris: Colour, brow: Colour) -> Drawing:
    """Draw a face on a canvas that covers the front half of the head."""

    def draw(canvas: Draw, height: int, width: int) -> None:
        line = max(2, round(LINE * height))
        for x in EYES:
            canvas.ellipse(_box(height, width, x, 0.3, 0.085, 0.085), fill="white")
            canvas.ellipse(_box(height, width, x, 0.31, 0.048, 0.075), fill=iris)
            canvas.ellipse(_box(height, width, x, 0.31, 0.02, 0.032), fill="black")
            canvas.line(_box(height, width, x, 0.14, 0.11, 0.0), fill=brow, width=2 * line)
        shadow, lips = shade(skin, 0.72), _lips(skin)
        canvas.line(_box(height, width, 0.5, 0.45, 0.0, 0.13), fill=shadow, width=line)
        canvas.line(_box(height, width, 0.5, 0.58, 0.04, 0.0), fill=shadow, width=line)
        canvas.chord(_box(height, width, 0.5, 0.74, 0.13, 0.12), 15, 165, fill=lips)

    return draw


def _lips(skin: Colour) -> Colour:
    red, green, blue = shade(skin, 0.55)
    return red + 75, green + 10, blue + 20


def _box(
    height: int, width: int, x: float, y: float, across: float, down: float
) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom around a place, in shares of the canvas."""
    return (x - across) * width, (y - down) * height, (x + across) * width, (y + down) * height

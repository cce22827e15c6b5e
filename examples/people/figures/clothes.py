"""What a figure looks like: a body, and a texture for every part of it, from one seed.

Sizes of patterns and prints are in body heights and depend on the picture's rows, so that half a
period is never under 4 pixels and letters can be read: a small picture has broader stripes and
fewer, larger letters.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from examples.people.figures import fabric, prints
from examples.people.figures.backdrop import Backdrop, draw_backdrop
from examples.people.figures.camera import FIGURE
from examples.people.figures.fabric import Cloth, Colour
from examples.people.figures.face import face
from examples.people.figures.patches import Patches
from examples.people.figures.skeleton import Body

EXTENT = {
    **{"pelvis": (0.18, 0.42), "trunk": (0.37, 0.56), "neck": (0.17, 0.21)},
    **{"head": (0.16, 0.36), "hair": (0.15, 0.38), "upper arm": (0.22, 0.21)},
    **{"forearm": (0.20, 0.16), "hand": (0.08, 0.12), "thigh": (0.33, 0.30)},
    **{"shin": (0.29, 0.20), "shoe": (0.13, 0.17)},
}  # length and mean girth of the parts, of which a texture has two texels a pixel
HEM = 0.26  # of the trunk's texture, from below: where the shirt begins

HALF_PERIOD = 4.5  # pixels, the least
LETTER = 8.0  # pixels, the least width
LONGEST = 5  # letters
CHEST = 0.38, 0.5  # the middle of the breast on the trunk's texture
BACK = 0.36, 0.0

SKINS = ((255, 219, 190), (240, 195, 155), (224, 172, 125), (160, 110, 75), (92, 60, 42))
HAIRS = ((30, 24, 22), (70, 45, 28), (130, 85, 45), (200, 160, 90), (150, 60, 30), (170, 170, 170))


@dataclass(frozen=True)
class Print:
    """Letters or digits on the trunk's texture."""

    words: str
    centre: tuple[float, float]  # as of `prints.stamp`
    size: tuple[float, float]  # height and width in texels


@dataclass(frozen=True)
class Looks:
    """What two pictures of a figure share."""

    body: Body
    textures: dict[str, np.ndarray]
    long_hair: bool
    backdrop: Backdrop
    prints: dict[str, Print] = field(default_factory=dict)  # that say something: chest, back


@dataclass(frozen=True)
class Tailor:
    """Makes textures for pictures of `rows` rows."""

    generator: np.random.Generator
    rows: int
    patches: Patches | None = None

    @property
    def density(self) -> float:
        """The number of texels in a body height."""
        return 2.0 * self.rows

    @property
    def pixel(self) -> float:
        """The size of a pixel in body heights."""
        return 1 / (FIGURE * self.rows)

    def shape(self, part: str) -> tuple[int, int]:
        length, girth = EXTENT[part]
        return round(length * self.density), round(girth * self.density)

    def cloth(self, part: str, cloth: Cloth) -> np.ndarray:
        """Make the texture of a part of a garment."""
        return fabric.weave(cloth, self.shape(part), self.density)

    def plain(self, part: str, colour: Colour) -> np.ndarray:
        return fabric.dye(np.zeros(self.shape(part)), colour, colour)

    def draw_cloth(self) -> Cloth:
        drawn = fabric.draw_cloth(self.generator, HALF_PERIOD * self.pixel)
        return drawn if self.patches is None else self.patches.cloth(drawn)

    def draw_word(self, width: float) -> str:
        """Draw letters and digits that fit into `width` body heights."""
        letters = self.generator.choice(list(prints.GLYPHS), LONGEST)
        most = int(np.clip(width / (LETTER * self.pixel), 1, LONGEST))
        least = min(2, most)
        return "".join(letters[: least + int(self.generator.random() * (most + 1 - least))])


def draw_looks(generator: np.random.Generator, rows: int, patches: Patches | None = None) -> Looks:
    """Draw the looks of a random figure, with patches of photographs if there are any."""
    tailor = Tailor(generator, rows, patches)
    skin: Colour = SKINS[generator.integers(len(SKINS))]
    body = Body(height=generator.uniform(0.95, 1.04), girth=generator.uniform(0.9, 1.15))
    shirt, written = draw_shirt(tailor, skin)
    textures = shirt | draw_trousers(tailor, skin) | draw_skin(tailor, skin)
    long_hair, backdrop = bool(generator.random() < 0.5), draw_backdrop(generator)
    backdrop = backdrop if patches is None else patches.backdrop(backdrop)
    return Looks(body, textures, long_hair, backdrop, written)


def draw_shirt(tailor: Tailor, skin: Colour) -> tuple[dict[str, np.ndarray], dict[str, Print]]:
    """Draw trunk and arms, a print on the chest, a number on the back; and say what is written."""
    generator, cloth = tailor.generator, tailor.draw_cloth()
    trim = cloth.colours[1] if generator.random() < 0.5 else fabric.draw_colour(generator)
    trunk = tailor.cloth("trunk", cloth)
    if generator.random() < 0.4:
        trunk = band(trunk, 1 - HEM, 0.05, trim)
    sleeves = cloth if generator.random() < 0.6 else replace(cloth, pattern="plain")
    length = generator.choice((0.5, 1.0, 2.0), p=(0.3, 0.2, 0.5))  # in parts of the arm
    trunk, chest = print_chest(tailor, trunk)
    trunk, back = print_back(tailor, trunk)
    shirt = {
        "trunk": trunk,
        "upper arm": cut(tailor.cloth("upper arm", sleeves), min(length, 1.0), skin, trim),
        "forearm": cut(tailor.cloth("forearm", sleeves), max(length - 1, 0.0), skin, trim),
    }
    return shirt, ({"chest": chest} if chest else {}) | {"back": back}


def draw_trousers(tailor: Tailor, skin: Colour) -> dict[str, np.ndarray]:
    """Draw pelvis, legs and shoes."""
    cloth = tailor.draw_cloth()
    length = tailor.generator.choice((0.7, 1.0, 1.5, 2.0), p=(0.15, 0.1, 0.1, 0.65))  # of legs
    trim = cloth.colours[1]
    return {
        "pelvis": tailor.cloth("pelvis", cloth),
        "thigh": cut(tailor.cloth("thigh", cloth), min(length, 1.0), skin, trim),
        "shin": cut(tailor.cloth("shin", cloth), max(length - 1, 0.0), skin, trim),
        "shoe": draw_shoe(tailor),
    }


def draw_shoe(tailor: Tailor) -> np.ndarray:
    """Draw a shoe with a sole along its lower side."""
    colour = fabric.draw_colour(tailor.generator)
    shoe = tailor.plain("shoe", colour)
    sole = round(0.14 * shoe.shape[1])
    shoe[:, :sole] = shoe[:, -sole:] = fabric.draw_contrast(tailor.generator, colour)
    return shoe


def draw_skin(tailor: Tailor, skin: Colour) -> dict[str, np.ndarray]:
    """Draw head, neck, hands and hair."""
    generator = tailor.generator
    hair: Colour = HAIRS[generator.integers(len(HAIRS))]
    if generator.random() < 0.25:
        hair = fabric.draw_colour(generator)
    iris: Colour = ((50, 35, 25), (60, 110, 60), (60, 100, 170))[generator.integers(3)]
    portrait = face(skin, iris, fabric.shade(hair, 0.7))
    size = 0.09 * tailor.density, 0.158 * tailor.density
    strands = 0.5 + 0.5 * np.repeat(generator.random((1, 24)), 4, axis=1)
    columns = np.linspace(0, strands.shape[1], tailor.shape("hair")[1], endpoint=False).astype(int)
    mask = np.broadcast_to(strands[:, columns], tailor.shape("hair"))
    return {
        "head": prints.stamp(tailor.plain("head", skin), (0.55, 0.5), size, portrait),
        "neck": tailor.plain("neck", skin),
        "hand": tailor.plain("hand", skin),
        "hair": fabric.dye(mask, fabric.shade(hair, 0.6), hair),
    }


def print_chest(tailor: Tailor, trunk: np.ndarray) -> tuple[np.ndarray, Print | None]:
    """Print text or a logo on most shirts."""
    generator, density = tailor.generator, tailor.density
    panel = fabric.draw_colour(generator)
    ink = fabric.draw_contrast(generator, panel)
    kind = generator.choice(("text", "logo", "none"), p=(0.45, 0.45, 0.1))
    if kind == "text":
        height, width = max(0.11, 9 * tailor.pixel), 0.17
        text = Print(tailor.draw_word(width), CHEST, (height * density, width * density))
        board = prints.panel(text.words, ink, panel)
        return prints.stamp(trunk, text.centre, text.size, board), text
    if kind == "logo":
        side = max(0.14, 12 * tailor.pixel) * density
        shape = prints.logo(
            str(generator.choice(prints.LOGOS)), int(generator.integers(3, 7)), panel, ink
        )
        return prints.stamp(trunk, CHEST, (side, side), shape), None
    return trunk, None


def print_back(tailor: Tailor, trunk: np.ndarray) -> tuple[np.ndarray, Print]:
    """Print a number that continues across the seam of the texture."""
    number = str(tailor.generator.integers(1, 100))
    number = number if tailor.rows >= 128 else number[-1]
    edge = fabric.draw_colour(tailor.generator)
    ink = fabric.draw_contrast(tailor.generator, edge)
    size = max(0.13, 10 * tailor.pixel) * tailor.density, 0.17 * tailor.density
    text = Print(number, BACK, size)
    return prints.stamp(trunk, text.centre, text.size, prints.outlined(number, ink, edge)), text


def cut(texture: np.ndarray, length: float, skin: Colour, trim: Colour) -> np.ndarray:
    """End a sleeve after a share of the part, with a cuff; below it is skin."""
    if length == 1:
        return texture
    rows = round(length * len(texture))
    bare = texture.copy()
    bare[rows:] = skin
    return band(bare, length, 0.06, trim) if rows else bare


def band(texture: np.ndarray, end: float, width: float, colour: Colour) -> np.ndarray:
    """Draw a ring of one colour that ends at a share of the rows."""
    ringed = texture.copy()
    ringed[round((end - width) * len(texture)) : round(end * len(texture))] = colour
    return ringed

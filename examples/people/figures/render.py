"""Pictures of figures: two numbers in; picture, key points and ground truth out."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from examples.people.figures.backdrop import paint
from examples.people.figures.body import PARTS, Capsule, capsules
from examples.people.figures.camera import Camera
from examples.people.figures.cast import Surface, cast, normals
from examples.people.figures.clothes import Looks, draw_looks
from examples.people.figures.patches import Patches
from examples.people.figures.poses import draw_skeleton
from examples.people.figures.skeleton import (
    KEY_POINTS,
    SIDES,
    Pose,
    Skeleton,
)

LIGHT = np.array([0.35, 0.5, 0.79])  # the direction it comes from
AMBIENT, DIFFUSE = 0.55, 0.5
FINER = 2  # rays along each side of a pixel
MIDDLE = slice(FINER // 2, None, FINER)  # the ray of each pixel that its ground truth is of

BEARERS = {
    **{"nose": ("head",), "eye": ("head",), "ear": ("head", "hair")},
    **{"neck": ("neck", "trunk", "hair"), "shoulder": ("upper arm", "trunk")},
    **{"elbow": ("upper arm", "forearm"), "wrist": ("forearm", "hand")},
    **{"hip": ("thigh", "pelvis", "trunk"), "knee": ("thigh", "shin"), "ankle": ("shin", "shoe")},
}  # the parts on which a key point can be seen
FACE = ("nose", "eye", "ear")
DEEPEST = {True: 0.035, False: 0.1}  # below the surface: key points of the face, and others


@dataclass(frozen=True)
class Figure:
    """One picture and what is known about it.

    Args:
        image: Colours.
        points: x and y in pixels (0, 0 is the centre of the first pixel) and whether it is seen,
            1 or 0; outside the picture -1, -1, 0. In float32.
        part: 0 for the background, else 1 + the index in PARTS. This and `local` are of one ray,
            1/4 of a pixel right of the centre and below it.
        local: The surface point in the part's own axes, in body heights and float32.
        yaw: Turn of the body in radians.
    """

    image: UInt8[np.ndarray, "h w 3"]
    points: Float[np.ndarray, "18 3"]
    part: UInt8[np.ndarray, "h w"]
    local: Float[np.ndarray, "h w 3"]
    yaw: float


def draw_figure(
    identity: int, pose: int, shape: tuple[int, int], seed: int = 0, photos: float = 0.0
) -> Figure:
    """Pose number `pose` of somebody; the same on every run."""
    return render(looks_of(identity, shape, seed, photos), identity, pose, shape, seed)


def looks_of(identity: int, shape: tuple[int, int], seed: int = 0, photos: float = 0.0) -> Looks:
    """Draw the looks of somebody, a share of whose cloths and backdrops are photographs."""
    patches = Patches(np.random.default_rng([19, seed, identity]), photos) if photos else None
    return draw_looks(np.random.default_rng([7, seed, identity]), shape[0], patches)


def render(looks: Looks, identity: int, pose: int, shape: tuple[int, int], seed: int = 0) -> Figure:
    """Pose number `pose` of somebody whose looks are known already."""
    camera = Camera(*shape)
    generator = np.random.default_rng([11, seed, identity, pose])
    posed, skeleton = draw_skeleton(generator, looks.body, camera)
    return picture(looks, posed, skeleton, camera)


def picture(looks: Looks, posed: Pose, skeleton: Skeleton, camera: Camera) -> Figure:
    """Draw somebody in a pose, whose skeleton it is."""
    shapes = capsules(skeleton, looks.long_hair)
    surface = cast(shapes, camera, FINER)
    feet = np.stack(
        [skeleton.joints[f"{side} {end}"] for side in SIDES for end in ("ankle", "toe")]
    )
    part, point = (array[MIDDLE, MIDDLE] for array in (surface.part, surface.point))
    return Figure(
        image=colour(surface, shapes, looks, paint(looks.backdrop, camera, feet)),
        points=locate(skeleton, surface, camera),
        part=part,
        local=unsqueezed(part, point, shapes),
        yaw=float(posed.yaw),
    )


def colour(
    surface: Surface,
    shapes: list[Capsule],
    looks: Looks,
    background: Float[np.ndarray, "h w 3"],
) -> UInt8[np.ndarray, "h w 3"]:
    """Textures times light, then the mean over each pixel's rays."""
    fine = background.repeat(FINER, axis=0).repeat(FINER, axis=1)
    rays = np.nonzero(surface.part)
    fine[rays] = shaded(surface.part[rays], surface.point[rays], shapes, looks)
    mean = sum(fine[i::FINER, j::FINER] for i in range(FINER) for j in range(FINER)) / FINER**2
    return np.clip(mean, 0, 255).round().astype(np.uint8)


def shaded(part: np.ndarray, point: np.ndarray, shapes: list[Capsule], looks: Looks) -> np.ndarray:
    """(n, 3) colours of n points on parts."""
    colours = np.empty((len(part), 3), np.float32)
    for number, (name, shape) in enumerate(zip(PARTS, shapes), start=1):
        here = np.flatnonzero(part == number)
        light = AMBIENT + DIFFUSE * np.maximum(normals(shape, point[here]) @ LIGHT, 0)
        texture = looks.textures[name.removeprefix("right ").removeprefix("left ")]
        colours[here] = wrapped(texture, shape, point[here]) * light[:, None]
    return colours


def wrapped(
    texture: UInt8[np.ndarray, "rows columns 3"], shape: Capsule, point: Float[np.ndarray, "n 3"]
) -> UInt8[np.ndarray, "n 3"]:
    """The texels at points of the surface: rows along the bone, columns by the angle."""
    rows, columns, _ = texture.shape
    low, high = shape.radii
    up = (point[:, 1] + low) / (low + shape.length + high)
    around = np.arctan2(point[:, 0], point[:, 2]) / (2 * np.pi) + 0.5
    row = ((1 - up) * rows).astype(int).clip(0, rows - 1)
    return texture[row, (around * columns).astype(int) % columns]


def unsqueezed(
    part: UInt8[np.ndarray, "h w"], point: Float[np.ndarray, "h w 3"], shapes: list[Capsule]
) -> Float[np.ndarray, "h w 3"]:
    """Points in the parts' axes, in body heights; 0 for the background."""
    squeeze = [(0.0, 0.0, 0.0), *((shape.squeeze[0], 1.0, shape.squeeze[1]) for shape in shapes)]
    return point * np.array(squeeze, np.float32)[part]


def locate(skeleton: Skeleton, surface: Surface, camera: Camera) -> Float[np.ndarray, "18 3"]:
    """Key points: x, y, seen."""
    world = skeleton.key_points
    pixels = camera.project(world)
    inside = camera.contains(world)
    points = np.full((len(world), 3), (-1, -1, 0), np.float32)
    for number, (name, (x, y)) in enumerate(zip(KEY_POINTS, pixels)):
        if inside[number]:
            ray = int((y + 0.5) * FINER), int((x + 0.5) * FINER)
            part, depth = int(surface.part[ray]), float(surface.depth[ray])
            seen = is_seen(name, float(world[number, 2]), part, depth)
            points[number] = x, y, seen
    return points


def is_seen(name: str, z: float, part: int, depth: float) -> bool:
    """Whether the surface before a key point is its own, or there is none (at the very edge)."""
    if part == 0:
        return True
    *side, joint = name.split()
    sides = (f"{side[0]} {bearer}" for bearer in BEARERS[joint]) if side else ()
    own = PARTS[part - 1] in (*sides, *BEARERS[joint])
    return own and z > depth - DEEPEST[joint in FACE]

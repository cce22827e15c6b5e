"""Poses at random, and those that fit a picture."""

from dataclasses import replace

import numpy as np

from examples.people.figures.camera import Camera
from examples.people.figures.skeleton import SIDES, Body, Pose, Skeleton, place

YAWS = (0, 0, 0.5, -0.5, 1, -1, np.pi, 2.6, -2.6)  # front, three quarters, sides, back
SKULL = 0.11  # how far the head reaches from the skull's centre
REACH = {"elbow": 0.045, "wrist": 0.06, "hip": 0.08, "knee": 0.05, "ankle": 0.03, "toe": 0.03}
CALMER = 0.97  # every further try


def draw_skeleton(
    generator: np.random.Generator, body: Body, camera: Camera
) -> tuple[Pose, Skeleton]:
    """Draw a random pose that fits the picture.

    Limbs are drawn again until they do, each time a little nearer to hanging straight down, so a
    narrow picture has fewer outstretched arms, and a figure of the same size.
    """
    pose, calm = draw_pose(generator), 1.0
    while not fits(skeleton := place(pose, body), camera):
        calm *= CALMER
        limbs = draw_pose(generator)
        pose = replace(
            pose,
            arms=calm * limbs.arms,
            legs=calm * limbs.legs,
            spine=CALMER * pose.spine,
            shift=CALMER * pose.shift,
        )
    return pose, skeleton


def draw_pose(generator: np.random.Generator) -> Pose:
    normal = generator.normal
    return Pose(
        yaw=generator.choice(YAWS) + normal(0, 0.12),
        spine=normal((0, 0.02), (0.08, 0.08)),
        head=normal(0, (0.35, 0.1)),
        arms=np.stack([_draw_arm(generator) for _ in SIDES]),
        legs=np.abs(normal(0, 1, (2, 3))) * (0.14, 0.3, 0.3) * _signs(generator) + (0.05, 0, 0.05),
        shift=normal(0, 0.02),
    )


def _draw_arm(generator: np.random.Generator) -> np.ndarray:
    lift = (0.12, 1.3) if generator.random() < 0.75 else (1.5, 2.7)
    bend = abs(generator.normal(0.6, 0.6))
    return np.array([generator.uniform(*lift), generator.normal(0, 0.4), min(bend, 2.4)])


def _signs(generator: np.random.Generator) -> np.ndarray:
    """Return signs: legs swing both ways, but spread and bend only one way."""
    swing = generator.choice((-1, 1), 2)
    return np.stack([np.ones(2), swing, np.ones(2)], axis=1)


def fits(skeleton: Skeleton, camera: Camera) -> bool:
    """Tell whether the whole figure is in the picture."""
    ends = [(f"{side} {end}", bulk) for side in SIDES for end, bulk in REACH.items()]
    names, bulks = zip(("skull", SKULL), *ends)
    points = np.stack([skeleton.joints[name] for name in names])
    return bool(camera.contains(points, np.array(bulks)).all())

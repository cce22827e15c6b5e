"""A figure that walks on the spot and turns to both sides: the frames of a moving picture."""

import numpy as np

from examples.people.figures.camera import Camera
from examples.people.figures.render import Figure, looks_of, picture
from examples.people.figures.skeleton import Pose, place

STRIDE, BEND, SWING = 0.35, 0.45, 0.35  # radians: of a leg, its knee, an arm
LIFT, ELBOW = 0.12, 0.4  # radians: how far arms hang off the trunk, and are bent
TURN = 0.5  # radians to each side
FRAMES_A_STEP = 12  # of one leg; two make a cycle


def walk(identity: int, frames: int, shape: tuple[int, int], seed: int = 0) -> list[Figure]:
    """Draw somebody walking.

    Args:
        identity: Who, as in `draw_figure`.
        frames: How many; over all of them the figure turns to both sides once.
        shape: Rows and columns of the pictures.
        seed: Of the people.
    """
    looks, camera = looks_of(identity, shape, seed), Camera(*shape)
    poses = [step(number, frames) for number in range(frames)]
    return [picture(looks, pose, place(pose, looks.body), camera) for pose in poses]


def step(number: int, frames: int) -> Pose:
    """The pose of one frame."""
    leg = np.sin(np.pi * number / FRAMES_A_STEP)
    legs = [(0.04, side * STRIDE * leg, BEND * max(0.0, side * -leg)) for side in (1, -1)]
    arms = [(LIFT, side * SWING * -leg, ELBOW) for side in (1, -1)]
    return Pose(
        yaw=TURN * np.sin(2 * np.pi * number / frames),
        spine=np.zeros(2),
        head=np.zeros(2),
        arms=np.array(arms),
        legs=np.array(legs),
        shift=0.0,
    )

"""Bodies, their poses, and where the joints then are.

A frame is a rotation from a part's own axes (x to the body's left, y up, z forwards) to the
world's (x right, y up, z to the viewer), so somebody whose yaw is 0 faces the viewer.
"""

from dataclasses import dataclass

import numpy as np

KEY_POINTS = (
    *("nose", "neck", "right shoulder", "right elbow", "right wrist"),
    *("left shoulder", "left elbow", "left wrist", "right hip", "right knee", "right ankle"),
    *("left hip", "left knee", "left ankle", "right eye", "left eye", "right ear", "left ear"),
)  # OpenPose's order

SIDES = {"right": -1, "left": 1}  # the sign of x
SPINE, THROAT = 0.28, 0.105  # pelvis to neck, neck to the skull's centre
SHOULDER, HIP = 0.105, 0.056  # half the width between the joints
ARM, LEG = (0.155, 0.15), (0.235, 0.225)  # upper and lower bone
TOE, FOOT = 0.07, 0.06  # before the ankle; radians down from level
SOLE = 0.03  # from the foot's bone to the ground

Vectors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Body:
    """Its height and its girth, 1 for the mean."""

    height: float = 1.0
    girth: float = 1.0


@dataclass(frozen=True)
class Pose:
    """Angles in radians.

    Args:
        yaw: Turn about the vertical; positive to the viewer's right.
        spine: (sideways, forwards) lean of the trunk.
        head: (turn, tilt) against the trunk.
        arms: (2, 3) right and left: lifted sideways, swung, elbow bent.
        legs: (2, 3) right and left: spread, swung, knee bent.
        shift: Sideways, in body heights.
    """

    yaw: float
    spine: np.ndarray
    head: np.ndarray
    arms: np.ndarray
    legs: np.ndarray
    shift: float


@dataclass(frozen=True)
class Skeleton:
    """A body in a pose: joints (3,) and rotations (3, 3) of what hangs on them."""

    body: Body
    joints: dict[str, np.ndarray]
    frames: dict[str, np.ndarray]

    @property
    def key_points(self) -> np.ndarray:
        """(18, 3)"""
        return np.stack([self.joints[name] for name in KEY_POINTS])


def place(pose: Pose, body: Body) -> Skeleton:
    """Forward kinematics; the lower foot stands on the ground."""
    root = rotation("y", pose.yaw)
    trunk = root @ rotation("z", pose.spine[0]) @ rotation("x", pose.spine[1])
    head = trunk @ rotation("y", pose.head[0]) @ rotation("z", pose.head[1])
    pelvis = np.array([pose.shift, 0.0, 0.0])
    neck = pelvis + trunk @ (0, SPINE * body.height, 0)
    joints = {"pelvis": pelvis, "neck": neck} | _face(
        neck + head @ (0, THROAT * body.height, 0), head
    )
    frames = {"pelvis": root, "trunk": trunk, "head": head}
    for (side, sign), arm, leg in zip(SIDES.items(), pose.arms, pose.legs):
        for found in (_arm(neck, trunk, sign, arm, body), _leg(pelvis, root, sign, leg, body)):
            joints |= {f"{side} {name}": at for name, at in found[0].items()}
            frames |= {f"{side} {name}": turned for name, turned in found[1].items()}
    lowest = min(joints[f"{side} {end}"][1] for side in SIDES for end in ("ankle", "toe"))
    up = np.array([0, SOLE - lowest, 0])
    return Skeleton(body, {name: joint + up for name, joint in joints.items()}, frames)


def _face(centre: np.ndarray, head: np.ndarray) -> Vectors:
    face = {"skull": (0.0, 0.0, 0.0), "nose": (0.0, -0.009, 0.058)}
    for side, sign in SIDES.items():
        face |= {f"{side} eye": (0.024 * sign, 0.016, 0.05), f"{side} ear": (0.05 * sign, 0.0, 0.0)}
    return {name: centre + head @ at for name, at in face.items()}


def _arm(
    neck: np.ndarray, trunk: np.ndarray, sign: int, angles: np.ndarray, body: Body
) -> tuple[Vectors, Vectors]:
    width = SHOULDER * sign * body.height * body.girth
    shoulder = neck + trunk @ (width, -0.025 * body.height, 0)
    places, frames = _limb(shoulder, trunk, sign, angles, np.array(ARM) * body.height)
    names = "shoulder", "elbow", "wrist"
    return dict(zip(names, places)), dict(zip(names, frames))


def _leg(
    pelvis: np.ndarray, root: np.ndarray, sign: int, angles: np.ndarray, body: Body
) -> tuple[Vectors, Vectors]:
    hip = pelvis + root @ (HIP * sign * body.height * body.girth, -0.01, 0)
    bends = angles * (1, 1, -1)  # knees bend the other way
    places, frames = _limb(hip, root, sign, bends, np.array(LEG) * body.height)
    foot = frames[1] @ rotation("x", FOOT)
    toe = places[2] + foot @ (0, -0.01, TOE)
    names = "hip", "knee", "ankle"
    return dict(zip((*names, "toe"), (*places, toe))), dict(zip(names, (*frames, foot)))


def _limb(
    root: np.ndarray, frame: np.ndarray, sign: int, angles: np.ndarray, bones: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Three joints and two frames of a limb; it hangs down if lift, swing and bend are 0."""
    lift, swing, bend = angles
    upper = frame @ rotation("z", sign * lift) @ rotation("x", swing)
    lower = upper @ rotation("x", -bend)
    middle = root - upper @ (0, bones[0], 0)
    return [root, middle, middle - lower @ (0, bones[1], 0)], [upper, lower]


def rotation(axis: str, angle: float) -> np.ndarray:
    """(3, 3) about x, y or z, right-handed."""
    first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[second, first] = np.sin(angle)
    matrix[first, second] = -matrix[second, first]
    return matrix

"""A body's surface: tapered capsules that hang on a skeleton."""

from dataclasses import dataclass

import numpy as np

from examples.people.figures.skeleton import SIDES, Skeleton

TRUNK = ("pelvis", "trunk", "neck", "head", "hair")
LIMB = ("upper arm", "forearm", "hand", "thigh", "shin", "shoe")
PARTS = (*TRUNK, *(f"{side} {part}" for side in SIDES for part in LIMB))
"""The part map counts from 1 in this order; 0 is the background."""


@dataclass(frozen=True)
class Capsule:
    """The hull of two balls, squeezed along its own x and z.

    Args:
        low: Centre of the lower ball, (3,).
        high: Centre of the upper ball, (3,).
        radii: Of the lower and of the upper ball.
        frame: (3, 3) with its own axes x, y (from low to high) and z as columns.
        squeeze: Factors for the widths along x and z.
        open_below: The lower ball is missing: a hem.
    """

    low: np.ndarray
    high: np.ndarray
    radii: tuple[float, float]
    frame: np.ndarray
    squeeze: tuple[float, float] = (1.0, 1.0)
    open_below: bool = False

    @property
    def length(self) -> float:
        """The distance between the centres of the two balls."""
        return float(np.linalg.norm(self.high - self.low))


def capsules(skeleton: Skeleton, long_hair: bool) -> list[Capsule]:
    """Make a capsule for each of PARTS."""
    limbs = [part for side in SIDES for part in (*_arm(skeleton, side), *_leg(skeleton, side))]
    return [*_trunk(skeleton), *_head(skeleton, long_hair), *limbs]


def _trunk(skeleton: Skeleton) -> list[Capsule]:
    girth, frame = skeleton.body.girth, skeleton.frames["trunk"]
    pelvis, neck = skeleton.joints["pelvis"], skeleton.joints["neck"]
    low, high = (pelvis + skeleton.frames["pelvis"] @ (0, y, 0) for y in (-0.008, 0.04))
    shirt = pelvis + frame @ (0, -0.005, 0), neck - frame @ (0, 0.072, 0)
    throat = neck - frame @ (0, 0.05, 0), neck + frame @ (0, 0.05, 0)
    return [
        _capsule(low, high, (0.045 * girth, 0.07 * girth), skeleton.frames["pelvis"], (1.35, 0.85)),
        _capsule(*shirt, (0.08 * girth, 0.084 * girth), frame, (1.3, 0.84), open_below=True),
        _capsule(*throat, (0.036, 0.031), frame),
    ]


def _head(skeleton: Skeleton, long_hair: bool) -> list[Capsule]:
    frame, skull = skeleton.frames["head"], skeleton.joints["skull"]
    ends = skull - frame @ (0, 0.024, 0), skull + frame @ (0, 0.027, 0)
    tips = (
        skull + frame @ (0, -0.075 if long_hair else 0.03, -0.024),
        skull + frame @ (0, 0.042, -0.014),
    )
    return [
        _capsule(*ends, (0.05, 0.06), frame, (0.95, 1.05)),
        _capsule(*tips, (0.055, 0.062), frame, (1.05, 0.97)),
    ]


def _arm(skeleton: Skeleton, side: str) -> list[Capsule]:
    girth, joints = skeleton.body.girth, skeleton.joints
    shoulder, elbow, wrist = (joints[f"{side} {at}"] for at in ("shoulder", "elbow", "wrist"))
    upper, lower = skeleton.frames[f"{side} shoulder"], skeleton.frames[f"{side} elbow"]
    return [
        _capsule(elbow, shoulder, (0.029 * girth, 0.037 * girth), upper),
        _capsule(wrist, elbow, (0.021, 0.028 * girth), lower),
        _capsule(wrist - lower @ (0, 0.035, 0), wrist, (0.021, 0.02), lower, (0.75, 1.15)),
    ]


def _leg(skeleton: Skeleton, side: str) -> list[Capsule]:
    girth, joints = skeleton.body.girth, skeleton.joints
    hip, knee, ankle = (joints[f"{side} {at}"] for at in ("hip", "knee", "ankle"))
    upper, lower = skeleton.frames[f"{side} hip"], skeleton.frames[f"{side} knee"]
    foot = skeleton.frames[f"{side} ankle"]
    heel = ankle + foot @ (0, -0.008, -0.008)
    return [
        _capsule(knee, hip, (0.039 * girth, 0.056 * girth), upper),
        _capsule(ankle, knee, (0.026, 0.038 * girth), lower),
        _capsule(joints[f"{side} toe"], heel, (0.024, 0.029), foot, (1.05, 1.0)),
    ]


def _capsule(
    low: np.ndarray,
    high: np.ndarray,
    radii: tuple[float, float],
    frame: np.ndarray,
    squeeze: tuple[float, float] = (1.0, 1.0),
    open_below: bool = False,
) -> Capsule:
    """Make a capsule with y along the bone and x as near to the frame's as that allows."""
    y = (high - low) / np.linalg.norm(high - low)
    x = frame[:, 0] - y * (y @ frame[:, 0])
    x /= np.linalg.norm(x)
    own = np.stack([x, y, np.cross(x, y)], axis=1)
    return Capsule(low, high, radii, own, squeeze, open_below)

"""Bodies, their poses, and where the joints then are.

A frame is a rotation from a part's own axes (x to the body's left, y up, z forwards) to the
world's (x right, y up, z to the viewer), so somebody whose yaw is 0 faces the viewer.
"""

from dataclasses import dataclass, replace

import numpy as np

from examples.images.pose_morphing.data.figures.camera import Camera

KEY_POINTS = (
    *("nose", "neck", "right shoulder", "right elbow", "right wrist"),
    *("left shoulder", "left elbow", "left wrist", "right hip", "right knee", "right ankle"),
    *("left hip", "left knee", "left ankle", "right eye", "left eye", "right ear", "left ear"),
)  # OpenPose's order

SIDES = {"right": -1, "left": 1}  # the sign of x
YAWS = (0, 0, 0.5, -0.5, 1, -1, np.pi, 2.6, -2.6)  # front, three quarters, sides, back
SOLE = 0.03  # from the foot's bone to the ground
TOE = 0.07  # before the ankle
SKULL = 0.11  # how far the head reaches from the skull's centre
CALMER = 0.97  # every further try
REACH = {"elbow": 0.045, "wrist": 0.06, "hip": 0.08, "knee": 0.05, "ankle": 0.03, "toe": 0.03}


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


def draw_skeleton(
    generator: np.random.Generator, body: Body, camera: Camera
) -> tuple[Pose, Skeleton]:
    """A pose at random that fits the picture.

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
    """Legs swing both ways; they spread and bend only one."""
    swing = generator.choice((-1, 1), 2)
    return np.stack([np.ones(2), swing, np.ones(2)], axis=1)


def place(pose: Pose, body: Body) -> Skeleton:
    """Forward kinematics; the lower foot stands on the ground."""
    size, root = body.height, rotation("y", pose.yaw)
    trunk = root @ rotation("z", pose.spine[0]) @ rotation("x", pose.spine[1])
    head = trunk @ rotation("y", pose.head[0]) @ rotation("z", pose.head[1])
    pelvis = np.array([pose.shift, 0.0, 0.0])
    neck = pelvis + trunk @ (0, 0.28 * size, 0)
    joints = {"pelvis": pelvis, "neck": neck} | _face(neck + head @ (0, 0.105 * size, 0), head)
    frames = {"pelvis": root, "trunk": trunk, "head": head}
    for (side, sign), arm, leg in zip(SIDES.items(), pose.arms, pose.legs):
        shoulder = neck + trunk @ (0.105 * sign * size * body.girth, -0.025 * size, 0)
        hip = pelvis + root @ (0.056 * sign * size * body.girth, -0.01, 0)
        bones = 0.155 * size, 0.15 * size
        _limb(joints, frames, f"{side} shoulder elbow wrist", shoulder, trunk, sign, arm, bones)
        bones = 0.235 * size, 0.225 * size
        _limb(joints, frames, f"{side} hip knee ankle", hip, root, sign, leg * (1, 1, -1), bones)
        foot = frames[f"{side} knee"] @ rotation("x", 0.06)
        frames[f"{side} ankle"] = foot
        joints[f"{side} toe"] = joints[f"{side} ankle"] + foot @ (0, -0.01, TOE)
    lowest = min(joints[f"{side} {end}"][1] for side in SIDES for end in ("ankle", "toe"))
    up = np.array([0, SOLE - lowest, 0])
    return Skeleton(body, {name: joint + up for name, joint in joints.items()}, frames)


def _face(centre: np.ndarray, head: np.ndarray) -> dict[str, np.ndarray]:
    face = {"skull": (0, 0, 0), "nose": (0, -0.009, 0.058)}
    for side, sign in SIDES.items():
        face |= {f"{side} eye": (0.024 * sign, 0.016, 0.05), f"{side} ear": (0.05 * sign, 0, 0)}
    return {name: centre + head @ at for name, at in face.items()}


def _limb(
    joints: dict[str, np.ndarray],
    frames: dict[str, np.ndarray],
    names: str,
    root: np.ndarray,
    frame: np.ndarray,
    sign: int,
    angles: np.ndarray,
    bones: tuple[float, float],
) -> None:
    """Add a limb of two bones, which hang down where the angles (lift, swing, bend) are 0."""
    side, *chain = names.split()
    lift, swing, bend = angles
    upper = frame @ rotation("z", sign * lift) @ rotation("x", swing)
    lower = upper @ rotation("x", -bend)
    middle = root - upper @ (0, bones[0], 0)
    places = root, middle, middle - lower @ (0, bones[1], 0)
    joints |= {f"{side} {name}": at for name, at in zip(chain, places)}
    frames |= {f"{side} {name}": turned for name, turned in zip(chain, (upper, lower, lower))}


def fits(skeleton: Skeleton, camera: Camera) -> bool:
    """Whether all of it is in the picture."""
    ends = [(f"{side} {end}", bulk) for side in SIDES for end, bulk in REACH.items()]
    names, bulks = zip(("skull", SKULL), *ends)
    points = np.stack([skeleton.joints[name] for name in names])
    return bool(camera.contains(points, np.array(bulks)).all())


def rotation(axis: str, angle: float) -> np.ndarray:
    """(3, 3) about x, y or z, right-handed."""
    first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[second, first] = np.sin(angle)
    matrix[first, second] = -matrix[second, first]
    return matrix

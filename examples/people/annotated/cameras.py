"""Calibrated cameras, and where points lie in space that several of them see.

A camera is its projection: the 3x4 matrix that takes a point of space, in metres, with a 1 below,
to pixels times depth. Source: Hartley and Zisserman 2004, "Multiple View Geometry", 6.1 and 12.2.
"""

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
from jaxtyping import Float

Projection = Float[np.ndarray, "3 4"]
UNIT = 64  # of intrinsic numbers in a pixel, in Qualisys' files
MILLIMETRES = 1000
AXES = np.diag([1.0, -1.0, -1.0])  # theirs look backwards with y up; pictures have y down


def read_qualisys(path: Path) -> dict[str, Projection]:
    """Read a calibration as Qualisys writes it (.qca.txt), by the cameras' names.

    Lens distortion is left out: here it moves a point by less than the tenth part of a pixel.
    """
    cameras = ET.parse(path).getroot().iter("camera")
    return {each.attrib["serial"]: projection_of(each) for each in cameras}


def projection_of(camera: ET.Element) -> Projection:
    inner, outer = (
        {name: float(x) for name, x in next(camera.iter(tag)).items()}
        for tag in ("intrinsic", "transform")
    )
    lens = np.eye(3)
    lens[0, 0], lens[1, 1] = inner["focalLengthU"] / UNIT, inner["focalLengthV"] / UNIT
    lens[:2, 2] = inner["centerPointU"] / UNIT, inner["centerPointV"] / UNIT
    turn = np.array([[outer[f"r{row}{column}"] for column in (1, 2, 3)] for row in (1, 2, 3)])
    place = np.array([outer[axis] for axis in "xyz"]) / MILLIMETRES
    return lens @ AXES @ turn @ np.hstack([np.eye(3), -place[:, None]])


def projected(camera: Projection, point: Float[np.ndarray, "3"]) -> Float[np.ndarray, "2"]:
    """Return the pixel, x and y, that shows a point of space."""
    x, y, depth = camera @ np.append(point, 1)
    return np.array([x / depth, y / depth])


def triangulated(
    cameras: Float[np.ndarray, "n 3 4"], pixels: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "3"]:
    """Return the point of space that two cameras or more show nearest to these pixels.

    By the linear method, which weighs a camera by how far away it is.
    """
    rows = pixels[:, :, None] * cameras[:, 2:] - cameras[:, :2]
    point = np.linalg.svd(rows.reshape(-1, 4))[2][-1]
    return point[:3] / point[3]

"""Key points as OpenPose and COCO write them, turned into one person a picture.

* OpenPose writes one file a picture, `{"people": [{"pose_keypoints_2d": [x, y, c, ...]}]}`, with 25
  points (BODY_25) or 18 (COCO).
* COCO's annotations are `{"images": [...], "annotations": [{"image_id", "keypoints"}]}`; its
  results are a list of `{"image_id", "keypoints"}`. 17 points, each x, y and how well it is seen.

Of several people in a picture the one with the most key points counts, of equals the largest.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from examples.common.untrusted import fields, of_kind
from examples.people.keypoints import NOBODY, from_coco, tidy

BODY_25 = [i for i in range(19) if i != 8]  # without the middle of the hips, and without the feet
ORDERS = {25: BODY_25, 18: list(range(18))}

Person = Float[np.ndarray, "18 3"]


def is_openpose(said: Any) -> bool:
    return isinstance(said, dict) and "people" in said


def is_coco(said: Any) -> bool:
    if isinstance(said, dict):
        return "annotations" in said and "images" in said
    return isinstance(said, list) and bool(said) and isinstance(said[0], dict)


def openpose_person(said: Any, least: float) -> Person:
    """Read the person of one file of OpenPose.

    Args:
        said: The parsed JSON.
        least: Confidence that a key point must exceed.

    Raises:
        ValueError: It is something else.
    """
    people = []
    for i, each in enumerate(fields(said, {"people": list}, "the file")["people"]):
        name = f"person {i}"
        raw = fields(each, {"pose_keypoints_2d": list}, name)["pose_keypoints_2d"]
        points = triples(raw, name)
        if len(points) not in ORDERS:
            raise ValueError(f"{name} has {len(points)} key points; expected 25 or 18")
        people.append(tidy(points[ORDERS[len(points)]], least))
    return main_person(people)


def coco_people(said: Any, least: float) -> dict[str, Person]:
    """Read the person of every picture, by the picture's file name, in the order of the names.

    Raises:
        ValueError: It is something else, or pictures have numbers and no names.
    """
    if isinstance(said, dict):
        fields(said, {"images": list, "annotations": list}, "the file")
        names = {}
        for i, image in enumerate(said["images"]):
            fields(image, {"id": (int, str), "file_name": str}, f"image {i}")
            names[image["id"]] = image["file_name"]
        found = said["annotations"]
    else:
        found, names = said, {}
    people: dict[str, list[Person]] = {name: [] for name in names.values()}
    for i, each in enumerate(found):
        annotation = fields(each, {"image_id": (int, str)}, f"annotation {i}")
        name = names.get(annotation["image_id"], annotation["image_id"])
        if not isinstance(name, str):
            raise ValueError(f"annotation {i} is of image {name}, which has no file_name")
        points = triples(of_kind(annotation.get("keypoints", []), list, "keypoints"), name)
        if len(points) not in (0, 17):
            raise ValueError(f"annotation {i} has {len(points)} key points; expected 17")
        people.setdefault(name, []).extend(from_coco(points[None], least) if len(points) else ())
    return {name: main_person(people[name]) for name in sorted(people)}


def triples(raw: list[Any], name: str) -> Float[np.ndarray, "k 3"]:
    """Split a flat list into points."""
    if len(raw) % 3 or not all(isinstance(x, int | float) for x in raw):
        raise ValueError(f"{name} has {len(raw)} entries; expected x, y, confidence of each point")
    return np.array([float(x) for x in raw]).reshape(-1, 3)


def main_person(people: list[Person]) -> Person:
    """Choose the person with the most key points, the largest in a tie; nobody if there is none."""
    return max(people, key=lambda each: (each[:, 2].sum(), extent(each)), default=NOBODY)


def extent(points: Person) -> float:
    """Return the longer side of the bounding box of the points."""
    places = points[points[:, 2] > 0][:, :2]
    return float(np.ptp(places, axis=0).max()) if len(places) else 0.0

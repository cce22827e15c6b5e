"""Make a folder of data ready for training.

    python -m examples.people.prepare deepfashion RAW ROOT
    python -m examples.people.prepare store FROM TO --size 256 256

`deepfashion` cuts the pictures of the original download (`In-shop Clothes Retrieval`, the 256x256
ones) as PATN has them, into ROOT, where its lists of annotations lie already; where a list of pairs
is missing, it writes one. `store` decodes, cuts and scales all pictures once, for faster training.
"""

import itertools
import sys
from collections import defaultdict
from pathlib import Path

import PIL.Image
import tyro
from tqdm import tqdm

from examples.common.commands import check_count, command
from examples.common.files import replacing
from examples.people.deepfashion import (
    CROP,
    SPLITS,
    Annotation,
    annotation_list,
    pair_list,
    read_annotations,
)
from examples.people.frames import ImageFile
from examples.people.geometry import cut
from examples.people.keypoints import NAMES
from examples.people.pictures import Unreadable
from examples.people.sources import open_pictures
from examples.people.stored import store

RAW = (256, 256)
CENTRE = (40, 0, 216, 256)  # the box of the crop
TORSO = [NAMES.index(name) for name in ("rsho", "lsho", "rhip", "lhip")]


def store_splits(
    source: tyro.conf.Positional[Path],
    target: tyro.conf.Positional[Path],
    size: tuple[int, int] = (256, 256),
    splits: tuple[str, ...] = ("train", "test"),
) -> list[str]:
    """Decode, cut and scale all pictures once; return what could not be read.

    Args:
        source: Folder of DeepFashion, of clips or of single pictures.
        target: Folder to write; each split becomes a folder in it.
        size: Height and width.
        splits: Parts of the data; a folder that has no test is stored with `--splits train`.
    """
    for side in size:
        check_count("--size", side, 8, 4096)
    opened = {split: open_pictures(source, split, size) for split in splits}  # all or none
    return [
        reason for split, pictures in opened.items() for reason in store(pictures, target / split)
    ]


def cut_deepfashion(raw: tyro.conf.Positional[Path], root: tyro.conf.Positional[Path]) -> list[str]:
    """Cut every picture that the lists of annotations name; return those that could not be cut.

    Args:
        raw: Folder of the download, the one that has WOMEN and MEN in it.
        root: Folder with the lists of annotations.

    Raises:
        ValueError: No list names a picture.
    """
    found = {mangled(path.relative_to(raw)): path for path in sorted(raw.glob("*/*/*/*.jpg"))}
    annotated = {split: read_annotations(root, split)[0] for split in SPLITS}
    if not any(annotated.values()):
        raise ValueError(f"{annotation_list(root, 'train')} is missing or names no picture")
    left_out = []
    for split, people in annotated.items():
        (root / split).mkdir(exist_ok=True)
        for name in tqdm(people, split, disable=None):
            fault = _cut_one(found.get(name), root / split / name)
            left_out += [f"{split}/{name} {fault}"] if fault else []
        if people and not pair_list(root, split).exists():
            _write_pairs(people, pair_list(root, split))
    return left_out


def mangled(path: Path) -> str:
    """Return the name that PATN gives to a picture of the download.

    `WOMEN/Blouses_Shirts/id_00000693/02_3_back.jpg` is
    `fashionWOMENBlouses_Shirtsid0000069302_3back.jpg`.
    """
    *folders, identity, name = path.parts
    first, rest = name.split("_", 1) if "_" in name else (name, "")
    tail = f"{first}_{rest.replace('_', '')}" if rest else first
    return "fashion" + "".join(folders) + identity.replace("_", "") + tail


def _cut_one(source: Path | None, target: Path) -> str | None:
    if source is None:
        return "is not in the download"
    try:
        image = ImageFile(source).read()
    except Unreadable as error:
        return str(error)
    if image.shape[:2] != RAW:
        return f"is {image.shape[1]}x{image.shape[0]} in the download; expected 256x256"
    with replacing(target) as part:
        crop = PIL.Image.fromarray(cut(image, CENTRE, CROP))
        crop.save(part, format="JPEG", quality=95, subsampling=0)
    return None


def _write_pairs(people: dict[str, Annotation], path: Path) -> None:
    """Write all ordered pairs of pictures of one outfit whose torsos are seen, as PATN does."""
    outfits = defaultdict(list)
    for name, each in people.items():
        if each.points[TORSO, 2].all():
            outfits[outfit(name)].append(name)
    lines = ["from,to"]
    for names in outfits.values():
        lines += [",".join(pair) for pair in itertools.permutations(names, 2)]
    with replacing(path) as part:
        part.write_text("\n".join(lines) + "\n")


def outfit(name: str) -> str:
    """Return what pictures of one outfit share: the name up to the last `_`."""
    return name.rsplit("_", 1)[0]


def main() -> None:
    """Run one of the two; the exit code is 1 if anything was left out."""
    tasks = {"deepfashion": cut_deepfashion, "store": store_splits}
    left_out = tyro.extras.subcommand_cli_from_dict(tasks)
    for line in left_out:
        print(line)
    sys.exit(min(len(left_out), 1))


if __name__ == "__main__":
    command(main)

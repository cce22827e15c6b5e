"""What is wrong with a folder of pictures of people, and where.

    python -m examples.people.check deepfashion ROOT
    python -m examples.people.check clips ROOT
    python -m examples.people.check singles ROOT

One line for each problem, with the file and, where it has lines, the line; then a summary. Every
picture is decoded. The exit code is 1 if there is any problem. Training leaves out what is broken.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import tyro
from tqdm import tqdm

from examples.common.commands import check_number, command
from examples.people import deepfashion, singles
from examples.people.frames import ImageFile
from examples.people.pictures import Unreadable
from examples.people.problems import Problem, counted

Report = tuple[list[Problem], str]  # what is wrong, and a summary


Kind = Literal["deepfashion", "clips", "singles"]


def main(
    kind: tyro.conf.Positional[Kind], root: tyro.conf.Positional[Path], least: float = 0.3
) -> int:
    """Say what is wrong with a folder of pictures of people, and where.

    Args:
        kind: What the folder holds.
        root: The folder.
        least: Confidence that a key point of clips or singles must exceed.
    """
    check_number("--least", least, 0.0, 1.0)
    if kind == "deepfashion":
        problems, summary = check_deepfashion(root)
    else:
        problems, summary = (check_clips if kind == "clips" else check_singles)(root, least)
    for problem in sorted(problems, key=lambda each: (each.path, each.line or 0)):
        print(problem)
    print(f"{root}: {summary}; {counted(len(problems), 'problem')}")
    return min(len(problems), 1)


def check_deepfashion(root: Path) -> Report:
    """Return the splits that have a list of annotations, or all if none has."""
    splits = [s for s in deepfashion.SPLITS if deepfashion.annotation_list(root, s).exists()]
    problems, summaries = [], []
    for split in splits or deepfashion.SPLITS:
        found, path = deepfashion.survey(root, split), deepfashion.annotation_list(root, split)
        lines = {root / split / name: each.line for name, each in found.people.items()}
        bad = list(unreadable(list(lines)))
        broken = [Problem(path, lines[file], f"{split}/{file.name} {why}") for file, why in bad]
        problems += found.problems + broken
        good = set(found.people) - {file.name for file, _ in bad}
        pairs = counted(sum(a in good and b in good for a, b in found.pairs), "pair")
        summaries.append(f"{split}: {counted(len(good), 'picture')} and {pairs} can be used")
    return problems, ", ".join(summaries)


def check_singles(root: Path, least: float) -> Report:
    """Check the pictures, and the bank of poses if there is one."""
    found = singles.survey(root, least)
    lines = {each.path: each.line for each in found.singles}
    broken = [
        Problem(singles.find_points(root), lines[file], f"{file.relative_to(root)} {why}")
        for file, why in unreadable(list(lines))
    ]
    good = len(found.singles) - len(broken)
    poses = counted(len(found.bank), "pose")
    return found.problems + broken, f"{counted(good, 'picture')} and {poses} of a bank can be used"


def unreadable(files: list[Path]) -> Iterator[tuple[Path, str]]:
    """List the images that cannot be decoded, and why."""
    for file in tqdm(files, "decoding", disable=None):
        try:
            ImageFile(file).read()
        except Unreadable as error:
            yield file, error.why


def check_clips(root: Path, least: float) -> Report:
    """Check every frame of every clip."""
    from examples.people import clips  # needs PyAV

    found, problems = clips.survey(root, least)
    for clip in tqdm(found, "decoding", disable=None):
        problems += clips.frame_faults(clip)
    frames = sum(len(clip.frames) for clip in found)
    return problems, f"{counted(len(found), 'clip')} with {counted(frames, 'frame')}"


if __name__ == "__main__":
    command(lambda: sys.exit(tyro.cli(main)))

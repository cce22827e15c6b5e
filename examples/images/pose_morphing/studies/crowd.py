"""Ask people which pictures are real: a page that shows them, and a count of their answers.

    python -m examples.images.pose_morphing.studies.crowd page --real FOLDER --made FOLDER
    python -m examples.images.pose_morphing.studies.crowd count answers.csv

R2G is the share of real pictures that were judged made, G2R that of made ones judged real; 0.5 of
both is a method that cannot be told from a camera. Golden pictures, whose kind is plain to see,
test whether a person looks. Source: Jetchev et al. 2021, Appendix C: 55 pictures of each kind,
shown for 4 seconds, 2 seconds after "Reveal"; 3 answers a picture; 45 golden ones, of which 60 %
must be right.
"""

import base64
import csv
import json
import random
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from examples.common.commands import check_count, check_number, command
from examples.common.files import check_output, replacing
from examples.common.untrusted import check_file, read_picture

EXPOSURE_S, DELAY_S = 4.0, 2.0
COUNT = 55  # pictures of each kind
PAGE = Path(__file__).with_name("crowd.html")
ANSWER_BYTES = 2**26
COLUMNS = ("person", "picture", "kind", "answer")
KINDS = ("real", "made")
TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


@dataclass(frozen=True)
class Answer:
    """One click."""

    person: str
    picture: str
    kind: str  # what the picture is
    answer: str  # what the person took it for
    golden: bool = False  # it tests the person and counts no further


@dataclass(frozen=True)
class Count:
    """Both shares, and how many answers they come from."""

    r2g: float
    g2r: float
    of_real: int
    of_made: int
    left_out: tuple[str, ...]  # people who failed the golden questions


def count(answers: list[Answer], golden: frozenset[str] = frozenset(), least: float = 0.6) -> Count:
    """Shares over all answers of the people who know the golden pictures well enough.

    Args:
        answers: In any order.
        golden: More pictures that test the person, by name.
        least: Share of the golden pictures that a person must have right.

    Raises:
        ValueError: No answer about one of the kinds is left.
    """
    answers = [replace(a, golden=a.golden or a.picture in golden) for a in answers]
    right = defaultdict(list)
    for a in answers:
        if a.golden:
            right[a.person].append(a.answer == a.kind)
    careless = {person for person, seen in right.items() if sum(seen) < least * len(seen)}
    kept = [a for a in answers if a.person not in careless and not a.golden]
    wrong = {kind: [a.answer != kind for a in kept if a.kind == kind] for kind in KINDS}
    for kind, seen in wrong.items():
        if not seen:
            raise ValueError(f"there is no answer about a {kind} picture to count")
    shares = [sum(wrong[kind]) / len(wrong[kind]) for kind in KINDS]
    return Count(*shares, len(wrong["real"]), len(wrong["made"]), tuple(sorted(careless)))


def read_answers(path: Path) -> list[Answer]:
    """Answers from a CSV file with the columns that the page writes.

    Raises:
        ValueError: The file is missing, or a line is not an answer; the text says which.
    """
    check_file(path, ANSWER_BYTES)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (csv.Error, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as CSV: {error}") from error
    return [
        answer_of(row, f"{path} line {number}")
        for number, row in enumerate(rows, start=2)
        if row.get("kind") != "kind"  # the head again, where files were joined
    ]


def read_lines(path: Path) -> list[str]:
    check_file(path, ANSWER_BYTES)
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read as text: {error}") from error


def answer_of(row: dict[str, str | None], place: str) -> Answer:
    values = [row.get(column) for column in COLUMNS]
    missing = [column for column, value in zip(COLUMNS, values) if not value]
    if missing:
        raise ValueError(f"{place} has no {missing[0]}; expected columns {', '.join(COLUMNS)}")
    answer = Answer(*(value for value in values if value), golden=row.get("golden") == "yes")
    for value in (answer.kind, answer.answer):
        if value not in KINDS:
            raise ValueError(f"{place} says {value!r}; expected {' or '.join(KINDS)}")
    return answer


@dataclass(frozen=True)
class Shown:
    """A picture of the page."""

    path: Path
    kind: str  # what it is
    golden: bool = False  # plain to see: it tests the person


def page(shown: list[Shown], seed: int, exposure_s: float = EXPOSURE_S) -> str:
    """Write an HTML page that holds the pictures in a random order and saves answers as CSV.

    A picture is shown for a while, some time after the person has asked for it.
    """
    shown = random.Random(seed).sample(shown, len(shown))
    pictures = [
        {"name": x.path.name, "kind": x.kind, "golden": x.golden, "url": as_url(x.path)}
        for x in shown
    ]
    data = json.dumps(pictures).replace("<", "\\u003c")  # no name can end the script
    text = PAGE.read_text()
    for name, seconds in (("EXPOSURE", exposure_s), ("DELAY", DELAY_S)):
        text = text.replace(f"{name}_MS", str(round(1000 * seconds)))
        text = text.replace(f"{name}_S", f"{seconds:g}")
    return text.replace("PICTURES", data)


def drawn(folder: Path, count: int, seed: int) -> list[Path]:
    """Draw so many pictures of a folder.

    Raises:
        ValueError: It holds fewer.
    """
    found = pictures_in(folder)
    if len(found) < count:
        raise ValueError(f"{folder} holds {len(found)} pictures; --count asks for {count}")
    return random.Random(seed).sample(found, count)


def as_url(path: Path) -> str:
    read_picture(path)  # raises where a browser would show nothing
    kind = TYPES[path.suffix.lower()]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def pictures_in(folder: Path) -> list[Path]:
    """The PNG and JPEG files of a folder, by name.

    Raises:
        ValueError: There are none.
    """
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in TYPES)
    if not found:
        raise ValueError(f"{folder} holds no PNG or JPEG picture")
    return found


@dataclass(frozen=True)
class Page:
    """Write the page."""

    real: Path  # folder
    made: Path  # folder
    out: Path = Path("page.html")
    count: int = COUNT  # pictures of each kind
    golden_real: Path | None = None  # folder of pictures that are plainly real
    golden_made: Path | None = None  # and of those that are plainly made
    exposure_s: float = EXPOSURE_S
    seed: int = 0

    def __call__(self) -> None:
        check_output(self.out)
        check_number("--exposure-s", self.exposure_s, 0.0, 3600.0, above=True)
        check_count("--count", self.count)
        kinds = zip(KINDS, (self.real, self.made), (self.golden_real, self.golden_made))
        shown = []
        for kind, folder, golden in kinds:
            shown += [Shown(path, kind) for path in drawn(folder, self.count, self.seed)]
            if golden is not None:
                shown += [Shown(path, kind, golden=True) for path in pictures_in(golden)]
        with replacing(self.out) as part:
            part.write_text(page(shown, self.seed, self.exposure_s))
        tests = sum(x.golden for x in shown)
        print(f"{self.out} asks about {self.count} pictures of each kind, and {tests} golden ones")


@dataclass(frozen=True)
class CountAnswers:
    """Count the answers."""

    answers: tyro.conf.Positional[Path]  # CSV that the page has saved; several can be joined
    golden: Path | None = None  # file with the names of more golden pictures, one a line
    least: float = 0.6  # share of the golden pictures that a person must have right

    def __call__(self) -> None:
        check_number("--least", self.least, 0.0, 1.0)
        golden = frozenset(read_lines(self.golden) if self.golden else ())
        found = count(read_answers(self.answers), golden, self.least)
        print(f"R2G {found.r2g:.3f} of {found.of_real} answers about real pictures")
        print(f"G2R {found.g2r:.3f} of {found.of_made} answers about made pictures")
        if found.left_out:
            print(f"left out for the golden questions: {', '.join(found.left_out)}")


Command = (
    Annotated[Page, tyro.conf.subcommand("page")]
    | Annotated[CountAnswers, tyro.conf.subcommand("count")]
)


def main(arguments: list[str] | None = None) -> None:
    tyro.cli(Command, args=arguments)()


if __name__ == "__main__":
    command(main)

"""Ask people which pictures are real: a page that shows them, and a count of their answers.

    python -m examples.images.pose_morphing.studies.crowd page --real FOLDER --made FOLDER
    python -m examples.images.pose_morphing.studies.crowd count answers.csv

R2G is the share of real pictures that were judged made, G2R that of made ones judged real; 0.5 of
both is a method that cannot be told from a camera. Source: Jetchev et al. 2021, Appendix C: 55
pictures of each kind, 4 seconds each, 3 answers a picture.
"""

import base64
import csv
import json
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from examples.common.commands import check_number, command
from examples.common.files import check_output, replacing
from examples.common.untrusted import check_file, read_picture

EXPOSURE_S = 4.0
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
        golden: Pictures whose kind is plain to see; they test the person and count no further.
        least: Share of the golden pictures that a person must have right.

    Raises:
        ValueError: No answer about one of the kinds is left.
    """
    right = defaultdict(list)
    for a in answers:
        if a.picture in golden:
            right[a.person].append(a.answer == a.kind)
    careless = {person for person, seen in right.items() if sum(seen) < least * len(seen)}
    kept = [a for a in answers if a.person not in careless and a.picture not in golden]
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
    head = {column: column for column in COLUMNS}  # again, where files were joined
    return [
        answer_of(row, f"{path} line {number}")
        for number, row in enumerate(rows, start=2)
        if row != head
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
    answer = Answer(*(value for value in values if value))
    for value in (answer.kind, answer.answer):
        if value not in KINDS:
            raise ValueError(f"{place} says {value!r}; expected {' or '.join(KINDS)}")
    return answer


def page(real: list[Path], made: list[Path], seed: int, exposure_s: float = EXPOSURE_S) -> str:
    """An HTML page that holds the pictures, shows each for a while, and saves answers as CSV."""
    shown = [(path, kind) for kind, paths in zip(KINDS, (real, made)) for path in paths]
    random.Random(seed).shuffle(shown)
    pictures = [{"name": p.name, "kind": kind, "url": as_url(p)} for p, kind in shown]
    data = json.dumps(pictures).replace("<", "\\u003c")  # no name can end the script
    return PAGE.replace("EXPOSURE_MS", str(round(1000 * exposure_s))).replace("PICTURES", data)


def as_url(path: Path) -> str:
    read_picture(path)  # raises where a browser would show nothing
    kind = TYPES[path.suffix.lower()]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Real or made?</title>
<style>
body { font: 18px sans-serif; text-align: center }
img { height: 512px; image-rendering: auto } .hidden { visibility: hidden }
button { font-size: 20px; margin: 12px; padding: 8px 24px }
</style>
<p>Each picture is shown once, for a few seconds. Is it a real one, or made by a computer?</p>
<p>Your name or number: <input id="person"> <button id="start">Start</button></p>
<p id="where"></p><p><img id="picture" class="hidden" alt="the picture to judge"></p>
<p><button class="answer hidden">real</button><button class="answer hidden">made</button></p>
<p><a id="save" class="hidden" download="answers.csv">Save the answers</a></p>
<script type="application/json" id="pictures">PICTURES</script>
<script>
const element = (name) => document.getElementById(name)
const pictures = JSON.parse(element("pictures").textContent)
const answers = ["person,picture,kind,answer"]
const buttons = document.querySelectorAll(".answer")
const quoted = (text) => '"' + text.replaceAll('"', '""') + '"'
let place = -1, timer
function next() {
  place += 1
  clearTimeout(timer)
  const over = place === pictures.length
  element("where").textContent = over ? "Thank you." : `${place + 1} of ${pictures.length}`
  element("picture").classList.toggle("hidden", over)
  buttons.forEach((button) => button.classList.toggle("hidden", over))
  if (over) {
    element("save").href = "data:text/csv," + encodeURIComponent(answers.join("\\n") + "\\n")
    return element("save").classList.remove("hidden")
  }
  element("picture").src = pictures[place].url
  timer = setTimeout(() => element("picture").classList.add("hidden"), EXPOSURE_MS)
}
buttons.forEach((button) => button.onclick = () => {
  const { name, kind } = pictures[place]
  answers.push([element("person").value, name, kind, button.textContent].map(quoted).join(","))
  next()
})
element("start").onclick = () => {
  if (!element("person").value) return
  element("start").disabled = true
  next()
}
</script></html>
"""


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
    exposure_s: float = EXPOSURE_S
    seed: int = 0

    def __call__(self) -> None:
        check_output(self.out)
        check_number("--exposure-s", self.exposure_s, 0.0, 3600.0, above=True)
        real, made = pictures_in(self.real), pictures_in(self.made)
        with replacing(self.out) as part:
            part.write_text(page(real, made, self.seed, self.exposure_s))
        print(f"{self.out} asks about {len(real)} real and {len(made)} made pictures")


@dataclass(frozen=True)
class CountAnswers:
    """Count the answers."""

    answers: tyro.conf.Positional[Path]  # CSV that the page has saved; several can be joined
    golden: Path | None = None  # file with a picture's name a line
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

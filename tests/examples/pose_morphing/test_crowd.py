"""Counting what people took for real, on clicks made up here."""

import json
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from examples.images.pose_morphing.studies.crowd import Answer, count, main, read_answers


def clicks(person: str, kind: str, right: int, wrong: int) -> list[Answer]:
    other = {"real": "made", "made": "real"}[kind]
    answers = [kind] * right + [other] * wrong
    return [Answer(person, f"{kind}{i}", kind, answer) for i, answer in enumerate(answers)]


def test_shares_by_hand() -> None:
    found = count(clicks("a", "real", 3, 1) + clicks("a", "made", 1, 1) + clicks("b", "made", 2, 0))
    assert (found.r2g, found.of_real) == (0.25, 4)
    assert (found.g2r, found.of_made) == (0.25, 4)
    assert found.left_out == ()


def test_people_who_fail_the_golden_questions_are_left_out_with_all_they_said() -> None:
    def golden(person: str, right: int) -> list[Answer]:
        return [
            Answer(person, f"gold{i}", "real", "real" if i < right else "made") for i in range(5)
        ]

    answers = clicks("good", "real", 1, 1) + clicks("good", "made", 2, 0) + golden("good", 3)
    bad = clicks("bad", "real", 0, 9) + clicks("bad", "made", 0, 9) + golden("bad", 2)
    found = count(answers + bad, frozenset(f"gold{i}" for i in range(5)))
    assert (found.r2g, found.g2r, found.left_out) == (0.5, 0.0, ("bad",))
    assert (found.of_real, found.of_made) == (2, 2)


def test_a_kind_without_answers_is_an_error() -> None:
    with pytest.raises(ValueError, match="there is no answer about a made picture to count"):
        count(clicks("a", "real", 1, 0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("person,picture\na,b\n", r"line 2 has no kind; expected columns person, picture, kind"),
        ("person,picture,kind,answer\na,b,real,fake\n", r"line 2 says 'fake'; expected real or"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "answers.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_answers(path)


def test_files_of_answers_can_be_joined(tmp_path: Path) -> None:
    path, head = tmp_path / "answers.csv", "person,picture,kind,answer\n"
    path.write_text(f"{head}a,x.png,real,made\n{head}b,x.png,real,real\n")
    assert [answer.person for answer in read_answers(path)] == ["a", "b"]


def test_the_page_holds_every_picture_and_its_answers_can_be_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, names in (("real", ["a.png", "<script>.jpg"]), ("made", ["c.png"])):
        (tmp_path / kind).mkdir()
        for name in names:
            PIL.Image.fromarray(np.zeros((4, 2, 3), np.uint8)).save(tmp_path / kind / name)
    out = tmp_path / "page.html"
    folders = ["--real", str(tmp_path / "real"), "--made", str(tmp_path / "made")]
    main(["page", *folders, "--out", str(out)])
    text = out.read_text()
    found = re.search(r'<script type="application/json" id="pictures">(.*?)</script>', text)
    assert found
    shown = {picture["name"]: picture["kind"] for picture in json.loads(found[1])}
    assert shown == {"a.png": "real", "<script>.jpg": "real", "c.png": "made"}
    assert text.count("4000)") == 1  # milliseconds of the exposure

    answers = tmp_path / "answers.csv"
    answers.write_text('person,picture,kind,answer\n"x","a.png","real","made"\nx,c.png,made,made\n')
    main(["count", str(answers)])
    assert "R2G 1.000 of 1 answers about real pictures" in capsys.readouterr().out


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no PNG or JPEG picture$"):
        main(["page", "--real", str(tmp_path), "--made", str(tmp_path)])
    with pytest.raises(ValueError, match=r"missing\.csv is not a file$"):
        main(["count", str(tmp_path / "missing.csv")])

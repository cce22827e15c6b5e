"""Counting what people took for real, on clicks made up here."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import numpy as np
import PIL.Image
import pytest

from examples.images.pose_morphing.studies.crowd import (
    Answer,
    Shown,
    count,
    main,
    page,
    read_answers,
)


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
    with pytest.raises(ValueError, match="made holds 1 pictures; --count asks for 2"):
        main(["page", *folders, "--out", str(out), "--count", "2"])
    golden = ["--golden-real", str(tmp_path / "real")]
    main(["page", *folders, *golden, "--out", str(out), "--count", "1"])
    text = out.read_text()
    found = re.search(r'<script type="application/json" id="pictures">(.*?)</script>', text)
    assert found
    shown = json.loads(found[1])
    assert len(shown) == 4
    tests = {picture["name"]: picture["kind"] for picture in shown if picture["golden"]}
    assert tests == {"a.png": "real", "<script>.jpg": "real"}
    assert text.count("4000)") == text.count("2000)") == 1  # milliseconds

    answers = tmp_path / "answers.csv"
    answers.write_text('person,picture,kind,answer\n"x","a.png","real","made"\nx,c.png,made,made\n')
    main(["count", str(answers)])
    assert "R2G 1.000 of 1 answers about real pictures" in capsys.readouterr().out


BROWSER = """
let now = 0, timers = []
const setTimeout = (call, wait) => (timers.push({ call, at: now + wait }), timers.length - 1)
const clearTimeout = (i) => { if (timers[i]) timers[i].call = () => {} }
const wait = (ms) => {
  now += ms
  timers.forEach((timer) => { if (timer.at <= now) { timer.call(); timer.call = () => {} } })
}
function node(words, textContent) {
  const has = new Set(words)
  const toggle = (name, on) => on ? has.add(name) : has.delete(name)
  const classList = { toggle, add: (x) => has.add(x), remove: (x) => has.delete(x) }
  return { has, classList, textContent, value: "", disabled: false }
}
const nodes = { pictures: node([], DATA), picture: node(["hidden"]), end: node(["absent"]) }
const choices = ["real", "made"].map((kind) => node(["hidden"], kind))
const document = {
  getElementById: (name) => nodes[name] ??= node([]),
  querySelectorAll: () => choices,
}
"""
CLICKS = """
const log = []
element("start").onclick()
log.push(nodes.end.has.has("absent") && place === -1)  // no name, no start
element("person").value = "me, \\"myself\\""
element("start").onclick()
while (nodes.end.has.has("absent")) {
  const hidden = () => nodes.picture.has.has("hidden")
  const states = [hidden(), buttons[0].has.has("hidden")]
  element("reveal").onclick()
  wait(1999); states.push(hidden())
  wait(1); states.push(!hidden(), !buttons[0].has.has("hidden"), element("reveal").disabled)
  wait(3999); states.push(!hidden())
  wait(1); states.push(hidden(), !buttons[0].has.has("hidden"))
  log.push(states.every((x) => x))
  buttons[pictures[place].name === "c.png" ? 1 : 0].onclick()
}
console.log(JSON.stringify({ log, text: nodes.answers.textContent, href: nodes.save.href }))
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_the_page_from_start_to_answers(tmp_path: Path) -> None:
    """Its script in Node.js: reveal, 2 s, the picture for 4 s, an answer; the CSV is counted."""
    for kind, names in (("real", ["a.png", '<img src=x onerror="1">.png']), ("made", ["c.png"])):
        (tmp_path / kind).mkdir()
        for name in names:
            PIL.Image.fromarray(np.zeros((4, 2, 3), np.uint8)).save(tmp_path / kind / name)
    shown = [Shown(path, "real") for path in sorted((tmp_path / "real").iterdir())]
    shown += [Shown(tmp_path / "made/c.png", "made", golden=True), Shown(shown[0].path, "made")]
    data, script = re.findall(r"<script[^>]*>(.*?)</script>", page(shown, seed=0), re.DOTALL)
    program = tmp_path / "program.js"
    program.write_text(f"const DATA = {json.dumps(data)}\n{BROWSER}\n{script}\n{CLICKS}")
    ran = subprocess.run(["node", str(program)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["log"] == [True] * 5
    assert found["href"] == "data:text/csv," + quote(found["text"], safe="!'()*~-_.")
    (tmp_path / "answers.csv").write_text(found["text"])
    answers = read_answers(tmp_path / "answers.csv")
    assert {answer.person for answer in answers} == {'me, "myself"'}
    assert sorted(a.picture for a in answers if not a.golden) == sorted(
        x.path.name for x in shown if not x.golden
    )
    counted = count(answers)
    assert (counted.r2g, counted.g2r, counted.left_out) == (0.0, 1.0, ())


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no PNG or JPEG picture$"):
        main(["page", "--real", str(tmp_path), "--made", str(tmp_path)])
    with pytest.raises(ValueError, match=r"missing\.csv is not a file$"):
        main(["count", str(tmp_path / "missing.csv")])


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PERSON = """
<script>
const seen = []
const visible = (node) => getComputedStyle(node).visibility === "visible"
const wait = (ms) => new Promise((done) => setTimeout(done, ms))
async function judge() {
  element("person").value = "browser"
  element("start").click()
  while (place < pictures.length) {
    const states = [visible(element("picture"))]
    element("reveal").click()
    for (const ms of [1900, 200, 3700, 300]) {
      await wait(ms)
      states.push(visible(element("picture")))
    }
    seen.push(states.join() + element("picture").naturalWidth)
    buttons[pictures[place].kind === "real" ? 0 : 1].click()
  }
  const foreign = document.querySelectorAll("img").length
  document.body.append(`SEEN ${foreign} ${[...new Set(seen)]} END`)
}
judge()
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_judges_all_pictures_of_the_page(tmp_path: Path) -> None:
    """55 + 55 and golden ones in Chromium, whose clock is turned forward while it waits."""
    for kind, some in (("real", 55), ("made", 55), ("golden", 3)):
        (tmp_path / kind).mkdir()
        for i in range(some):
            name = f"{i}<img src=x onerror=alert(1)>.png"
            PIL.Image.fromarray(np.full((6, 4, 3), 4 * i, np.uint8)).save(tmp_path / kind / name)
    out = tmp_path / "page.html"
    folders = [("real", "real"), ("made", "made"), ("golden-real", "golden")]
    named = [word for name, folder in folders for word in (f"--{name}", str(tmp_path / folder))]
    main(["page", *named, "--out", str(out)])
    out.write_text(out.read_text() + PERSON)
    ran = subprocess.run(
        [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *(f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=3600000"),
            out.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    found = re.search(r"SEEN (\d+) (.*) END", ran.stdout)
    assert found is not None, ran.stdout[-2000:]
    assert found[1] == "1"  # the picture to judge: no name became an element
    assert found[2] == "false,false,true,true,false4"  # hidden, after 2 s seen, after 4 s hidden
    said = re.search(r'<pre id="answers">(.*?)</pre>', ran.stdout, re.DOTALL)
    assert said is not None
    (tmp_path / "answers.csv").write_text(html.unescape(said[1]))
    answers = read_answers(tmp_path / "answers.csv")
    assert sum(answer.golden for answer in answers) == 3
    counted = count(answers)
    assert (counted.r2g, counted.g2r, counted.of_real, counted.of_made) == (0.0, 0.0, 55, 55)

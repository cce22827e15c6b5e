"""The page in a headless Chromium without a network: it loads, drags, and draws torch's picture."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.images.pose_morphing.config import preset
from examples.images.pose_morphing.demo import SHIPPED
from examples.images.pose_morphing.model import Generator
from examples.images.pose_morphing.page.chromium import PROGRAMS, Chromium
from examples.images.pose_morphing.trained import load_trained

pytest.importorskip("onnxscript")
from examples.images.pose_morphing.page import build, graph, measure

RUNTIME = Path(os.environ.get("ONNXRUNTIME_WEB", "build/npm/node_modules/onnxruntime-web/dist"))
PROGRAM = next(filter(None, map(shutil.which, PROGRAMS)), None)
ARMS = (3, 4, 6, 7)  # elbows and wrists
NUMBERS = "Array.from(page.morph.image)"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
needs_browser = pytest.mark.skipif(
    PROGRAM is None or not RUNTIME.is_dir(), reason="needs chromium and `make page`"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page")
    build.main(build.Options(RUNTIME, out=out, people=3))
    return out


@pytest.fixture(scope="module")
def browser(folder: Path) -> Iterator[Chromium]:
    with measure.served(folder) as address, measure.browsing(address) as chromium:
        measure.wait(chromium, "page.morphs > 0")
        yield chromium


def settle(browser: Chromium) -> None:
    """Wait until no morph has come for a while."""
    before = -1
    while before != (now := browser.evaluate("page.morphs")):
        before = now
        time.sleep(2)


def by_torch(browser: Chromium) -> torch.Tensor:
    """What torch makes of what the page shows."""
    generator = load_trained(SHIPPED / "gpa128", browser.evaluate("Number(kappa.value)")).generator
    pixels = torch.tensor(browser.evaluate("Array.from(page.pixels)")).view(1, 3, 128, 64)
    joints = (torch.tensor([browser.evaluate(x)]) for x in ("page.sourceJoints", "page.target()"))
    maps = (graph.maps_of(generator, x) for x in joints)
    with torch.no_grad():
        return generator(pixels, *maps).image


def assert_torch_agrees(browser: Chromium) -> None:
    settle(browser)
    shown = torch.tensor(browser.evaluate(NUMBERS)).view(1, 3, 128, 64)
    torch.testing.assert_close(shown, by_torch(browser), atol=1e-3, rtol=0)


@needs_browser
def test_the_first_morph_is_that_of_torch(browser: Chromium) -> None:
    assert_torch_agrees(browser)


@needs_browser
def test_a_joint_that_is_dragged_redraws_the_morph(browser: Chromium) -> None:
    settle(browser)
    before, count = np.array(browser.evaluate(NUMBERS)), browser.evaluate("page.morphs")
    joints = browser.evaluate("page.target()")
    joint = next(i for i, (_, _, there) in enumerate(joints) if there and i in ARMS)
    x, y = measure.on_screen(browser, "pose", *joints[joint][:2])
    browser.mouse("mouseMoved", x, y)
    browser.mouse("mousePressed", x, y, buttons=1)
    for step in range(10):
        browser.mouse("mouseMoved", x + 4 * step, y - 6 * step, buttons=1)
    browser.mouse("mouseReleased", x + 36, y - 54)
    settle(browser)
    moved = np.subtract(browser.evaluate(f"page.target()[{joint}]"), joints[joint])
    assert moved == pytest.approx([9, -13.5, 0], abs=0.6)
    assert browser.evaluate("page.morphs") > count
    assert np.abs(np.array(browser.evaluate(NUMBERS)) - before).max() > 0.1
    assert_torch_agrees(browser)


@needs_browser
def test_the_slider_is_kappa(browser: Chromium) -> None:
    for kappa in (1, 9):
        browser.evaluate(f"kappa.value = {kappa}; kappa.dispatchEvent(new Event('input'))")
        settle(browser)
        assert browser.evaluate("page.morph.slots") == kappa
        assert_torch_agrees(browser)


@needs_browser
def test_the_cursor_shows_the_pixels_that_were_copied(browser: Chromium) -> None:
    settle(browser)
    browser.mouse("mouseMoved", *measure.on_screen(browser, "morph", 32, 60))
    assert browser.evaluate("document.querySelectorAll('#lines line').length") > 0


@needs_browser
def test_the_name_of_a_file_is_text(browser: Chromium) -> None:
    browser.evaluate(
        "openOwn([new File(['x'], '<img src=x onerror=alert(1)>.png', {type: 'image/png'})])"
        ".then(() => 0)".replace("openOwn", "page.openOwn")
    )
    said = browser.evaluate("document.getElementById('status').textContent")
    assert said.startswith("<img src=x")
    assert browser.evaluate("document.querySelectorAll('#status img').length") == 0
    browser.evaluate("page.failed = null")


@needs_browser
def test_nothing_comes_from_elsewhere(browser: Chromium) -> None:
    names = browser.evaluate("performance.getEntriesByType('resource').map((x) => x.name)")
    assert names
    assert all(name.startswith(("http://127.0.0.1:", "data:", "blob:")) for name in names)


def test_a_folder_without_the_runtime_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="npm package onnxruntime-web"):
        build.main(build.Options(tmp_path, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_generator_without_gpa_is_refused() -> None:
    generator = load_trained(SHIPPED / "none").generator
    with pytest.raises(ValueError, match="not NO_16"):
        build.kappa_of(generator)
    assert json.dumps(build.describe(load_trained(SHIPPED / "gpa128").generator, 4))


def test_a_generator_with_another_rule_is_refused() -> None:
    config = replace(preset("tiny64"), attention="GPA32_4_8+soft")
    with pytest.raises(ValueError, match=r"GPA32_4_8\+soft counts key blocks by another rule"):
        graph.Redraw(Generator(config))

"""How fast the page is, in a headless Chromium without a network; and a picture of it.

    make page
    python -m examples.images.pose_morphing.page.measure

Serves the page, waits for the first morph, drags the right wrist over it in steps, each after the
morph of the one before, and points at the print. Writes page.json, page.md and a screenshot. Times
come twice: by the clock, and as processor time of all of the browser's processes, which other work
on the machine changes less.
"""

import contextlib
import functools
import http.server
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

from examples.common.commands import check_count, command
from examples.common.files import check_folder, check_output, write_json, write_text
from examples.common.tables import machine, markdown_table
from examples.images.pose_morphing import figures
from examples.images.pose_morphing.page.chromium import PROGRAMS, Chromium

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Options:
    """What is measured."""

    page: Path = Path("build/page")
    out: Path = figures.HERE / "results"
    picture: Path = Path("docs/images/page.png")
    drags: int = 12


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serve a folder without a word."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine alone; yields its address."""
    handler = functools.partial(Quiet, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@contextlib.contextmanager
def browsing(address: str) -> Iterator[Chromium]:
    """Open an address in a headless Chromium.

    Raises:
        ValueError: There is none.
    """
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        raise ValueError(f"none of {', '.join(PROGRAMS)} is installed")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Chromium(program, Path(profile))
        browser.call("Page.navigate", url=address)
        yield browser
        browser.close()


def wait(browser: Chromium, condition: str, limit_s: float = 60) -> None:
    """Wait until an expression is true in the page.

    Raises:
        RuntimeError: It does not come true, or the page says what failed.
    """
    end = time.monotonic() + limit_s
    while not browser.evaluate(f"typeof page !== 'undefined' && Boolean({condition})"):
        failed = browser.evaluate("typeof page !== 'undefined' && page.failed")
        if failed or time.monotonic() > end:
            raise RuntimeError(failed or f"{condition} did not come true")
        time.sleep(0.02)


def on_screen(browser: Chromium, canvas: str, x: float, y: float) -> tuple[float, float]:
    """Where a pixel of a canvas of 128x64 is on the screen."""
    box = browser.evaluate(
        f"(({{left, top, width, height}}) => [left, top, width, height])"
        f"(document.getElementById('{canvas}').getBoundingClientRect())"
    )
    return box[0] + (x + 0.5) / 64 * box[2], box[1] + (y + 0.5) / 128 * box[3]


def processor_s(process: int) -> float:
    """Processor seconds of a process and of those that it started."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return (int(fields[11]) + int(fields[12])) / TICKS + sum(map(processor_s, map(int, children)))


def drag(browser: Chromium, joint: int, steps: int) -> None:
    """Drag a joint upward, a step after each morph."""
    x, y = on_screen(browser, "pose", *browser.evaluate(f"page.target()[{joint}]")[:2])
    browser.mouse("mousePressed", x, y, buttons=1)
    for step in range(1, steps + 1):
        count = browser.evaluate("page.morphs")
        browser.mouse("mouseMoved", x, y - 4 * step, buttons=1)
        wait(browser, f"page.morphs > {count}")
    browser.mouse("mouseReleased", x, y - 4 * steps)


def main(options: Options) -> None:
    check_folder(options.out)
    check_output(options.picture)
    check_count("--drags", options.drags)
    if not (options.page / "index.html").is_file():
        raise ValueError(f"{options.page} has no page; `make page` builds it")
    with served(options.page) as address, browsing(address) as browser:
        wait(browser, "page.loaded")
        spent = processor_s(browser.process.pid)
        wait(browser, "page.morphs > 0")
        first_processor_s = processor_s(browser.process.pid) - spent
        first_s = browser.evaluate("page.firstAfter") / 1000
        inside = browser.evaluate("page.morph.milliseconds") / 1000
        begin, spent = time.monotonic(), processor_s(browser.process.pid)
        drag(browser, 4, options.drags)
        by_clock = (time.monotonic() - begin) / options.drags
        by_processor = (processor_s(browser.process.pid) - spent) / options.drags
        browser.mouse("mouseMoved", *on_screen(browser, "morph", 32, 46))
        browser.screenshot(options.picture)
        version = browser.call("Browser.getVersion")["product"]
    found = {
        "first morph after loading, s": first_s,
        "of that in the network, s": inside,
        "first morph, processor s": first_processor_s,
        "a morph while dragging, s": by_clock,
        "a morph while dragging, processor s": by_processor,
        "morphs a second": 1 / by_clock,
        "morphs a second of processor time": 1 / by_processor,
    }
    load = os.getloadavg()[0]
    about = f"{version}, one wasm thread. {machine()}; other work beside it, load {load:.1f}."
    write_json(options.out / "page.json", {"machine": about, "times": found})
    table = markdown_table(["", "measured"], [[name, f"{x:.2f}"] for name, x in found.items()])
    write_text(options.out / "page.md", f"{__doc__}\n{about}\n\n{table}\n")
    print(table)


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))

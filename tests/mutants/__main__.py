"""Apply small faults one at a time and see whether the tests notice: `make mutants`.

Each mutant runs its tests in a copy of the repository, in a process of its own that is ended when
its time is up; a mutant that hangs is noticed too. Exit code 1 if more than `--most-alive` live, or
if the table no longer fits the code.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import NamedTuple

from tqdm import tqdm

from tests.mutants.table import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
COPIED = ("ndgpa", "tests", "examples", "benchmarks", "pyproject.toml")
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "-m", "not slow")
FAILED = (1, 2)  # of pytest: a test failed, or the code cannot even be imported


class Result(NamedTuple):
    """What became of a mutant: "dead", "hung" (dead too), "alive", or what is wrong with it."""

    mutant: Mutant
    fate: str
    seconds: float


def main() -> int:
    options = _options()
    chosen = [m for m in MUTANTS if options.only in f"{m.file} {m.name}"]
    wrong = [m for m in chosen if not _fits(m)]
    for mutant in wrong:
        print(f"not found in {mutant.file}: {mutant.old!r} ({mutant.name})")
    if wrong and not options.skip_missing:
        return 1
    if options.baseline:
        tests = sorted({test for m in chosen for test in m.tests})
        chosen = [Mutant("nothing is changed", "pyproject.toml", "", "", (t,)) for t in tests]
    chosen = [m for m in chosen if m not in wrong]
    with tempfile.TemporaryDirectory() as folder:
        results = list(_run(chosen, Path(folder), options))
    return _report(results, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="mutants that run at the same time")
    parser.add_argument("--timeout-s", type=float, default=180, help="for the tests of a mutant")
    parser.add_argument("--most-alive", type=int, default=2)
    parser.add_argument("--only", default="", help="mutants whose file or name has this in it")
    parser.add_argument("--skip-missing", action="store_true", help="leave out those not found")
    parser.add_argument(
        "--baseline", action="store_true", help="run each test file on the code as it is"
    )
    return parser.parse_args()


def _fits(mutant: Mutant) -> bool:
    path = ROOT / mutant.file
    return path.exists() and mutant.old in path.read_text()


def _run(mutants: list[Mutant], folder: Path, options: argparse.Namespace) -> Iterable[Result]:
    copies: Queue[Path] = Queue()
    for job in range(options.jobs):
        copies.put(_copy(folder / str(job)))

    def run(mutant: Mutant) -> Result:
        copy = copies.get()
        try:
            return _judge(mutant, copy, options.timeout_s)
        finally:
            copies.put(copy)

    with ThreadPoolExecutor(options.jobs) as pool:
        for result in (bar := tqdm(pool.map(run, mutants), total=len(mutants), unit="mutant")):
            bar.write(_line(result))
            sys.stdout.flush()
            yield result


def _copy(folder: Path) -> Path:
    folder.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def _judge(mutant: Mutant, copy: Path, timeout_s: float) -> Result:
    path, began = copy / mutant.file, time.monotonic()
    text = path.read_text()
    path.write_text(text.replace(mutant.old, mutant.new, 1))
    try:
        return Result(mutant, _fate(mutant.tests, copy, timeout_s), time.monotonic() - began)
    finally:
        path.write_text(text)


def _fate(tests: tuple[str, ...], copy: Path, timeout_s: float) -> str:
    """Kernels run in Triton's interpreter, which is a process of its own."""
    end = time.monotonic() + timeout_s
    kernels = tuple(test for test in tests if test.startswith("tests/kernels"))
    for some in (tuple(test for test in tests if test not in kernels), kernels):
        if not some:
            continue
        code = _pytest(some, copy, end - time.monotonic(), interpreted=some is kernels)
        if code != 0:
            return code if isinstance(code, str) else _meaning(code)
    return "alive"


def _meaning(code: int) -> str:
    return "dead" if code in FAILED else f"error: pytest ended with {code}"


def _pytest(tests: tuple[str, ...], copy: Path, timeout_s: float, interpreted: bool) -> int | str:
    """The exit code; "hung" if time is up."""
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment.setdefault("PROBLEMS", "120")
    if interpreted:
        environment["TRITON_INTERPRET"] = "1"
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *OPTIONS, *tests],
        cwd=copy,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(max(timeout_s, 1))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return "hung"


def _line(result: Result) -> str:
    """One row of the table."""
    mutant = result.mutant
    what = f"{mutant.file}: {mutant.name}" if mutant.old else " ".join(mutant.tests)
    return f"{result.fate:6} {result.seconds:6.1f} s  {what}"


def _report(results: list[Result], options: argparse.Namespace) -> int:
    alive = [r for r in results if r.fate == "alive"]
    broken = [r for r in results if r.fate.startswith("error")]
    if options.baseline:
        return int(len(alive) < len(results))
    print(f"{len(results)} mutants, {len(alive)} alive, {len(broken)} could not be judged")
    return int(bool(broken) or len(alive) > options.most_alive)


if __name__ == "__main__":
    sys.exit(main())

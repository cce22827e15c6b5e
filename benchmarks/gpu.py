"""How fast is GPA on this GPU beside dense attention and its peers, and how far from the limit?

    python benchmarks/gpu.py --out DIR [--only NAME ...] [--peers DIR] [--limit-s 500]
    python benchmarks/gpu.py --out DIR --tiles      every tile of every kernel that compiles
    python benchmarks/gpu.py --out DIR --dry        tiny cases without a GPU: what a GPU alone can
                                                    run stops just before its launch

All contenders of a case run in one process on the same inputs and, where they take one, the same
selection. "gpa" selects and attends; "attend" and its rivals are given the selection. Dense
attention is `scaled_dot_product_attention`, by each of its backends that takes the inputs.
FlexAttention is compiled with max-autotune and given the same block lists, its inputs laid out
block by block beforehand. "far" adds what is not selected, through means. `--peers DIR` names a
folder that holds the Python package `fastvideo_kernel` (VSA; its Triton kernel is called, on inputs
laid out beforehand).

Rows go to DIR/bench.jsonl one by one (`row_file`); a run goes on where the last one stopped. Rows
are made in a process of their own, which is started again when it dies, until the time is over;
then all rows become DIR/bench.md, and, with `--commit`, `results/GPU.json` and `.md`. Columns:
`lists` what the features are of (`gpu_cases`); `ms` median of repeats; `least_ms` the larger of the
least operations over the measured matrix product rate and the least bytes over the measured copy
rate; `of_least` time over least time; `tflops` operations on selected pairs over time; `memory`
peak allocation over that of inputs, outputs and gradients; `error` largest difference from the
`torch` backend, over the largest output.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpu_tiles
import measure
import torch
from gpu_cases import CASES, DRY, Case
from gpu_contenders import FAR, NotLaunched, Problem
from gpu_device import Bench
from row_file import Key, RowFile
from torch import Tensor

PHASES = ("forward", "forward+backward")
RESTART = 3  # the exit status of a process whose GPU takes no more work
NAME = {False: "bench", True: "tiles"}
Run = Callable[[], dict[str, Any]]


def rows(case: Case, bench: Bench, peers: bool) -> Iterator[tuple[Key, Run]]:
    """Every row of a case by its key, not yet measured; inputs are drawn when the first is."""
    problems: dict[str, Problem] = {}

    def problem(lists: str) -> Problem:
        if lists not in problems:
            problems.clear()
            problems[lists] = Problem(case, bench, lists)
        return problems[lists]

    for lists in case.lists:
        yield (case.name, lists, "select", "forward"), lambda s=lists: select(problem(s))
        for who in contenders(bench, peers):
            for phase in PHASES:
                yield (
                    (case.name, lists, who, phase),
                    lambda s=lists, w=who, p=phase: attend(problem(s), w, p),
                )
    for who in bench.dense:
        for phase in PHASES:
            key = (case.name, case.lists[-1], f"dense {who}", phase)
            yield key, lambda w=who, p=phase: attend(problem(case.lists[-1]), f"dense {w}", p)


def contenders(bench: Bench, peers: bool) -> tuple[str, ...]:
    return ("gpa", "attend", "flex", *(("VSA",) if peers else ()), *FAR, "torch backend")


def select(problem: Problem) -> dict[str, Any]:
    def run() -> Tensor:
        with torch.no_grad():
            return problem.select().blocks

    work, traffic = problem.selection_work()
    least = problem.bench.limits.least_seconds(work, traffic)
    return line(problem.bench.seconds(run), least, work)


def attend(problem: Problem, who: str, phase: str) -> dict[str, Any]:
    bench, backward, dense = problem.bench, phase != "forward", who.startswith("dense")
    attention, laid_out = problem.contender(who)
    inputs = problem.laid_out() if laid_out else problem.inputs
    run = once(attention, inputs, backward)
    seconds = bench.seconds(run)
    work = problem.operations(who, backward)
    row = line(seconds, bench.limits.least_seconds(work, problem.traffic(backward)), work)
    peak = bench.peak_bytes(run)
    if peak is not None:
        given, all_of_them = (4, 8) if backward else (3, 4)
        row["memory"] = (peak / problem.unit + given) / all_of_them
    if not dense and not backward:
        with torch.no_grad():
            out = attention(*inputs)
        out = problem.composed(out) if laid_out else out
        truth = problem.truth(who)
        row["error"] = float((out - truth).abs().max() / truth.abs().max())
    return row


def once(attention: Any, inputs: list[Tensor], backward: bool) -> Callable[[], Any]:
    if not backward:

        def forward() -> Tensor:
            with torch.no_grad():
                return attention(*inputs)

        return forward
    leaves = [x.detach().requires_grad_() for x in inputs]
    cotangent = torch.randn_like(inputs[0])

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(attention(*leaves), leaves, cotangent)

    return both


def line(seconds: float, least: float, work: float) -> dict[str, Any]:
    return {
        "ms": 1e3 * seconds,
        "least_ms": 1e3 * least,
        "of_least": seconds / least,
        "tflops": work / seconds / 1e12,
    }


def work(options: argparse.Namespace, file: RowFile) -> int:
    """Measure what is missing; say whether to be started again."""
    until = time.monotonic() + options.limit_s
    bench = Bench(options.dry)
    about = ("device", bench.name)
    if file.wants(about):
        file.end(about, bench.about())
    for case in cases_of(options):
        keyed = gpu_tiles.rows(case, bench) if options.tiles else rows(case, bench, options.peers)
        for key, run in keyed:
            if time.monotonic() > until:
                return 0
            if not file.wants(key):
                continue
            file.begin(key)
            row = tried(run)
            file.end(key, row)
            print(*key, *(f"{k} {measure._cell(v)}" for k, v in row.items()), flush=True)
            if bench.is_lost():
                return RESTART
    return 0


def tried(run: Run) -> dict[str, Any]:
    try:
        return run()
    except Exception as error:  # a rival's or a compiler's own errors are of any type
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        kind = "" if isinstance(error, NotLaunched) else f"{type(error).__name__}: "
        torch.cuda.empty_cache()
        return {"note": (kind + text)[:160]}


def cases_of(options: argparse.Namespace) -> list[Case]:
    cases = DRY if options.dry else CASES
    return [c for c in cases if not options.only or c.name.startswith(tuple(options.only))]


def drive(argv: list[str], options: argparse.Namespace, file: RowFile) -> None:
    """Let processes measure until nothing is left, the time is over, or one got nowhere."""
    until = time.monotonic() + options.limit_s
    environment = dict(os.environ)
    if options.dry:
        environment |= {"TRITON_INTERPRET": "1"}
    while (left := until - time.monotonic()) > 0:
        size = file.path.stat().st_size if file.path.exists() else 0
        command = [sys.executable, __file__, *argv, "--work", "--limit-s", str(left)]
        try:
            # A row that began may end a little late; what hangs is ended.
            status = subprocess.run(command, env=environment, timeout=left + 20).returncode
        except subprocess.TimeoutExpired:
            return
        if status == 0 or not file.path.exists() or file.path.stat().st_size == size:
            return


def report(options: argparse.Namespace, file: RowFile) -> list[dict[str, Any]]:
    """Write and print the table of all rows there are."""
    names = ("case", "lists", "who", "phase")
    found, device = [], {}
    for row in file.rows():
        key, values = row["key"], {k: v for k, v in row.items() if k != "key"}
        if key[0] == "device":
            device = values
        else:
            found.append(dict(zip(names, key)) | values)
    order = [case.name for case in (*CASES, *DRY)]
    found.sort(key=lambda row: order.index(row["case"]))
    question = __doc__.splitlines()[0]
    measure.write(NAME[options.tiles], question, found, folder=options.out, **device)
    if options.commit and "gpu" in device:
        stem = device["gpu"].lower().replace(" ", "-") + ("-tiles" if options.tiles else "")
        measure.write(stem, question, found, **device)
    print((options.out / f"{NAME[options.tiles]}.md").read_text())
    return found


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows")
    parser.add_argument("--only", nargs="+", default=[], help="cases whose names start so")
    parser.add_argument("--peers", type=Path, help="folder that holds fastvideo_kernel")
    parser.add_argument("--tiles", action="store_true", help="time every tile of every kernel")
    parser.add_argument("--limit-s", type=float, default=500.0, help="no row begins after this")
    parser.add_argument("--dry", action="store_true", help="tiny cases, without a GPU")
    parser.add_argument("--commit", action="store_true", help="write benchmarks/results too")
    parser.add_argument("--work", action="store_true", help="measure in this process")
    options = parser.parse_args(argv)
    if not options.dry and not torch.cuda.is_available():
        parser.error("no GPU here; --dry rehearses the same program without one")
    if options.peers is not None:
        os.environ["FASTVIDEO_VSA_TRITON"] = "1"
        sys.path.insert(0, str(options.peers))
    file = RowFile(options.out / f"{NAME[options.tiles]}.jsonl")
    if options.work:
        raise SystemExit(work(options, file))
    drive(argv, options, file)
    return report(options, file)


if __name__ == "__main__":
    main()

"""How long does each kernel take on this GPU, beside its prediction?

    python benchmarks/gpu_profile.py --out DIR [--limit-s 400] [--dry] [--commit]

Selection, forward and backward of each case, features of photographs where there are, timed kernel
by kernel by torch's profiler; of the first cases, forward and backward with a far field besides.
Cases go to DIR/profile.jsonl one by one (`row_file`), and all to
DIR/profile.md. Columns: `ms` of one call, all its launches; `launches`; `predicted` the floor of
results/predicted.json, for as many heads; `of_predicted` their ratio.
"""

import argparse
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import measure
import torch
from gpu import once, tried
from gpu_cases import CASES, DRY, Case
from gpu_contenders import FAR, NotLaunched, Problem
from gpu_device import Bench
from row_file import RowFile

SHAPES = {"ChaL 4": "ChaL 512x256"}  # a case by another name than its shape
REPEATS = 5


def keys(cases: tuple[Case, ...]) -> Iterator[tuple[Case, str]]:
    """Cases and who is profiled."""
    for number, case in enumerate(cases):
        yield case, "gpa"
        if number < 2:
            yield from ((case, who) for who in FAR)


def profiled(case: Case, who: str, bench: Bench) -> dict[str, Any]:
    """Milliseconds and launches of each kernel in one call, means over a few."""
    problem = Problem(case, bench, case.lists[0])
    run = once(problem.contender(who)[0], problem.inputs, True)
    run()
    if not bench.is_gpu:
        raise NotLaunched("not launched: the profiler")
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        for _ in range(REPEATS):
            run()
        torch.cuda.synchronize()
    kernels = {
        event.key: {
            "ms": event.self_device_time_total / 1e3 / REPEATS,
            "launches": event.count / REPEATS,
        }
        for event in found.key_averages()
        if event.self_device_time_total > 0
    }
    return {"kernels": kernels}


def floors(case: Case, who: str, gpu: str) -> dict[str, float]:
    """The predicted milliseconds of each kernel, for the heads of a case."""
    shape = SHAPES.get(case.name, case.name)
    shapes = {shape, f"{shape}, far {FAR.get(who)}"}
    path = measure.RESULTS / "predicted.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    chip = "H200" if "H200" in gpu else "H100"
    share = case.batch * case.heads / 64
    return {
        row["kernel"]: share * row["floor"]
        for row in rows
        if row["chip"] == chip and row["shape"] in shapes
    }


def table(file: RowFile, gpu: str) -> list[dict[str, Any]]:
    """A row for each kernel, the longest first; a note for a case without."""
    cases, rows = {case.name: case for case in (*CASES, *DRY)}, []
    for found in file.rows():
        name, who = found["key"]
        case = cases.get(name)
        label = f"{name}, far {FAR[who]}" if who in FAR else name
        if case is None:
            continue
        if "kernels" not in found:
            rows.append({"case": label, "note": found["note"]})
            continue
        predicted = floors(case, who, gpu)
        for long, values in sorted(found["kernels"].items(), key=lambda x: -x[1]["ms"]):
            kernel = long.removesuffix("_kernel")
            floor = predicted.get(kernel)
            of = {} if floor is None else {"predicted": floor, "of_predicted": values["ms"] / floor}
            names = {"case": label, "kernel": kernel[:60]}
            rows.append({**names, **values, **of})
    return rows


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows")
    parser.add_argument("--limit-s", type=float, default=400.0, help="no case begins after this")
    parser.add_argument("--dry", action="store_true", help="a tiny case, without a GPU")
    parser.add_argument("--commit", action="store_true", help="write benchmarks/results too")
    options = parser.parse_args(argv)
    if not options.dry and not torch.cuda.is_available():
        parser.error("no GPU here; --dry rehearses the same program without one")
    until = time.monotonic() + options.limit_s
    bench, file = Bench(options.dry), RowFile(options.out / "profile.jsonl")
    for case, who in keys(DRY[:1] if options.dry else CASES):
        key = case.name, who
        if file.wants(key) and time.monotonic() < until:
            file.begin(key)
            file.end(key, tried(partial(profiled, case, who, bench)))
    rows = table(file, bench.name)
    question = __doc__.splitlines()[0]
    measure.write("profile", question, rows, folder=options.out, **bench.about())
    if options.commit and bench.is_gpu:
        stem = bench.name.lower().replace(" ", "-")
        measure.write(f"{stem}-profile", question, rows, **bench.about())
    print((options.out / "profile.md").read_text())
    return rows


if __name__ == "__main__":
    main()

"""The GPU benchmark and its README table, as far as a machine without a GPU can tell."""

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from unittest import mock

import gpu
import gpu_profile
import gpu_tests
import pytest
import tables
import torch
from gpu_cases import CASES, DRY, Case, features
from gpu_contenders import Problem, flex_tuning
from row_file import RowFile

import ndgpa

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BOTH = "forward+backward"


class Here:
    """The CPU in place of a GPU."""

    device, is_gpu, backend = torch.device("cpu"), False, None


def test_a_rehearsal_that_is_killed_keeps_its_rows_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu.py", "--out", str(tmp_path), "--dry"]
    environment = os.environ | {"PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.DEVNULL
    )
    file, until = RowFile(tmp_path / "bench.jsonl"), time.monotonic() + 120
    while len(file.rows()) < 3 and time.monotonic() < until:
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    kept = file.rows()
    assert len(kept) >= 3
    with mock.patch.dict(os.environ, environment):
        rows = gpu.main(["--out", str(tmp_path), "--dry"])
    assert file.rows()[: len(kept)] == kept
    assert {row["case"] for row in rows} == {case.name for case in DRY}
    measured = {row["who"] for row in rows if "ms" in row}
    far = {"attend, far site", "attend, far block"}
    assert measured == {"select", "gpa", "attend", *far, "torch backend", "dense math"}
    assert all(row["ms"] > 0 and row["least_ms"] > 0 for row in rows if "ms" in row)
    assert all(row["error"] < 1e-5 for row in rows if "error" in row)
    notes = {row["note"] for row in rows if "note" in row}
    assert notes == {"not launched: flex", "ValueError: takes no ragged blocks"}
    assert "| tiny graph | random | gpa | forward |" in (tmp_path / "bench.md").read_text()


def test_one_failure_does_not_end_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise RuntimeError("no such kernel")

    keyed = [(("pivot 64", "a"), fails), (("pivot 64", "b"), lambda: {"ms": 1.0})]
    monkeypatch.setattr(gpu, "rows", lambda *_: keyed)
    monkeypatch.setattr(gpu, "cases_of", lambda options: CASES[:1])
    file = RowFile(tmp_path / "rows.jsonl")
    options = Namespace(limit_s=60, dry=True, tiles=False, peers=None)
    assert gpu.work(options, file) == 0
    _, failed, other = file.rows()
    assert failed["note"] == "RuntimeError: no such kernel"
    assert other["ms"] == 1.0


def test_a_process_that_has_lost_its_gpu_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "rows", lambda *_: [(("pivot 64",), lambda: {"ms": 1.0})])
    monkeypatch.setattr(gpu, "cases_of", lambda options: CASES[:1])
    monkeypatch.setattr(gpu.Bench, "is_lost", lambda self: True)
    options = Namespace(limit_s=60, dry=True, tiles=False, peers=None)
    assert gpu.work(options, RowFile(tmp_path / "rows.jsonl")) == gpu.RESTART


def test_a_line_that_is_cut_off_is_measured_again_and_what_hangs_twice_is_not(
    tmp_path: Path,
) -> None:
    file = RowFile(tmp_path / "rows.jsonl")
    file.begin(("a",))
    file.end(("a",), {"ms": 1.0})
    file.begin(("b",))
    with file.path.open("a") as raw:
        raw.write('{"key": ["b"], "ms"')
    assert not file.wants(("a",))
    assert file.wants(("b",))
    file.begin(("b",))
    assert not file.wants(("b",))
    assert file.rows() == [{"key": ["a"], "ms": 1.0}, {"key": ["b"], "note": "did not end"}]


def test_rows_that_the_time_left_over_are_not_begun(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.jsonl")
    options = Namespace(limit_s=-1, dry=True, tiles=False, peers=None, only=[])
    assert gpu.work(options, file) == 0
    assert [row["key"][0] for row in file.rows()] == ["device"]


@pytest.mark.parametrize("phase", ["fwd", "bwd"])
@pytest.mark.parametrize("case", [c for c in CASES if c.dtype.itemsize == 2], ids=lambda c: c.name)
def test_flex_attention_has_a_tile_for_the_lists_of_every_case(case: Case, phase: str) -> None:
    """From torch's own tables for an H100: a tile must divide cells and blocks."""
    from torch._inductor import config
    from torch._inductor.template_heuristics.triton import CUDAConfigHeuristic

    space = case.space()
    places, sites = space.cell_sites.shape[1], space.sites_per_block
    if not space.is_even or min(places, sites) < 16:
        pytest.skip("is not given to it")
    options, search = flex_tuning(places, sites)
    with (
        mock.patch("torch.cuda.get_device_capability", return_value=(9, 0)),
        config.patch(max_autotune=True, max_autotune_flex_search_space=search),
    ):
        heuristic = CUDAConfigHeuristic()
        if phase == "fwd":
            found = heuristic.get_flex_attn_fwd_configs(case.width, case.dtype)
            tiles = [
                (options.get("fwd_BLOCK_M", c.block_m), options.get("fwd_BLOCK_N", c.block_n))
                for c in found
            ]
            fits = [places % m == 0 and sites % n == 0 for m, n in tiles]
        else:
            found = heuristic.get_flex_attn_bwd_configs(case.width, case.dtype)
            fits = [
                places % c.block_m1 == 0
                and sites % c.block_n1 == 0
                and places % c.block_m2 == 0
                and sites % c.block_n2 == 0
                for c in found
            ]
    assert any(fits)


@pytest.mark.parametrize("space", [ndgpa.Image((16, 12), 4, 1), ndgpa.Video((3, 8, 8), 2, 1)])
def test_neighbours_in_photographs_are_alike(space: ndgpa.SpatialStructure) -> None:
    case = Case("any", lambda: space, 2, 2, 4, 3, torch.float32)
    x = features(case, space, "photographs", torch.device("cpu"))
    noise = features(case, space, "random", torch.device("cpu"))
    assert x.shape == noise.shape == (2, 2, space.num_sites, 4)
    assert x.isfinite().all()
    for y, least, most in ((x, 0.1, 1.5), (noise, 1.5, 2.5)):
        change = (y[:, :, 1:] - y[:, :, :-1]).square().mean() / y.var()
        assert least / 10 < change < most
    assert not torch.equal(x[0], x[1])


def test_the_least_work_is_counted_by_hand() -> None:
    """64 sites in 4 cells of 16 read 2 blocks of 4 sites: 512 pairs of 8 features a head."""
    case = Case("hand", lambda: ndgpa.Image((8, 8), 2, 2), 1, 2, 8, 2, torch.float32)
    problem = Problem(case, Here(), "random")
    assert problem.pairs() == 2 * 512
    assert problem.operations("attend", backward=False) == 2 * 2 * (2 * 512) * 8
    far = 2 * 64 * 16
    assert problem.operations("attend, far site", False) == 2 * 2 * (2 * 512 + far) * 8
    assert problem.operations("dense math", backward=True) == 7 * 2 * (2 * 64 * 64) * 8
    assert problem.traffic(backward=False) == 4 * (2 * 64 * 8 * 4)
    assert problem.selection_work() == (2 * 2 * 16 * 16 * 8, 2 * (2 * 64 * 8 * 4))


def test_float32_has_a_dense_rival() -> None:
    from gpu_device import DENSE

    assert torch.nn.attention.SDPBackend.EFFICIENT_ATTENTION in DENSE.values()


def test_a_profile_stands_beside_its_prediction(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "profile.jsonl")
    kernels = {"lse_kernel": {"ms": 2.0, "launches": 1}, "sort": {"ms": 3.0, "launches": 2}}
    file.end(("pivot 64", "gpa"), {"kernels": kernels})
    file.end(("ChaL 4", "attend, far site"), {"note": "out of memory"})
    other, lse, note = gpu_profile.table(file, "NVIDIA H100")
    assert other == {"case": "pivot 64", "kernel": "sort", "ms": 3.0, "launches": 2}
    assert lse["kernel"] == "lse"
    assert lse["of_predicted"] == pytest.approx(2.0 / lse["predicted"])
    assert note == {"case": "ChaL 4, far site", "note": "out of memory"}


def test_the_table_of_tests_says_what_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"test": "a", "outcome": "passed"},
        {"test": "b", "outcome": "failed", "error": "x\nE wrong by 3"},
        {"test": "c", "outcome": "failed"},
        {"test": "c", "outcome": "passed"},
    ]
    text = "\n".join(json.dumps(row) for row in rows) + '\n{"test": "d'
    (tmp_path / "test.jsonl").write_text(text)
    assert gpu_tests.main(["--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "| passed | 2 |" in said
    assert "E wrong by 3" in said
    assert gpu_tests.main(["--out", str(tmp_path / "none")]) == 1


def test_the_readme_says_what_the_result_files_say() -> None:
    assert f"<!-- gpu -->\n{tables.gpus()}\n<!-- /gpu -->" in README.read_text()


def test_a_result_file_becomes_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.gpus().startswith("No GPU has been measured yet")
    times = {("gpa", BOTH): 2.0, ("attend", BOTH): 1.5, ("select", "forward"): 0.5}
    times |= {("flex", BOTH): 3.0}
    rows = [_row("pivot", "photographs", *who, ms=ms) for who, ms in times.items()]
    rows += [_row("pivot", "random", f"dense {w}", BOTH, ms=ms) for w, ms in DENSE_MS.items()]
    rows.append(_row("graph", "random", "flex", BOTH, note="takes no ragged blocks"))
    result = {"gpu": "A chip", "machine": {"torch": "2.11"}, "rows": rows}
    (tmp_path / "a-chip.json").write_text(json.dumps(result))
    (tmp_path / "a-chip-profile.json").write_text(json.dumps(result | {"rows": [{"case": "x"}]}))
    table = tables.gpus()
    assert "A chip, torch 2.11" in table
    assert "| pivot | photographs | 2 ms | 0.5 ms | 160 ms | 80 | 3 ms | 2 |" in table
    assert "| graph | random | not run | not run | not run | - | not run | - |" in table


DENSE_MS = {"flash": 200.0, "cudnn": 160.0}


def _row(case: str, lists: str, who: str, phase: str, **values: object) -> dict[str, object]:
    return {"case": case, "lists": lists, "who": who, "phase": phase, **values}

"""The GPU benchmark and its README table, as far as a machine without a GPU can tell."""

import json
from pathlib import Path

import gpu
import pytest
import tables

README = Path(__file__).parent.parent / "README.md"


def test_the_benchmark_runs_on_the_cpu_with_tiny_cases() -> None:
    rows = gpu.main(["--tiny"])
    assert not [row for row in rows if "note" in row]
    assert {row["case"] for row in rows} == {"tiny image", "tiny graph"}
    assert {row["who"] for row in rows} == {
        "select",
        "gpa",
        "attend",
        "torch backend",
        "dense math",
    }
    assert all(row["ms"] > 0 and row["least_ms"] > 0 for row in rows)
    assert all(row["error"] < 1e-5 for row in rows if "error" in row)


def test_a_run_of_some_cases_leaves_the_others_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu.measure, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu, "capability", lambda: [9, 0])

    class Here:
        name, limits = "A Chip", gpu.measure.Limits(1.0, 1.0)

    def row(case: str, ms: float) -> dict[str, object]:
        return {"case": case, "who": "gpa", "phase": "forward", "ms": ms}

    gpu.write(Here(), [row("pivot 128", 1.0), row("ChaL 1", 2.0)], "")
    gpu.write(Here(), [row("pivot 64", 3.0), row("ChaL 1", 4.0)], "")
    rows = json.loads((tmp_path / "a-chip.json").read_text())["rows"]
    assert [(r["case"], r["ms"]) for r in rows] == [
        ("pivot 64", 3.0),
        ("pivot 128", 1.0),
        ("ChaL 1", 4.0),
    ]


def test_the_least_work_is_counted_by_hand() -> None:
    """64 sites in 4 cells of 16 read 2 blocks of 4 sites: 512 pairs of 8 features a head."""
    import torch

    import ndgpa

    class Here:
        device, is_gpu = torch.device("cpu"), False

    case = gpu.Case("hand", lambda: ndgpa.Image((8, 8), 2, 2), 1, 2, 8, 2, torch.float32)
    problem = gpu.Problem(case, Here())
    assert problem.pairs() == 2 * 512
    assert problem.operations(backward=False) == 2 * 2 * (2 * 512) * 8
    assert problem.operations(backward=True, dense=True) == 7 * 2 * (2 * 64 * 64) * 8
    assert problem.traffic(backward=False) == 4 * (2 * 64 * 8 * 4)
    assert problem.selection_work() == (2 * 2 * 16 * 16 * 8, 2 * (2 * 64 * 8 * 4))


def test_the_readme_says_what_the_result_files_say() -> None:
    assert f"<!-- gpu -->\n{tables.gpus()}\n<!-- /gpu -->" in README.read_text()


def test_a_result_file_becomes_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.gpus().startswith("No GPU has been measured yet")
    both = "forward+backward"
    times = {("gpa", both): 2.0, ("attend", both): 1.5, ("select", "forward"): 0.5}
    times |= {("dense flash", both): 200.0, ("dense cudnn", both): 160.0, ("flex", both): 3.0}
    rows = [{"case": "pivot", "who": w, "phase": p, "ms": ms} for (w, p), ms in times.items()]
    rows.append({"case": "graph", "who": "flex", "phase": both, "note": "takes no ragged blocks"})
    result = {"gpu": "A chip", "machine": {"torch": "2.11"}, "rows": rows}
    (tmp_path / "a-chip.json").write_text(json.dumps(result))
    table = tables.gpus()
    assert "A chip, torch 2.11" in table
    assert "| pivot | 2 ms | 0.5 ms | 160 ms | 80 | 3 ms | 2 |" in table
    assert "| graph | not run | not run | not run | - | not run | - |" in table

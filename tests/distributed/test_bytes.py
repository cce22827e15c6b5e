"""Bytes at the paper's pivot, on features of photographs, and the results that are shown."""

import json
from pathlib import Path

import parallel
import pytest

import ndgpa
from ndgpa.distributed import ByTraffic, lay_out, traffic_of

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.slow
@pytest.mark.parametrize("name", parallel.PHOTOGRAPHS)
def test_below_a_fifth_of_gathering_everything(name: str) -> None:
    image, x, other = parallel.space(256), parallel.patches(name, 256), parallel.filtered(name, 256)
    blocks = ndgpa.select(x, x, image, 12).blocks
    before = ndgpa.select(other, other, image, 12).blocks
    of_another_layer = ByTraffic(traffic_of(before, image))
    for ranks in (2, 4, 16):
        assert parallel.share_sent(blocks, lay_out(image, ranks, of_another_layer)) < 0.2


def test_real_processes_sent_what_was_foretold() -> None:
    rows = json.loads((RESULTS / "parallel_real.json").read_text())["rows"]
    assert [row["ranks"] for row in rows] == [1, 2, 4]
    assert all(row["sent"] == row["foretold"] for row in rows)


def test_the_tables_are_those_of_the_results() -> None:
    page = (ROOT / "docs" / "distributed.md").read_text()
    for name in ("bytes", "real", "simulated"):
        result = (RESULTS / f"parallel_{name}.md").read_text()
        assert all(line in page for line in result.splitlines() if line.startswith("|"))

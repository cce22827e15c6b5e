"""The ranking of benchmarks/ranking.py: budgets are honest, the page shows the results."""

from pathlib import Path

import pytest
import torch
from entrants import ADAPTIVE, CAUSAL, ENTRANTS, LEARNT, Call, Place
from ranking_tables import ranking

import ndgpa

ROOT = Path(__file__).parents[1]
SHAPES = {"image": (16, 16), "sequence": (256,), "video": (4, 8, 8)}
BLOCKS = {
    "image": {1: 1, 4: 2, 16: 4},
    "video": {1: 1, 4: (1, 2, 2), 16: (1, 4, 4)},
}
READ = {  # keys that a query reads, of a setting's entries, and how many it looks at before
    "GPA, blocks of 4": 16,
    "GPA, blocks of 16": 1,
    "Neighborhood": 0,
    "Hydra, two dilations": 0,
    "MultiAxis": 0,
    "LocalSparse": 0,
}


def place(kind: str) -> Place:
    def space(block: int, cell: int) -> ndgpa.SpatialStructure:
        if kind == "sequence":  # with time
            return ndgpa.Sequence(256, block, cell)
        return ndgpa.Grid(SHAPES[kind], BLOCKS[kind][block], BLOCKS[kind][cell])

    return Place(kind, SHAPES[kind], torch.randn(1, 2, 256, 8), space)


def keys_read(call: Call, x: torch.Tensor) -> float:
    """Values that name their sites show which keys have a weight."""
    weights = call(x, x, torch.eye(256).expand(1, 2, -1, -1))
    return float((weights > 0).sum(dim=-1).double().mean())


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("name", READ)
def test_entries_are_what_is_looked_at_and_what_is_read(name: str, kind: str) -> None:
    here = place(kind)
    affordable = [setting for setting in ENTRANTS[name](here) if setting.entries <= 128]
    for setting in affordable[:: max(1, len(affordable) // 4)]:
        assert setting.entries == pytest.approx(READ[name] + keys_read(setting.call, here.features))


@pytest.mark.parametrize("kind", SHAPES)
def test_settings_come_cheapest_first_and_answer(kind: str) -> None:
    here = place(kind)
    x = here.features
    for name, family in {**ENTRANTS, **LEARNT, **(CAUSAL if kind == "sequence" else {})}.items():
        if name not in ADAPTIVE and (settings := family(here)):
            costs = [setting.entries for setting in settings]
            assert costs == sorted(costs), name
            assert settings[0].call(x, x, x).isfinite().all(), name


def test_the_page_has_the_tables_of_the_results() -> None:
    page = (ROOT / "docs" / "ranking.md").read_text()
    for name, table in ranking(ROOT / "benchmarks" / "results").items():
        assert f"<!-- {name} -->\n{table}\n<!-- /{name} -->" in page

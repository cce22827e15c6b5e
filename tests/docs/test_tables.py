"""The tables of the pages are those of the committed results."""

import re
from pathlib import Path

import pytest
from tables import HELD_OUT, coverage, filled, pages

PAGES = pages()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_show_the_results(page: Path) -> None:
    assert filled(page.read_text(), PAGES[page]) == page.read_text()


def test_every_table_has_its_place_and_every_place_its_table() -> None:
    for page, tables in PAGES.items():
        assert set(re.findall(r"<!-- (\w+) -->", page.read_text())) == set(tables), page.name


def test_a_table_that_is_another_is_replaced() -> None:
    text = "a\n<!-- one -->\nold\n<!-- /one -->\nb\n"
    assert filled(text, {"one": "new"}) == "a\n<!-- one -->\nnew\n<!-- /one -->\nb\n"


def test_coverage_is_that_of_blocks_of_16_sites_in_cells_of_four() -> None:
    row = {"rule": "TopK(12)", "sites a block": 16, "share_1024": 0.9}
    rows = [
        {**row, "features": name, "blocks a cell": cell, "share_128": 0.1 * i, "share_16": 1.0}
        for i, name in enumerate(HELD_OUT)
        for cell in (1, 4)
    ]
    rows[0]["share_128"] = 0.7  # of cells of one
    last = coverage({"rows": rows}).splitlines()[-1]
    shares = (".000", ".100", ".200", ".300", ".400", ".500")
    assert last == " | ".join(["| TopK(12)", *(f"{share} / 1.000" for share in shares)]) + " |"

"""The picture of queries and their keys."""

from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest import mock

import pytest
import torch

from ndgpa.analysis import draw_graph_key_lines, draw_key_lines

pytest.importorskip("matplotlib")

from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

QUERY_IMAGE, KEY_IMAGE = torch.rand(3, 4, 6), torch.rand(1, 5, 7)
QUERIES = torch.tensor([0, 23])
KEYS = torch.tensor([[0, 8, -1], [34, 3, 1]])
WEIGHTS = torch.tensor([[0.8, 0.2, 0.0], [0.5, 0.5, 0.001]])


def drawn_lines() -> list[LineCollection]:
    axes = Figure().add_subplot()
    draw_key_lines(axes, QUERY_IMAGE, KEY_IMAGE, QUERIES, KEYS, WEIGHTS)
    return [c for c in axes.collections if isinstance(c, LineCollection)]


def test_lines_run_from_the_query_to_its_keys() -> None:
    shift = 6 + 2  # the width of the query image and the gap
    segments = [[line.tolist() for line in lines.get_segments()] for lines in drawn_lines()]
    assert segments[0] == [[[0, 0], [shift, 0]], [[0, 0], [1 + shift, 1]]]
    assert segments[1] == [[[5, 3], [6 + shift, 4]], [[5, 3], [3 + shift, 0]]]


def test_opacity_is_the_weight_over_the_largest() -> None:
    opacities = [lines.get_colors()[:, 3].tolist() for lines in drawn_lines()]
    assert opacities[0] == pytest.approx([1.0, 0.25])
    assert opacities[1] == pytest.approx([1.0, 1.0])


def test_a_query_that_reads_nothing_gets_no_line() -> None:
    axes = Figure().add_subplot()
    nothing = torch.zeros(2, 3)
    draw_key_lines(axes, QUERY_IMAGE, KEY_IMAGE, QUERIES, torch.full((2, 3), -1), nothing)
    assert all(len(lines.get_segments()) == 0 for lines in axes.collections)


def test_lines_of_a_graph_run_between_its_nodes() -> None:
    position = torch.tensor([[0.0, 0.0], [2.0, 1.0], [4.0, 3.0]])
    edges = torch.tensor([[0, 1], [1, 2]])
    axes = Figure().add_subplot()
    weights = torch.tensor([[0.5, 0.25, 0.001]])
    draw_graph_key_lines(
        axes, position, edges, torch.tensor([0]), torch.tensor([[2, 1, 0]]), weights
    )
    graph, lines = (c for c in axes.collections if isinstance(c, LineCollection))
    assert [x.tolist() for x in graph.get_segments()] == [[[0, 0], [2, 1]], [[2, 1], [4, 3]]]
    assert [x.tolist() for x in lines.get_segments()] == [[[0, 0], [4, 3]], [[0, 0], [2, 1]]]
    assert lines.get_colors()[:, 3].tolist() == pytest.approx([1.0, 0.5])


def test_a_path_gets_a_picture_and_no_half_of_one(tmp_path: Path) -> None:
    draw_key_lines(tmp_path / "lines.png", QUERY_IMAGE, KEY_IMAGE, QUERIES, KEYS, WEIGHTS)
    assert [path.name for path in tmp_path.iterdir()] == ["lines.png"]
    assert (tmp_path / "lines.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_matplotlib_is_named_with_its_extra() -> None:
    def find_spec(name: str) -> ModuleSpec | None:
        assert name == "matplotlib"

    with (
        mock.patch("importlib.util.find_spec", find_spec),
        pytest.raises(ImportError, match=r"needs matplotlib; install it with: .*ndgpa\[viz\]"),
    ):
        draw_key_lines("never.png", QUERY_IMAGE, KEY_IMAGE, QUERIES, KEYS, WEIGHTS)


@pytest.mark.bad_input
def test_bad_input_is_refused() -> None:
    def draw(**changed: torch.Tensor) -> None:
        good = {
            "query_image": QUERY_IMAGE,
            "key_image": KEY_IMAGE,
            "queries": QUERIES,
            "keys": KEYS,
            "weights": WEIGHTS,
        }
        draw_key_lines(Figure().add_subplot(), **{**good, **changed})

    with pytest.raises(ValueError, match="queries must be between 0 and 23; got 0 to 24"):
        draw(queries=torch.tensor([0, 24]))
    with pytest.raises(ValueError, match="keys must be between 0 and 34; got 0 to 35"):
        draw(keys=KEYS + (KEYS == 34))
    with pytest.raises(ValueError, match=r"key_image must have shape \(1 or 3, height, width\)"):
        draw(key_image=torch.rand(2, 5, 7))
    with pytest.raises(ValueError, match=r"position must have shape \(nodes, 2\)"):
        draw_graph_key_lines("never.png", torch.rand(9, 3), KEYS[:, :2], QUERIES, KEYS, WEIGHTS)

"""The examples on graphs: their data, and a run of seconds."""

import pytest

pytest.importorskip("torch_geometric")

from examples.graphs.mesh import train as mesh
from examples.graphs.mesh.data import REACH, Surface


def test_a_smoke_run_writes_its_table_and_its_picture(tmp_path) -> None:
    mesh.main(out=tmp_path, smoke=True)
    table = (tmp_path / "mesh.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines()[-3:]] == [
        "| message passing",
        "| gpa",
        "| dense",
    ]
    assert (tmp_path / "mesh.png").stat().st_size > 10_000
    assert not list(tmp_path.glob(".part-*"))


def test_distances_are_zero_at_the_mark_and_no_shorter_than_straight_lines() -> None:
    surface = Surface(0, 20, marks=3)
    for mark, vertex in enumerate(surface.marks.tolist()):
        sample = surface.sample(mark)
        straight = (surface.position - surface.position[vertex]).norm(dim=1)
        assert sample.y[vertex] == 0
        assert (sample.y >= straight - 1e-5).all()
        assert sample.y.isfinite().all()  # the surface is one piece


def test_vertices_within_reach_of_the_mark_are_marked() -> None:
    surface = Surface(0, 20, marks=1)
    near = {int(surface.marks[0])}
    for _ in range(REACH):
        near |= {b for a, b in surface.edge_index.T.tolist() if a in near}
    assert surface.near[0].nonzero()[:, 0].tolist() == sorted(near)

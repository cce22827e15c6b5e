"""The examples on graphs: their data, and a run of seconds."""

import pytest
import torch

pytest.importorskip("torch_geometric")

from examples.graphs.mesh import train as mesh
from examples.graphs.mesh.data import Surface
from examples.graphs.superpixels import train as superpixels
from examples.graphs.superpixels.data import CLASSES, MARK, MARKS, Collage
from tests.draw import seeded


@pytest.mark.parametrize(("example", "name"), [(mesh, "mesh"), (superpixels, "superpixels")])
def test_a_smoke_run_writes_its_table_and_its_picture(example, name, tmp_path) -> None:
    example.main(out=tmp_path, smoke=True)
    table = (tmp_path / f"{name}.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines()[-3:]] == [
        "| message passing",
        "| gpa",
        "| dense",
    ]
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert not list(tmp_path.glob(".part-*"))


def test_distances_are_zero_at_the_mark_and_no_shorter_than_straight_lines() -> None:
    surface = Surface(0, 20, marks=3)
    for mark, vertex in enumerate(surface.marks.tolist()):
        sample = surface.sample(mark)
        straight = (surface.position - surface.position[vertex]).norm(dim=1)
        assert sample.y[vertex] == 0
        assert (sample.y >= straight - 1e-5).all()
        assert sample.y.isfinite().all()  # the surface is one piece


def test_vertices_within_two_edges_of_the_mark_are_marked() -> None:
    surface = Surface(0, 20, marks=1)
    near = {int(surface.marks[0])}
    for _ in range(2):
        near |= {b for a, b in surface.edge_index.T.tolist() if a in near}
    assert surface.near[0].nonzero()[:, 0].tolist() == sorted(near)


def test_marks_name_the_photograph_of_their_superpixel() -> None:
    sample = Collage(0, "train", 2, 40).sample(seeded(0))
    marked = sample.x[:, -CLASSES:]
    assert (marked > 0).sum(dim=0).tolist() == [MARKS] * CLASSES
    sites, number = marked.nonzero().T
    assert torch.equal(sample.y[sites], number)
    assert set(marked.unique().tolist()) == {0.0, MARK}


def test_regions_are_adjacent_where_their_pixels_touch() -> None:
    collage = Collage(0, "test", 2, 24)
    region, pairs = collage.region, set()
    for r in range(region.shape[0]):
        for c in range(region.shape[1]):
            for other in ((r + 1, c), (r, c + 1)):
                if max(other) < region.shape[0] and region[r, c] != region[other]:
                    pairs |= {(region[r, c], region[other]), (region[other], region[r, c])}
    assert {tuple(p) for p in collage.edge_index.T.tolist()} == pairs

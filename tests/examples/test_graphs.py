"""The examples on graphs: their data, and a run of seconds."""

import pytest

pytest.importorskip("torch_geometric")

from examples.graphs.mesh import train as mesh
from examples.graphs.mesh.data import REACH, Surface
from examples.graphs.superpixels import train as superpixels
from examples.graphs.superpixels.data import MARK, Collage
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


def test_vertices_within_reach_of_the_mark_are_marked() -> None:
    surface = Surface(0, 20, marks=1)
    near = {int(surface.marks[0])}
    for _ in range(REACH):
        near |= {b for a, b in surface.edge_index.T.tolist() if a in near}
    assert surface.near[0].nonzero()[:, 0].tolist() == sorted(near)


def test_a_third_of_the_regions_is_like_the_mark_and_nearer_than_the_rest() -> None:
    sample = Collage(0, "train", 2, 40).sample(seeded(0))
    marked, colour = sample.x[:, -1] == MARK, sample.x[:, :3]
    assert 1 < marked.sum() < len(marked) / 4
    away = (colour - colour[marked].mean(dim=0)).norm(dim=1)
    assert abs(sample.y.float().mean() - 1 / 3) < 0.01
    assert away[sample.y == 1].max() <= away[sample.y == 0].min()


def test_regions_are_adjacent_where_their_pixels_touch() -> None:
    collage = Collage(0, "test", 2, 24)
    region, pairs = collage.region, set()
    for r in range(region.shape[0]):
        for c in range(region.shape[1]):
            for other in ((r + 1, c), (r, c + 1)):
                if max(other) < region.shape[0] and region[r, c] != region[other]:
                    pairs |= {(region[r, c], region[other]), (region[other], region[r, c])}
    assert {tuple(p) for p in collage.edge_index.T.tolist()} == pairs

"""The examples on graphs: their data, their training, and a run of seconds."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("torch_geometric")

import ndgpa
from examples.common.checkpoints import latest
from examples.graphs.compare import Options, entries, train
from examples.graphs.mesh import train as mesh
from examples.graphs.mesh.data import REACH, Distances, Surface
from examples.graphs.superpixels import train as superpixels
from examples.graphs.superpixels.data import ALIKE, Clicks, Regions, touching
from examples.images.copy_photo.data import HELD_OUT, TRAINING, held_out_view, load_photo


@pytest.mark.parametrize("example", [mesh, superpixels], ids=["mesh", "superpixels"])
def test_a_smoke_run_writes_its_table_and_its_picture(example, tmp_path: Path) -> None:
    name = example.__name__.split(".")[-2]
    far, all_read = "GPA(2, far=site)", "GPA(1000)"
    trained = ("message passing", "dense", far)
    example.main(out=tmp_path, smoke=True, attentions=trained, read_by=(all_read,))
    out = tmp_path / "smoke"
    table = (out / f"{name}.md").read_text()
    rows = json.loads((out / f"{name}.json").read_text())["rows"]
    assert [row["attention"] for row in rows] == [
        "message passing",
        f"message passing, read by {all_read}",
        "dense",
        "dense, not fused",
        f"dense, read by {all_read}",
        far,
        f"{far}, read by {all_read}",
    ]
    assert [line.split(" | ")[0] for line in table.splitlines()[-7:]] == [
        f"| {row['attention']}" for row in rows
    ]
    assert rows[3]["peak_MB"] > rows[2]["peak_MB"]  # the whole matrix is kept
    assert rows[3]["test_error_%"] == rows[2]["test_error_%"]  # of the same network
    assert rows[4]["test_error_%"] == pytest.approx(rows[2]["test_error_%"])  # all blocks: dense
    assert (out / f"{name}.png").stat().st_size > 10_000
    assert {path.name for path in (out / "runs").iterdir()} == {
        "message_passing-0",
        "dense-0",
        "GPA_2_far_site-0",
    }
    assert not list(tmp_path.rglob(".part-*"))


def test_entries_count_the_far_field() -> None:
    cloud = ndgpa.PointCloud(torch.rand(64, 3), block=8)  # 8 blocks
    near = 8 * 8 + 64 * 2 * 8
    assert entries(ndgpa.GPA(2), cloud) == near
    assert entries(ndgpa.GPA(2, far="site"), cloud) == near + 64 * 8
    assert entries(ndgpa.GPA(2, far="block"), cloud) == near + 64 * 16
    assert entries(ndgpa.GPA(2, far=ndgpa.Bundles(3)), cloud) == near + 64 * 3
    assert entries(ndgpa.GPA(ndgpa.TopP(0.5, at_most=2)), cloud) is None


class Counted(Distances):
    """Problems on one small surface, and how many were drawn."""

    drawn = 0

    def __init__(self) -> None:
        super().__init__(surfaces=1, tests=0, resolution=20)

    def draw(self):
        self.drawn += 1
        return super().draw()


def test_what_is_trained_already_is_not_trained_again(tmp_path: Path) -> None:
    first, second = Counted(), Counted()
    options = Options(steps=3, seeds=(4,))
    network = train(first, "gpa", options, 4, tmp_path)
    again = train(second, "gpa", options, 4, tmp_path)
    assert (first.drawn, second.drawn) == (3, 0)
    for one, other in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    found = latest(tmp_path / "gpa-4")
    assert found is not None
    assert found.step == 3


@pytest.mark.parametrize("example", ["mesh", "superpixels"])
def test_a_problem_depends_on_the_seed_of_its_step_alone(example: str) -> None:
    task = Distances(2, 0, 20) if example == "mesh" else Clicks(1, 1, 64, 100)

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return task.draw().x

    assert torch.equal(drawn(1), drawn(1))
    assert not all(torch.equal(drawn(1), drawn(seed)) for seed in range(2, 8))


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


def test_regions_touch_where_pixels_are_side_by_side() -> None:
    region = torch.tensor([[0, 0, 1], [2, 2, 1]])
    pairs = {(a, b) for a, b in touching(region).T.tolist()}
    assert pairs == {(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)}


@pytest.fixture(scope="module")
def view() -> Regions:
    return Regions(held_out_view(load_photo("coffee"), 64), 100)


def test_regions_part_the_picture(view: Regions) -> None:
    n = len(view.colour)
    assert view.region.unique().tolist() == list(range(n))
    assert view.edge_index.unique().tolist() == list(range(n))
    first = view.region == 0
    row, column = first.nonzero().float().mean(dim=0)
    torch.testing.assert_close(view.position[0], torch.stack([column, row]) / 64)


def test_what_is_lighter_is_wanted_and_the_clicked_are_alike(view: Regions) -> None:
    lightness = view.colour[:, 0]
    for seed in range(10):
        sample = view.sample(torch.Generator().manual_seed(seed))
        marked = sample.x[:, -1] > 0
        darkest = lightness[sample.y > 0].min()  # of the wanted ones
        clicked = lightness[sample.y == 0].max()  # the first one clicked is not above itself
        assert clicked < darkest
        assert ((lightness[marked] - clicked).abs() < ALIKE).all()
        assert not sample.x[~marked, 3:].any()  # only the marks tell what was clicked


def test_no_photograph_is_both_trained_on_and_tested_on() -> None:
    assert not set(TRAINING) & set(HELD_OUT)
    small = Clicks(1, 1, 64, 100, validate=True)
    for tested in small.testing:
        assert not any(torch.equal(tested.photo, trained.photo) for trained in small.training)

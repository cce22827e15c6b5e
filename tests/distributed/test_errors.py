"""Wrong arguments end in one clear sentence."""

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

import ndgpa
from ndgpa import distributed
from ndgpa.structures import Halo, with_tokens

pytestmark = pytest.mark.bad_input
IMAGE = ndgpa.Image((8, 8), 2)
X = torch.randn(1, 2, 64, 4)


def test_a_space_that_is_not_sharded(mesh: DeviceMesh) -> None:
    with pytest.raises(TypeError, match=r"structure must be a part, .* got Grid: pass mesh="):
        distributed.gpa(X, X, X, IMAGE, 3)


def test_a_mesh_that_is_none(mesh: DeviceMesh) -> None:
    with pytest.raises(TypeError, match=r"mesh must be a DeviceMesh, .* got str"):
        distributed.shard(IMAGE, "context")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"one dimension; got 2: .* mesh\['context'\]"):
        distributed.shard(IMAGE, mesh)


def test_a_placement_without_a_mesh(mesh: DeviceMesh) -> None:
    part = distributed.shard(IMAGE, mesh["context"])
    with pytest.raises(ValueError, match="placement needs mesh"):
        distributed.gpa(X, X, X, part, 3, placement=distributed.Hilbert())
    with pytest.raises(TypeError, match="placement must be a placement"):
        distributed.shard(IMAGE, mesh["context"], "hilbert")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "rule",
    [
        ndgpa.Refine(ndgpa.TopK(3), 2),
        ndgpa.selection.Antidiagonal(2, 0.5),
        ndgpa.Codebook(3),
        ndgpa.TopK(3, estimate="site"),
    ],
)
def test_rules_that_look_at_keys(mesh: DeviceMesh, rule: ndgpa.Rule) -> None:
    part = distributed.shard(IMAGE, mesh["context"])
    with pytest.raises(NotImplementedError, match=r"needs the keys themselves, .* on other ranks"):
        distributed.gpa(X, X, X, part, rule)


def test_a_rule_in_which_cells_ask_their_neighbours(mesh: DeviceMesh) -> None:
    part = distributed.shard(IMAGE, mesh["context"])
    with pytest.raises(TypeError, match="Propagate needs a Grid as structure; got Part"):
        distributed.gpa(X, X, X, part, ndgpa.Propagate(ndgpa.TopK(3)))


def test_sites_of_other_blocks(mesh: DeviceMesh) -> None:
    half = distributed.Part(distributed.lay_out(IMAGE, 2), 0, mesh["context"])
    with pytest.raises(NotImplementedError, match="reads sites of other blocks"):
        half.sites_read_by(Halo(1))


def test_what_is_not_shared_out(mesh: DeviceMesh) -> None:
    with pytest.raises(NotImplementedError, match="special tokens, which are not shared out"):
        distributed.shard(with_tokens(IMAGE), mesh["context"])
    with pytest.raises(NotImplementedError, match="coarsen the whole"):
        distributed.shard(IMAGE, mesh["context"]).coarsen(2)
    with pytest.raises(NotImplementedError, match="no coarse branch"):
        distributed.ContextParallel(ndgpa.GPA(3, coarse="add"))


def test_dtensors_placed_otherwise(mesh: DeviceMesh) -> None:
    part = distributed.shard(IMAGE, mesh["context"])
    for placement in (Replicate(), Shard(1)):
        x = DTensor.from_local(X, mesh["context"], [placement])
        with pytest.raises(ValueError, match="query must be sharded along axis 2, its sites"):
            distributed.gpa(x, x, x, part, 3)


def test_heads_and_sites_that_do_not_divide(mesh: DeviceMesh) -> None:
    with pytest.raises(ValueError, match="mesh must have one dimension"):
        distributed.sites_to_heads(X, mesh)


@pytest.mark.parametrize(
    ("reads", "text"),
    [
        (torch.ones(2, 3), r"must have shape \(cells, cells\); got \(2, 3\)"),
        (-torch.ones(2, 2), "finite and not negative"),
    ],
)
def test_traffic_that_is_none(reads: torch.Tensor, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        distributed.ByTraffic(reads)
    with pytest.raises(ValueError, match="has 2 cells but structure has 16"):
        distributed.lay_out(IMAGE, 2, distributed.ByTraffic(torch.ones(2, 2)))


def test_curves_need_a_grid() -> None:
    cloud = ndgpa.PointCloud(torch.rand(40, 2), 4)
    for placement in (distributed.Morton(), distributed.Hilbert()):
        with pytest.raises(TypeError, match="needs a Grid; got Clusters"):
            distributed.lay_out(cloud, 2, placement)

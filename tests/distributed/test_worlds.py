"""Over 2 and 4 processes: what one process computes, whatever the call; and errors that end."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import ndgpa
from ndgpa import distributed
from ndgpa.structures import Strided
from tests.distributed import jobs
from tests.distributed.jobs import Call
from tests.distributed.world import world, world_once

SEQUENCE = ndgpa.Sequence(250, 8, 3)
RAGGED = ndgpa.Image((15, 22), 4, 2)
IMAGE = ndgpa.Image((16, 24), 4, 2)
VIDEO = ndgpa.Video((4, 8, 8), 2, 2)


def _graph() -> ndgpa.SpatialStructure:
    torch.manual_seed(5)
    position = torch.rand(150, 2)
    near = torch.cdist(position, position).topk(5, largest=False).indices
    edges = torch.stack([torch.arange(150).repeat_interleave(5), near.flatten()])
    return ndgpa.Graph(edges, 150, block=7, cell=3, position=position)


GRAPH = _graph()
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-6, torch.bfloat16: 0.1}
WIDE, EXACT = LIMITS[torch.float32], LIMITS[torch.float64]

CALLS = {
    "a sequence, causal": Call(SEQUENCE, 3, options={"causal": True}),
    "a sequence, causal, own blocks forced": Call(
        SEQUENCE, ndgpa.TopK(3, force=ndgpa.Own()), asks=True, options={"causal": True}
    ),
    "an image": Call(IMAGE, 3),
    "an image, key heads": Call(IMAGE, 3, heads=4, key_heads=2),
    "an image, one selection for all heads": Call(
        IMAGE, ndgpa.TopK(3, share="all"), heads=4, key_heads=2
    ),
    "an image, a selection for each key head": Call(
        IMAGE, ndgpa.TopK(3, share="group"), heads=4, key_heads=2
    ),
    "a ragged image, masked": Call(RAGGED, 3, masked=True, heads=2, key_heads=2),
    "a ragged image, euclidean, masked": Call(
        RAGGED, 3, masked=True, asks=True, options={"affinity": "euclidean", "scale": 0.3}
    ),
    "a video": Call(VIDEO, ndgpa.TopK(3, force=ndgpa.Window(1)), options={"causal": True}),
    "a graph": Call(GRAPH, 3),
    "groups": Call(ndgpa.disjoint([IMAGE, RAGGED, IMAGE]), 3),
    "an image reads a sequence": Call(RAGGED, 3, keys=SEQUENCE),
    "a graph reads an image, masked": Call(GRAPH, 3, keys=RAGGED, masked=True),
    "levels": Call(IMAGE, ndgpa.MultiLevel((4, 3))),
    "levels, causal": Call(SEQUENCE, ndgpa.MultiLevel((4, 3)), options={"causal": True}),
    "far field of sites": Call(RAGGED, 2, masked=True, options={"far": "site"}),
    "far field of blocks": Call(SEQUENCE, 2, options={"far": "block", "causal": True}),
    "some sites of a block": Call(RAGGED, 3, options={"read": Strided(2), "far": "site"}),
    "slot bias": Call(IMAGE, ndgpa.StraightThrough(ndgpa.TopK(3))),
    "soft weights": Call(RAGGED, ndgpa.SoftTopK(3), masked=True),
    "a union": Call(IMAGE, ndgpa.TopK(2) | ndgpa.Own() | ndgpa.Fixed((0,))),
    "a rule for each head": Call(IMAGE, ndgpa.PerHead((ndgpa.TopK(2), ndgpa.Window(1)))),
    "the reference": Call(RAGGED, 3, masked=True, options={"backend": "reference"}),
    "fewer cells than ranks": Call(ndgpa.Sequence(20, 8, 3), 3, options={"causal": True}),
    "fewer cells than ranks, far": Call(ndgpa.Sequence(20, 8, 3), 1, options={"far": "site"}),
    "fewer key cells than ranks": Call(IMAGE, 2, keys=ndgpa.Sequence(6, 3)),
    "along the Hilbert curve": Call(VIDEO, 3, placement=distributed.Hilbert()),
    "float32, a sequence": Call(SEQUENCE, 3, dtype=torch.float32, options={"causal": True}),
    "float32, an image": Call(IMAGE, 3, dtype=torch.float32),
    "float32, a video": Call(VIDEO, 3, dtype=torch.float32),
    "float32, a graph": Call(GRAPH, 3, dtype=torch.float32),
    "bfloat16, an image": Call(IMAGE, 3, dtype=torch.bfloat16),
}
SIMPLE = CALLS["an image"]
WRONG: dict[str, dict[str, Any]] = {
    "another rule": {"rule": 4},
    "another width": {"width": 4},
    "another option": {"affinity": "euclidean"},
    "a refused argument": {"sites": 5},
}
Jobs = dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]


def _both() -> Jobs:
    """What 2 and 4 processes do."""
    found: Jobs = {name: (jobs.largest_error, (call,)) for name, call in CALLS.items()}
    for name in ("a ragged image, masked", "far field of blocks", "slot bias"):
        found[f"twice: {name}"] = (jobs.same_bits_twice, (CALLS[name],))
    for name in ("an image", "a graph", "an image reads a sequence"):
        found[f"bytes: {name}"] = (jobs.foretold_and_sent, (CALLS[name],))
    found["checkpointed"] = (jobs.checkpointed, (CALLS["far field of sites"],))
    found["second derivative"] = (jobs.second_derivative, (CALLS["a union"],))
    found["DTensors"] = (jobs.dtensors, (CALLS["along the Hilbert curve"],))
    return found


def _four() -> Jobs:
    """What only 4 do: meshes of two dimensions, and calls that end in an error."""
    found: Jobs = {
        "DDP": (jobs.data_parallel, ()),
        "FSDP2": (jobs.fully_sharded, ()),
        "heads and context": (jobs.heads_and_context, ()),
    }
    found["two meshes"] = (jobs.parts_of_two_meshes, (SIMPLE,))
    for name, options in WRONG.items():
        found[name] = (_wrong, (SIMPLE, options))
    return found


def _wrong(call: Call, options: dict[str, Any]) -> str:
    return jobs.call_with(call, **options)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return world_once(tmp_path_factory, "of_two", 2, jobs.everything, _both())


@pytest.fixture(scope="module")
def of_four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return world_once(tmp_path_factory, "of_four", 4, jobs.everything, _both() | _four())


@pytest.fixture(scope="module", params=["of_two", "of_four"])
def found(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    answers = request.getfixturevalue(request.param)
    assert all(isinstance(answer, dict) for answer in answers), answers
    return answers


@pytest.mark.parametrize("name", CALLS)
def test_it_computes_what_one_process_does(found: list[dict[str, Any]], name: str) -> None:
    limit = LIMITS[CALLS[name].dtype]
    errors = [answer[name] for answer in found]
    assert all(isinstance(error, float) and error < limit for error in errors), errors


@pytest.mark.parametrize("name", ["a ragged image, masked", "far field of blocks", "slot bias"])
def test_a_second_run_gives_the_same_bits(found: list[dict[str, Any]], name: str) -> None:
    assert [answer[f"twice: {name}"] for answer in found] == [True] * len(found)


@pytest.mark.parametrize("name", ["an image", "a graph", "an image reads a sequence"])
def test_it_sends_what_the_selection_foretells(found: list[dict[str, Any]], name: str) -> None:
    for answer in found:
        told, sent = answer[f"bytes: {name}"]
        assert told == sent > 0


@pytest.mark.parametrize("name", ["checkpointed", "second derivative", "DTensors"])
def test_it_combines_with(found: list[dict[str, Any]], name: str) -> None:
    errors = [answer[name] for answer in found]
    assert all(isinstance(error, float) and error < EXACT for error in errors), errors


@pytest.mark.parametrize(
    ("name", "limit"), [("DDP", WIDE), ("FSDP2", WIDE), ("heads and context", EXACT)]
)
def test_on_a_mesh_of_two_dimensions(
    of_four: list[dict[str, Any]], name: str, limit: float
) -> None:
    errors = [answer[name] for answer in of_four]
    assert all(isinstance(error, float) and error < limit for error in errors), errors


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("another rule", "the ranks make different calls: the rule of rank 1 is not that of rank"),
        ("another width", "the width of a key of rank 1 is not that of rank 0"),
        ("another option", "the affinity of rank 1 is not that of rank 0"),
    ],
)
def test_a_different_call_ends_on_all_ranks_alike(
    of_four: list[dict[str, Any]], name: str, text: str
) -> None:
    assert {answer[name] for answer in of_four} == {of_four[0][name]}
    assert of_four[0][name].startswith("ValueError")
    assert text in of_four[0][name]


def test_a_refused_argument_is_told_to_the_others(of_four: list[dict[str, Any]]) -> None:
    said = [answer["a refused argument"] for answer in of_four]
    assert "ValueError: query has 5 sites" in said[1]
    others = said[:1] + said[2:]
    assert all("RuntimeError: rank 1 has refused the arguments" in text for text in others)


def test_parts_of_different_meshes_are_refused(of_four: list[dict[str, Any]]) -> None:
    assert all("ValueError: structure is sharded over" in x["two meshes"] for x in of_four)


def test_rows_travel_while_other_work_is_done() -> None:
    (launched, landed, right), (*_, also) = world(2, jobs.late_rows, 2.0)
    assert launched < 1.5 < landed
    assert right
    assert also


def test_a_rank_that_died_ends_in_an_error() -> None:
    alive, dead = world(2, jobs.one_dies, SIMPLE, timeout_s=20)
    assert dead == "Died"
    assert "RuntimeError: rank 0 of 2 waited in vain for another rank" in alive


def test_a_rank_that_does_not_call_ends_in_an_error_within_the_timeout() -> None:
    (waiting, seconds), _ = world(2, jobs.one_sleeps, SIMPLE, 2.0)
    assert "RuntimeError: rank 0 of 2 waited in vain for another rank" in waiting
    assert seconds < 20


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize("name", ["an image", "a sequence, causal", "far field of sites"])
def test_it_compiles_as_one_graph(name: str) -> None:
    call = CALLS[name]
    found = world(2, jobs.compiled, Call(call.space, call.rule, options=call.options))
    assert all(isinstance(error, float) and error < EXACT for error in found), found

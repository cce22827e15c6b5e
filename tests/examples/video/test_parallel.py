"""The example of context parallel training, in a world of two processes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.video.parallel.data import Film
from examples.video.parallel.train import Options, train
from tests.distributed.jobs import everything
from tests.distributed.world import world_once

SMALL = Options(frames=4, side=16, steps=6, save_every=3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("runs")
    whole, halves = (replace(SMALL, out=folder / name) for name in ("whole", "halves"))
    return world_once(
        tmp_path_factory,
        "runs",
        2,
        everything,
        {
            "whole": (train, (whole,)),
            "first half": (train, (replace(halves, steps=3),)),
            "second half": (train, (halves,)),
            "done": (train, (halves,)),
            "other options": (train, (replace(halves, kappa=3),)),
        },
    )


def test_it_learns(runs: list[dict[str, Any]]) -> None:
    errors = runs[0]["whole"]
    assert len(errors) == 6
    assert errors[-1] < errors[0]
    assert runs[1]["whole"] == errors


def test_a_resumed_run_goes_on_with_the_same_bits(runs: list[dict[str, Any]]) -> None:
    for answer in runs:
        assert answer["first half"] + answer["second half"] == answer["whole"]
        assert answer["done"] == []


@pytest.mark.bad_input
def test_other_options_are_refused(runs: list[dict[str, Any]]) -> None:
    assert all("holds a run with other options" in answer["other options"] for answer in runs)


def test_a_process_draws_what_the_whole_film_shows() -> None:
    film = Film((3, 6, 5))
    everywhere, some = torch.arange(90), torch.tensor([3, 77, 40])
    for own, whole in zip(film.at(some, 2), film.at(everywhere, 2)):
        assert torch.equal(own, whole[some])
    hidden = film.at(everywhere, 2)[2].float().mean()
    assert 0.15 < hidden < 0.45

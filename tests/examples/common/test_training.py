"""The loop that every example trains with: it survives kills, damage and NaN."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from examples.common import checkpoints
from examples.common.commands import Stopped, locked
from examples.common.loop import DivergedError, descend, run
from examples.common.untrusted import BadInput

PROGRAM = """
import os, sys, time, torch, torch._dynamo
from pathlib import Path
from examples.common.loop import run

def train(folder):
    net = torch.nn.Linear(8, 8)
    torch.nn.init.zeros_(net.weight), torch.nn.init.zeros_(net.bias)
    adam = torch.optim.Adam(net.parameters(), 1e-2)

    def advance(step):
        x = torch.randn(4, 8)
        loss = (net(x) - x.flip(1)).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        time.sleep(0.003)
        return {"loss": loss.item()}

    run(folder, {"net": net, "adam": adam}, advance, 150, seed=3, save_every_s=0.02)

for line in sys.stdin:  # a process for each folder, with torch imported once
    process = os.fork()
    if process == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        train(Path(line.strip()))
        os._exit(0)
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


class Trainings:
    """Run PROGRAM on one folder after another, each in a process of its own."""

    def __init__(self) -> None:
        self.parent = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def start(self, folder: Path) -> int:
        assert self.parent.stdin
        assert self.parent.stdout
        self.parent.stdin.write(f"{folder}\n")
        self.parent.stdin.flush()
        return int(self.parent.stdout.readline())

    def wait(self) -> int:
        assert self.parent.stdout
        return int(self.parent.stdout.readline())

    def end(self) -> None:
        self.parent.communicate()


@pytest.fixture
def trainings() -> Iterator[Trainings]:
    made = Trainings()
    yield made
    made.end()


def steps_of(folder: Path) -> int:
    found = checkpoints.records(folder)
    return int(found[0].stem.split("-")[1]) if found else 0


def test_a_run_killed_at_any_moment_ends_with_the_same_bits(
    tmp_path: Path, trainings: Trainings
) -> None:
    trainings.start(tmp_path / "whole")
    assert trainings.wait() == 0
    draw = torch.Generator().manual_seed(int.from_bytes(os.urandom(4)))
    ends = []
    for _ in range(3):
        process = trainings.start(tmp_path / "killed")
        target = min(steps_of(tmp_path / "killed") + 30, 140)
        with contextlib.suppress(ProcessLookupError):  # it has ended
            while steps_of(tmp_path / "killed") < target:
                os.kill(process, 0)
                time.sleep(0.01)
            time.sleep(float(torch.rand((), generator=draw)) * 0.05)
            os.kill(process, signal.SIGKILL)
        ends.append(trainings.wait())
    assert -signal.SIGKILL in ends
    trainings.start(tmp_path / "killed")
    assert trainings.wait() == 0
    whole, killed = (checkpoints.latest(tmp_path / name) for name in ("whole", "killed"))
    assert whole is not None
    assert killed is not None
    assert whole.step == killed.step == 150
    assert whole.tensors.keys() == killed.tensors.keys()
    assert all(torch.equal(x, killed.tensors[name]) for name, x in whole.tensors.items())


def test_a_step_goes_down_the_sum_of_the_losses() -> None:
    x = torch.tensor([3.0, 1.0], requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=99.0)
    for _ in range(2):
        found = descend(optimizer, {"square": x[0] ** 2, "line": 2 * x[1]}, rate=0.25)
    assert found == {"square": 2.25, "line": 1.0}  # after the first step: 1.5 and 0.5
    assert x.tolist() == [0.75, 0.0]


def test_a_truncated_checkpoint_is_seen_and_the_one_before_it_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        checkpoints.save(tmp_path, step, {"x": torch.full((100,), float(step))}, {})
    newest = tmp_path / "step-00000002.safetensors"
    newest.write_bytes(newest.read_bytes()[:200])
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert torch.equal(found.tensors["x"], torch.ones(100))
    assert "step-00000002 in" in (said := capsys.readouterr().out)
    assert "damaged: using step-00000001" in said


def test_where_every_checkpoint_is_damaged_the_run_does_not_begin_again(tmp_path: Path) -> None:
    net = torch.nn.Linear(1, 1)
    for step in (1, 2):
        checkpoints.save(tmp_path, step, {"x": torch.ones(100)}, {})
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BadInput, match=r"every checkpoint in .* is damaged \(step-00000002, step-"):
        run(tmp_path, {"net": net}, lambda step: {"loss": 1.0}, 4)


def test_a_damaged_checkpoint_does_not_displace_the_good_ones_after_it(tmp_path: Path) -> None:
    for step in (1, 5):
        checkpoints.save(tmp_path, step, {"x": torch.ones(100)}, {})
    (tmp_path / "step-00000005.safetensors").write_bytes(b"")
    for step in (2, 3):
        checkpoints.save(tmp_path, step, {"x": torch.ones(100)}, {})
    assert [checkpoints.step_of(record) for record in checkpoints.records(tmp_path)] == [3, 2]


RECORDS = {
    "a list": "[]",
    "null": "null",
    "deep": "[" * 100_000,
    "no step": '{"sha256": "", "facts": {}}',
    "a step that is a word": '{"step": "1", "sha256": "", "facts": {}}',
    "a negative step": '{"step": -1, "sha256": "SHA", "facts": {}}',
    "facts that are a list": '{"step": 1, "sha256": "SHA", "facts": []}',
    "another hash": '{"step": 1, "sha256": "", "facts": {}}',
}


@pytest.mark.parametrize("text", RECORDS.values(), ids=RECORDS)
def test_a_record_of_another_form_is_damaged(tmp_path: Path, text: str) -> None:
    checkpoints.save(tmp_path, 1, {"x": torch.ones(1)}, {})
    record = tmp_path / "step-00000001.json"
    sha = checkpoints.digest(record.with_suffix(".safetensors"))
    record.write_text(text.replace("SHA", sha))
    with pytest.raises(BadInput, match=r"the checkpoint step-00000001 in .* is damaged"):
        checkpoints.load(record)


def test_tensors_that_are_not_finite_are_damaged(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, 1, {"x": torch.tensor(float("nan"))}, {})
    with pytest.raises(BadInput, match=r"damaged: .* not finite \(x\)"):
        checkpoints.load(tmp_path / "step-00000001.json")


def test_the_state_of_an_optimizer_of_another_form_is_refused() -> None:
    net = torch.nn.Linear(2, 2)
    adam = torch.optim.Adam(net.parameters())
    ones = torch.ones
    wrong = {"0/exp_avg": ones(3), "9/step": ones(1), "x/step": ones(()), "exp_avg": ones(())}
    for name, x in wrong.items():
        with pytest.raises(BadInput, match="another network"):
            checkpoints.restore({"adam": adam}, {f"adam/{name}": x})


def test_a_checkpoint_that_is_missing_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^there is no checkpoint .*runs/typo$"):
        checkpoints.load(tmp_path / "runs" / "typo")
    record = tmp_path / "step-00000001.json"
    record.write_text("{}")
    with pytest.raises(ValueError, match=r"the checkpoint step-00000001 in .* is damaged"):
        checkpoints.load(record)


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in range(5):
        checkpoints.save(tmp_path, step, {"x": torch.zeros(1)}, {}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"step-{step:08d}.{kind}" for step in (3, 4) for kind in ("json", "safetensors")
    ]


def test_of_several_runs_the_mean_is_exported(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    values = [torch.tensor(x) for x in ([1.0, 2.0], [3.0, -2.0], [5.0, 3.0])]
    for step, (folder, x) in enumerate(zip(folders, values), start=7):
        own = {"average/w": x, "average/count": torch.tensor(step), "generator/w": -x}
        checkpoints.save(folder, step, own, {"of": folder.name})

    checkpoints.export(folders, tmp_path / "out", ("average",))

    found = checkpoints.latest(tmp_path / "out")
    assert found is not None
    assert (found.step, found.facts) == (7, {"of": "a", "mean_of": 3})
    assert found.tensors.keys() == {"average/w", "average/count"}
    assert found.tensors["average/w"].dtype == torch.float16
    assert found.tensors["average/w"].tolist() == [3.0, 1.0]
    assert found.tensors["average/count"] == 7


def test_one_run_is_exported_as_it_is(tmp_path: Path) -> None:
    own = {"average/w": torch.tensor([1.0, -2.5])}
    checkpoints.save(tmp_path / "run", 7, own, {"of": "one"})

    checkpoints.export([tmp_path / "run"], tmp_path / "out", ("average",))

    found = checkpoints.latest(tmp_path / "out")
    assert found is not None
    assert (found.step, found.facts) == (7, {"of": "one"})
    assert found.tensors["average/w"].tolist() == [1.0, -2.5]


def test_runs_of_other_networks_are_not_averaged(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for width, folder in enumerate(folders, start=3):
        checkpoints.save(folder, 1, {"average/w": torch.zeros(width)}, {})
    with pytest.raises(BadInput, match=r"b is of another network than .*a"):
        checkpoints.export(folders, tmp_path / "out", ("average",))
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(
    tmp_path: Path,
) -> None:
    net = torch.nn.Linear(1, 1)

    def advance(step: int) -> dict[str, float]:
        return {"loss": float("nan") if step == 5 else 1.0}

    with pytest.raises(DivergedError, match="step 5: loss is not finite"):
        run(tmp_path, {"net": net}, advance, 10, save_every_s=0)
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.step == 5


def test_a_parameter_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    net = torch.nn.Linear(1, 1)

    def advance(step: int) -> dict[str, float]:
        if step == 3:
            torch.nn.init.constant_(net.weight, float("inf"))
        return {"loss": 1.0}

    with pytest.raises(DivergedError, match="net/weight"):
        run(tmp_path, {"net": net}, advance, 10, save_every_s=0)
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.step == 3


def test_a_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    net = torch.nn.Linear(1, 1)
    run(tmp_path, {"net": net}, lambda step: {"loss": 1.0}, 2, facts={"width": 1, "seed": 0})
    with pytest.raises(ValueError, match=r"other options \(width\)"):
        run(tmp_path, {"net": net}, lambda step: {"loss": 1.0}, 4, facts={"width": 2, "seed": 0})


def test_a_run_is_extended_by_more_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: list[int] = []

    def advance(step: int) -> dict[str, float]:
        taken.append(step)
        return {"loss": 1.0}

    parts = {"net": torch.nn.Linear(1, 1)}
    run(tmp_path, parts, advance, 3, facts={"seed": 0})
    run(tmp_path, parts, advance, 5, facts={"seed": 0})
    assert taken == [0, 1, 2, 3, 4]
    assert "planned for 3 steps, from step 3 on 5" in capsys.readouterr().out
    with pytest.raises(BadInput, match="holds a run of 5 steps; 4 are fewer"):
        run(tmp_path, parts, advance, 4, facts={"seed": 0})
    with pytest.raises(BadInput, match=r"other options \(seed\)"):
        run(tmp_path, parts, advance, 9, facts={"seed": 1})


def test_ctrl_c_finishes_the_step_saves_it_and_says_so(tmp_path: Path) -> None:
    net = torch.nn.Linear(1, 1)

    def advance(step: int) -> dict[str, float]:
        if step == 2:
            signal.raise_signal(signal.SIGINT)
        torch.nn.init.constant_(net.weight, float(step))
        return {"loss": 1.0}

    with pytest.raises(Stopped, match=r"has 3 of 9 steps saved; the same command continues"):
        run(tmp_path, {"net": net}, advance, 9)
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.step == 3
    assert found.tensors["net/weight"].item() == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    def advance(step: int) -> dict[str, float]:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("this is not reached")

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, {"net": torch.nn.Linear(1, 1)}, advance, 9)
    assert not checkpoints.records(tmp_path)


def test_two_trainers_in_one_folder_are_refused(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(BadInput, match="another process is training in"):
        run(tmp_path, {}, lambda step: {}, 2)
    run(tmp_path, {"net": torch.nn.Linear(1, 1)}, lambda step: {"loss": 1.0}, 2)


def test_a_run_of_no_steps_is_refused(tmp_path: Path) -> None:
    for steps in (0, -3):
        with pytest.raises(BadInput, match="the number of steps must be at least 1"):
            run(tmp_path / "run", {}, lambda step: {}, steps)
    assert not (tmp_path / "run").exists()


def test_a_network_of_another_shape_is_refused(tmp_path: Path) -> None:
    run(tmp_path, {"net": torch.nn.Linear(1, 1)}, lambda step: {"loss": 1.0}, 2)
    with pytest.raises(ValueError, match="another network"):
        run(tmp_path, {"net": torch.nn.Linear(2, 1)}, lambda step: {"loss": 1.0}, 4)


def test_a_finished_run_does_nothing(tmp_path: Path) -> None:
    net, calls = torch.nn.Linear(1, 1), itertools.count()

    def advance(step: int) -> dict[str, float]:
        next(calls)
        return {"loss": 1.0}

    run(tmp_path, {"net": net}, advance, 3)
    run(tmp_path, {"net": net}, advance, 3)
    assert next(calls) == 3

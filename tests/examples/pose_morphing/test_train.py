"""Training of pose morphing: settings, resume to the bit, and that it learns to copy."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.common import checkpoints
from examples.images.pose_morphing import train as program
from examples.images.pose_morphing.config import PRESETS, ModelConfig
from examples.images.pose_morphing.train import Made, Trainer, train
from examples.images.pose_morphing.train_options import TrainConfig, Weights, facts, paper
from examples.people.figures.cache import Figures, Options, build
from examples.people.pictures import Arrays

TINY = ModelConfig(
    (64, 32),
    (4, 6, 8),
    "GPA128_2_8",
    affinity="euclidean",
    query_width=4,
    style=False,
    noise=True,
    stylegan2=False,
    pyramid=True,
    copy_rgb=True,
)


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    build(folder, Options((64, 32), identities=30, poses=2, truth=False), workers=0)
    return folder


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "test", TINY)


def config_for(figures: Path, out: Path, **changes: object) -> TrainConfig:
    base = TrainConfig(figures, out, preset="test", steps=4, batch=2, threads=1, device="cpu")
    return dataclasses.replace(base, **changes)


def final(out: Path) -> dict[str, torch.Tensor]:
    found = checkpoints.latest(out)
    assert found is not None
    return found.tensors


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(x, b[name]) for name, x in a.items())


@pytest.mark.parametrize(
    ("setting", "weights", "terms"),
    [
        ("distortion", Weights(), {"pixels", "edges", "copying", "texture", "correspondence"}),
        ("paired", Weights(gan=1.0, perceptual=1.0), {"pixels", "gan", "perceptual", "penalty"}),
        ("unpaired", Weights(gan=1.0), {"pixels", "copying", "gan", "discriminator"}),
        ("mixed", Weights(texture=0.0, correspondence=0.0), {"pixels", "edges", "copying"}),
    ],
)
def test_every_setting_takes_a_step_with_its_losses(
    figures: Path, tmp_path: Path, setting: str, weights: Weights, terms: set[str]
) -> None:
    config = config_for(figures, tmp_path, setting=setting, weights=weights, gan_from=0.0)
    trainer = Trainer(config, arrays(figures))
    before = [p.clone() for p in trainer.generator.parameters()]
    figures_of_step = trainer.advance(0)
    trainer.advance(3)
    assert terms <= figures_of_step.keys()
    assert ("gan" in figures_of_step) == bool(weights.gan)
    moved = [
        not torch.equal(p, old)
        for p, old in zip(trainer.generator.parameters(), before, strict=True)
    ]
    assert all(moved)


def arrays(figures: Path) -> Arrays:
    split = Figures(figures, "train")
    return Arrays(split.images, split.points, split.pairs)


def test_a_run_in_two_parts_has_the_bits_of_one(figures: Path, tmp_path: Path) -> None:
    config = config_for(figures, tmp_path / "whole", weights=Weights(gan=1.0), gan_from=0.4)
    train(config)

    class Killed(Exception):
        pass

    original = Trainer.advance

    def dying(self: Trainer, step: int) -> dict[str, float]:
        if step == 3:
            raise Killed
        return original(self, step)

    parts = dataclasses.replace(config, out=tmp_path / "parts", save_every_s=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "advance", dying)
        with pytest.raises(Killed):
            train(parts)
    train(parts)
    assert same(final(tmp_path / "whole"), final(tmp_path / "parts"))


@pytest.mark.slow
def test_a_run_killed_at_ten_random_moments_has_the_bits_of_one(
    figures: Path, tmp_path: Path
) -> None:
    """SIGKILL, in other processes, through the command line, of a preset."""
    command = [sys.executable, "-m", "examples.images.pose_morphing.train", "--data", str(figures)]
    command += ["--preset", "tiny64", "--steps", "60", "--batch", "2", "--threads", "1"]
    command += ["--device", "cpu", "--save-every-s", "0.2", "--weights.gan", "1", "--out"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert subprocess.run([*command, str(whole)], env=environment, check=False).returncode == 0
    draw = np.random.default_rng()
    kills = 0
    while kills < 10:
        process = subprocess.Popen([*command, str(killed)], env=environment)
        steps = len(checkpoints.records(killed)) and int(checkpoints.records(killed)[0].stem[5:])
        while process.poll() is None and not saved_after(killed, steps + 3):
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.4))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert subprocess.run([*command, str(killed)], env=environment, check=False).returncode == 0
    assert kills == 10
    assert same(final(whole), final(killed))


def saved_after(folder: Path, steps: int) -> bool:
    found = checkpoints.records(folder)
    return bool(found) and int(found[0].stem[5:]) >= steps


def paper_config(figures: Path, out: Path, setting: str = "equation2") -> TrainConfig:
    config = paper(figures, out, setting)
    return dataclasses.replace(config, preset="test", steps=4, batch=2, threads=1, device="cpu")


def test_equation_2_by_hand(figures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The perceptual loss of pairs, that of tau of the same sources, and the judge's, all once."""
    monkeypatch.setitem(PRESETS, "test", dataclasses.replace(TINY, noise=False))
    trainer = Trainer(paper_config(figures, tmp_path), arrays(figures))
    pairs, same = trainer.draw(0.0)
    assert torch.equal(pairs.batch.source, same.batch.source)
    assert torch.equal(pairs.batch.source_maps, same.batch.source_maps)
    assert bool(same.batch.known.any())
    assert not bool(pairs.batch.known.any())
    made: list[Made] = []
    terms = trainer.terms([pairs, same], 0.0, made)
    distance, judge = trainer.perceptual, trainer.discriminator
    assert distance is not None
    assert judge is not None
    images = [trainer.render(task.batch, 0.0).image for task in (pairs, same)]
    wanted = distance(images[0], pairs.batch.truth) + distance(images[1], same.batch.truth)
    torch.testing.assert_close(terms["perceptual"], wanted)
    logits = judge(images[0], pairs.batch.target_maps)
    torch.testing.assert_close(terms["gan"], -torch.log(torch.sigmoid(logits)).mean())
    assert set(terms) == {"perceptual", "gan"}
    (seen,) = made
    assert torch.equal(seen.source, pairs.batch.source)
    torch.testing.assert_close(seen.image, images[0].detach())


def test_wrong_poses_are_half_of_the_fakes(figures: Path, tmp_path: Path) -> None:
    """True pictures with the heat maps of the next sample, against a loop over both kinds."""
    config = dataclasses.replace(paper_config(figures, tmp_path, "equation2"), wrong_poses=True)
    trainer = Trainer(config, arrays(figures))
    pairs, _ = trainer.draw(0.0)
    batch, judge = pairs.batch, trainer.discriminator
    assert judge is not None
    part = Made(batch.source, batch.source_maps, torch.zeros_like(batch.source), batch.target_maps)
    others = torch.stack([batch.source_maps[i - 1] for i in range(len(batch.source))])
    fakes = judge(part.image, part.maps), judge(batch.source, others)
    wanted = sum(torch.log1p(x.exp()).mean() for x in fakes) / 2
    torch.testing.assert_close(
        torch.nn.functional.softplus(trainer.scores_of_fakes(part)).mean(), wanted
    )
    assert trainer.advance(0)["discriminator"] > 0


def test_without_pairs_random_poses_are_judged_and_not_compared(
    figures: Path, tmp_path: Path
) -> None:
    trainer = Trainer(paper_config(figures, tmp_path, "unpaired"), arrays(figures))
    same, posed = trainer.draw(0.0)
    assert (same.compared, same.judged, posed.compared, posed.judged) == (True, False, False, True)
    assert torch.equal(same.batch.source, posed.batch.source)
    assert bool(posed.batch.truth.isnan().all())
    assert trainer.advance(0)["gan"] > 0


@pytest.mark.parametrize("setting", ["equation2", "unpaired"])
def test_the_papers_training_resumes_with_the_same_bits(
    figures: Path, tmp_path: Path, setting: str
) -> None:
    train(paper_config(figures, tmp_path / "whole", setting))
    parts = paper_config(figures, tmp_path / "parts", setting)

    def kill(trainer: Trainer, done: int) -> dict[str, float]:
        if done == 3:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(parts, save_every_s=0.0), watch=kill)
    assert checkpoints.step_of(checkpoints.records(tmp_path / "parts")[0]) == 2
    train(parts)
    assert same(final(tmp_path / "whole"), final(tmp_path / "parts"))


def test_paper_as_the_first_word_changes_the_defaults(
    figures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(program, "train", asked.append)
    words = ["--data", str(figures), "--out", str(tmp_path), "--seed", "3"]
    program.main(["paper", *words])
    program.main(words)
    assert asked[0] == dataclasses.replace(paper(figures, tmp_path), seed=3)
    assert asked[1] == TrainConfig(figures, tmp_path, seed=3)


def test_parts_of_a_batch_add_up(
    figures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients of one batch in two parts are those of the parts' mean loss."""
    monkeypatch.setitem(PRESETS, "test", dataclasses.replace(TINY, noise=False))
    config = config_for(figures, tmp_path, batch=4, accumulate=2, setting="paired")
    trainer = Trainer(dataclasses.replace(config, bfloat16=False), arrays(figures))
    drawn = []
    draw = trainer.draw
    trainer.draw = lambda done: drawn.append(draw(done)) or drawn[-1]  # type: ignore[method-assign]
    torch.manual_seed(0)
    trainer.optimizer.step = lambda: None  # type: ignore[method-assign]
    trainer.advance(3)
    batches = [task.batch for tasks in drawn for task in tasks]
    assert [len(batch) for batch in batches] == [2, 2]
    got = {n: p.grad.clone() for n, p in trainer.generator.named_parameters()}
    trainer.optimizer.zero_grad()
    losses = [
        torch.stack(list(trainer.losses(trainer.render(b, 0.75), b).values())).sum()
        for b in batches
    ]
    (sum(losses) / 2).backward()
    torch.nn.utils.clip_grad_norm_(trainer.generator.parameters(), trainer.config.clip)
    for name, p in trainer.generator.named_parameters():
        torch.testing.assert_close(p.grad, got[name], atol=1e-5, rtol=1e-3)


PARALLEL = """
import os, sys
from pathlib import Path
import torch
from examples.images.pose_morphing import train as program
from examples.common import checkpoints

before = program.Trainer.advance
def advance(self, step):
    figures = before(self, step)
    name = f"{os.environ['RANK']}-{step}.pt"
    torch.save([p.grad for p in self.generator.parameters()], Path(sys.argv[2]) / name)
    return figures
program.Trainer.advance = advance
config = program.TrainConfig(
    Path(sys.argv[1]), Path(sys.argv[2]) / "run", preset="tiny64", setting="paired", steps=2,
    batch=1, threads=1, device="cpu", clip=1e9,
)
trainer = program.train(config)
name = f"weights-{os.environ['RANK']}.pt"
torch.save(trainer.generator.state_dict(), Path(sys.argv[2]) / name)
"""


@pytest.mark.slow
def test_two_processes_take_the_same_steps(figures: Path, tmp_path: Path) -> None:
    (tmp_path / "parallel.py").write_text(PARALLEL)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += [
        "--master-port",
        "29555",
        str(tmp_path / "parallel.py"),
        str(figures),
        str(tmp_path),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    first, second = (torch.load(tmp_path / f"{rank}-0.pt") for rank in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True) if a is not None)
    one, two = (torch.load(tmp_path / f"weights-{rank}.pt") for rank in (0, 1))
    assert same(one, two)
    assert len(checkpoints.records(tmp_path / "run")) == 1


def test_the_discriminator_of_unpaired_people_sees_the_poses_that_were_asked_for(
    figures: Path, tmp_path: Path
) -> None:
    config = config_for(figures, tmp_path, setting="unpaired", weights=Weights(gan=1.0))
    trainer = Trainer(dataclasses.replace(config, gan_from=0.0), arrays(figures))
    seen = []
    judge = trainer.discriminator
    assert judge is not None
    judge.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    trainer.advance(3)
    (made, asked), (_, real_maps), (judged, judged_maps) = seen[:3]
    assert torch.equal(asked, judged_maps)
    assert torch.equal(made, judged)
    assert not torch.equal(asked, real_maps)


def test_the_discriminator_sees_every_part_of_a_batch(figures: Path, tmp_path: Path) -> None:
    config = config_for(figures, tmp_path, batch=4, accumulate=2, weights=Weights(gan=1.0))
    trainer = Trainer(dataclasses.replace(config, gan_from=0.0), arrays(figures))
    judged = []
    assert trainer.discriminator is not None
    trainer.discriminator.register_forward_pre_hook(lambda _, x: judged.append(x[0].detach()))
    trainer.advance(3)
    made, real, fake = judged[:2], judged[2::2], judged[3::2]
    assert len(real) == len(fake) == 2
    assert torch.equal(torch.cat(made), torch.cat(fake))


@pytest.mark.parametrize(
    ("instructions", "fast"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx2": True, "avx512_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({"neon": True}, False),
    ],
)
def test_a_processor_trains_in_bfloat16_only_if_it_has_such_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instructions: dict[str, bool], fast: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    config = config_for(tmp_path, tmp_path)
    assert config.in_bfloat16 is fast
    assert facts(config)["bfloat16"] is fast
    for said in (False, True):
        assert dataclasses.replace(config, bfloat16=said).in_bfloat16 is said


def test_a_version_of_torch_that_does_not_say_trains_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not config_for(tmp_path, tmp_path).in_bfloat16


def test_pairs_come_in_after_distortions(figures: Path, tmp_path: Path) -> None:
    trainer = Trainer(config_for(figures, tmp_path, distortion_first=0.5), arrays(figures))
    assert bool(trainer.draw(0.4)[0].batch.known.any((1, 2)).all())
    assert trainer.draw(0.6)[0].batch.known.any((1, 2)).tolist() == [True, False]


def test_what_is_distorted_is_copied_no_sharper_than_its_loss_asks(
    figures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "test", dataclasses.replace(TINY, temperature=True))
    config = config_for(figures, tmp_path, distortion_first=0.5, sharper=4.0)
    trainer = Trainer(config, arrays(figures))
    both = trainer.draw(0.6)[0].batch
    assert trainer.sharper(trainer.draw(0.4)[0].batch).tolist() == [1.0, 1.0]
    assert trainer.sharper(both).tolist() == [1.0, 4.0]
    assert trainer.sharper(both.reduced(1)).tolist() == [1.0, 4.0]


def test_rates_warm_up_stay_and_fall(figures: Path, tmp_path: Path) -> None:
    trainer = Trainer(config_for(figures, tmp_path, steps=1000), arrays(figures))
    rates = [trainer.rate(step) for step in range(1000)]
    assert rates[0] == pytest.approx(2e-3 / 50)
    assert rates[49] == rates[500] == 2e-3
    assert rates[999] == pytest.approx(1e-4, rel=1e-2)
    assert all(a >= b for a, b in pairwise(rates[49:]))


def test_what_does_not_fit_is_refused_before_any_work(figures: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pictures have"):
        train(config_for(figures, tmp_path / "out", preset="small128"))
    unpaired = dataclasses.replace(arrays(figures), pairs=np.zeros((0, 2), np.int64))
    with pytest.raises(ValueError, match="'paired' needs pairs"):
        train(config_for(figures, tmp_path / "out", setting="paired"), unpaired)
    for wrong, words in (
        ({"preset": "nope"}, "no preset 'nope'; expected one of"),
        ({"setting": "unpaired"}, "'unpaired' needs a discriminator"),
        ({"batch": 4, "accumulate": 3}, "a batch of 4 in 3 parts"),
        ({"batch": 4, "accumulate": 4, "setting": "mixed"}, "at least 8 samples"),
        (
            {"batch": 1, "setting": "distortion", "wrong_poses": True},
            "at least 2 samples in the setting 'distortion' with --wrong-poses",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            train(config_for(figures, tmp_path / "out", **wrong))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_gpa_copies_what_no_attention_cannot(figures: Path, tmp_path: Path) -> None:
    """C28: after the same steps of the distortion task, on pictures that were trained on."""
    errors = {}
    for name in ("GPA128_4_8", "NO_8"):
        config = config_for(
            figures, tmp_path / name, preset="tiny64", attention=name, steps=400, batch=8
        )
        trainer = train(dataclasses.replace(config, setting="distortion"))
        torch.manual_seed(1)
        batch = trainer.draw(1.0)[0].batch
        with torch.no_grad():
            image = trainer.average(batch.source, batch.source_maps, batch.target_maps).image
        errors[name] = (image - batch.truth).abs().mean().item()
    assert errors["GPA128_4_8"] < 0.8 * errors["NO_8"]


@pytest.mark.slow
def test_the_discriminator_learns_which_pose_a_picture_has(figures: Path, tmp_path: Path) -> None:
    """C31: right pairs get higher logits than pictures with another's pose."""
    pictures = arrays(figures)
    config = config_for(figures, tmp_path, weights=Weights(gan=1.0), preset="tiny64")
    trainer = Trainer(config, pictures)
    judge = trainer.discriminator
    assert judge is not None
    for step in range(150):
        torch.manual_seed(step)
        batch = trainer.draw(0.0)[0].batch
        trainer.discriminator_optimizer.zero_grad()
        real = judge(batch.source, batch.source_maps)
        wrong = judge(batch.source, batch.target_maps)
        (
            torch.nn.functional.softplus(-real) + torch.nn.functional.softplus(wrong)
        ).mean().backward()
        trainer.discriminator_optimizer.step()
    torch.manual_seed(1000)
    batches = [trainer.draw(0.0)[0].batch for _ in range(16)]
    with torch.no_grad():
        gaps = [judge(b.source, b.source_maps) - judge(b.source, b.target_maps) for b in batches]
    assert (torch.cat(gaps) > 0).float().mean() > 0.8

"""Hostile files and options of the audio commands, and clean recordings, which are left alone."""

import io
import pickle
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from examples.audio import evaluate, restore, train
from examples.audio.damage import Damage, put_damage
from examples.audio.files import at_rate, mono
from examples.audio.gaps import gaps_in, silences
from examples.audio.recordings import HELD_OUT, OWN, film_music
from examples.audio.restore import Options
from examples.audio.weights import SHIPPED, trained
from examples.common import checkpoints
from examples.common.untrusted import BadInput
from tests.examples.common.hostile import bad_folders, bad_outputs, refusal, tree

REFRAIN = str(OWN / "refrain.ogg")
RECORDINGS: dict[str, Callable[[], torch.Tensor]] = {
    **{path.stem: lambda path=path: mono(path) for path in sorted(OWN.glob("*.ogg"))},
    "film music": film_music,
    "film music loop": HELD_OUT["film music loop"],
    "new song": HELD_OUT["new song"],
}
STORED = ("FLOAT", "PCM_16", "PCM_U8")


def stored(wave: torch.Tensor, rate: int, subtype: str) -> torch.Tensor:  # (b, n) -> (b, n)
    """As it comes back from a WAV file."""
    file = io.BytesIO()
    soundfile.write(file, wave.clamp(-1, 1).T.numpy(), rate, format="WAV", subtype=subtype)
    file.seek(0)
    return torch.from_numpy(soundfile.read(file, dtype="float32", always_2d=True)[0].T.copy())


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_clean_recording_is_left_alone(name: str) -> None:
    """Among them speech whose pauses sink below the resolution of 8 bits."""
    wave = RECORDINGS[name]()[None]
    for rate in (8000, 16000, 44100):
        for loudness in (1.0, 0.1):
            for subtype in STORED:
                given = stored(loudness * at_rate(wave, 16000, rate), rate, subtype)
                assert silences(given, rate).gaps == []


@pytest.mark.parametrize("subtype", ["FLOAT", "PCM_16"])
def test_gaps_that_cut_off_a_sound_are_found_to_the_sample(subtype: str) -> None:
    """Three quarters of those in music, and nothing but gaps."""
    wave = HELD_OUT["film music loop"]()[None]
    damaged = put_damage(wave, Damage(), torch.Generator().manual_seed(3))
    cut = [(start / 16000, end / 16000) for start, end in gaps_in(damaged.known[0])]
    gaps = silences(stored(damaged.wave, 16000, subtype), 16000).gaps
    hits = [any(abs(a - c) + abs(b - d) < 1e-3 for c, d in cut) for a, b in gaps]
    assert all(hits)
    assert len(gaps) > 0.75 * len(cut)


def test_a_clean_file_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    given = tmp_path / "speech.wav"
    wave, rate = soundfile.read(OWN / "training-1.ogg")
    soundfile.write(given, wave, rate, subtype="PCM_U8")
    with pytest.raises(BadInput, match=r"has no gap, .* and is left as it is; \d+ other silences"):
        restore.main(Options(str(given), tmp_path / "out.wav"))
    assert set(tree(tmp_path)) == {"speech.wav"}


def gapped(path: Path) -> Path:
    """Three seconds of film music, 125 ms of which are missing."""
    wave = HELD_OUT["film music loop"]()[:48_000].numpy()
    wave[20_000:22_000] = 0
    soundfile.write(path, wave, 16_000, subtype="PCM_16")
    return path


@pytest.mark.parametrize("damage", [True, False])
def test_the_input_is_never_overwritten(tmp_path: Path, damage: bool, capsys) -> None:
    given = gapped(tmp_path / "speech-damaged.wav")
    (tmp_path / "link.wav").symlink_to(given)
    (tmp_path / "hard.wav").hardlink_to(given)
    before = tree(tmp_path)
    for name in ("speech-damaged.wav", "link.wav", "hard.wav", "speech.wav"):
        options = Options(str(given), tmp_path / name, damage=damage)
        said = refusal(lambda options=options: restore.main(options), capsys)
        assert "is the file that is read, which is never overwritten" in said
    assert tree(tmp_path) == before


def test_what_will_change_is_said_first_and_a_dry_run_stops_there(tmp_path: Path, capsys) -> None:
    given, out = gapped(tmp_path / "in.wav"), tmp_path / "out.wav"
    restore.main(Options(str(given), out, dry_run=True))
    said = capsys.readouterr().out
    assert "to be filled: 1 gaps, 4.2% of the recording: 1.25-1.38 s\n" in said
    assert f"to be written: {out}, {tmp_path / 'out.png'}\n" in said
    assert "nothing was written" in said
    restore.main(Options(REFRAIN, out, damage=True, dry_run=True))
    assert set(tree(tmp_path)) == {"in.wav"}
    restore.main(Options(str(given), out))
    assert capsys.readouterr().out.endswith(f"{out}, {tmp_path / 'out.png'}\n")
    assert set(tree(tmp_path)) == {"in.wav", "out.wav", "out.png"}


def test_the_network_is_the_shipped_one_unless_runs_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "audio" / "gpa"
    net = trained("gpa", False, None)
    weights = {f"net/{name}": 2 * x for name, x in net.state_dict().items()}
    checkpoints.save(folder, 3, weights, {"operator": "gpa", "causal": False, "steps": 3})
    given = gapped(tmp_path / "in.wav")
    restore.main(Options(str(given), tmp_path / "out.wav"))
    assert "network: gpa, as shipped\n" in capsys.readouterr().out
    restore.main(Options(str(given), tmp_path / "out.wav", runs=folder.parent))
    assert f"network: {folder}\n" in capsys.readouterr().out


OPTIONS = {
    "noise NaN": ({"noise_db": float("nan"), "damage": True}, "--noise-db must be a finite number"),
    "clip below 0": ({"clip": -1.0, "damage": True}, "--clip must be above 0, got -1"),
    "clip above 1": ({"clip": 2.0, "damage": True}, "--clip must be at most 1"),
    "seed below 0": ({"seed": -1, "damage": True}, "--seed must be at least 0"),
    "huge seed": ({"seed": 2**70, "damage": True}, "--seed must be at most"),
    "gap NaN": ({"gaps": ("nan-1",)}, "does not lie within"),
    "gap backwards": ({"gaps": ("2-1",)}, "does not lie within"),
    "gap is a word": ({"gaps": ("a",)}, "START-END"),
    "attention": ({"operator": "../gpa"}, "unknown attention"),
    "no such network": ({"operator": "full", "gaps": ("1-2",)}, "no network for full comes with"),
    "no recording": ({"recording": "none.wav"}, "none.wav is not a file"),
    "recording is a folder": ({"recording": "/"}, "is a folder"),
    "recording is a device": ({"recording": "/dev/zero"}, "is not a file"),
    "ending": ({"out": Path("x.mp3")}, "must end in"),
}


@pytest.mark.parametrize(("change", "said"), OPTIONS.values(), ids=OPTIONS)
def test_bad_options_of_restore(tmp_path: Path, change: dict[str, Any], said: str, capsys) -> None:
    options = replace(Options(REFRAIN, tmp_path / "out.wav"), **change)
    assert said in refusal(lambda: restore.main(options), capsys)
    assert not tree(tmp_path)


TRAIN = {
    "no steps": ({"steps": 0}, "--steps must be at least 1"),
    "no time": ({"cpu_minutes": 0.0}, "--cpu-minutes must be above 0"),
    "time NaN": ({"cpu_minutes": float("nan")}, "--cpu-minutes must be a finite number"),
    "rate below 0": ({"rate": -1.0}, "--rate must be above 0"),
    "endless": ({"excerpt_s": 1e9}, "--excerpt-s must be at most 600"),
    "a recording is a folder": ({"recordings": (OWN,)}, "is a folder"),
}


@pytest.mark.parametrize(("change", "said"), TRAIN.values(), ids=TRAIN)
def test_bad_options_of_train(tmp_path: Path, change: dict[str, Any], said: str, capsys) -> None:
    options = replace(train.Options(out=tmp_path / "out"), **change)
    assert said in refusal(lambda: train.main(options), capsys)
    assert not tree(tmp_path)


def test_outputs_that_cannot_be_written(tmp_path: Path, capsys) -> None:
    for out, said in bad_outputs(tmp_path, "out.wav"):
        options = Options(REFRAIN, out, damage=True)
        assert said in refusal(lambda options=options: restore.main(options), capsys)
    (tmp_path / "x.png").mkdir()
    options = Options(REFRAIN, tmp_path / "x.wav", damage=True)
    assert "x.png is a folder" in refusal(lambda: restore.main(options), capsys)
    assert set(tree(tmp_path)) == {"file"}


def test_folders_that_cannot_be_written(tmp_path: Path, capsys) -> None:
    for out, said in bad_folders(tmp_path):
        trained_there = train.Options(out=out, smoke=True)
        assert said in refusal(lambda options=trained_there: train.main(options), capsys)
        judged_there = evaluate.Options(tmp_path, out=out, tables=("cost",))
        assert said in refusal(lambda options=judged_there: evaluate.main(options), capsys)
    assert set(tree(tmp_path)) == {"file"}


def test_evaluation_has_bounds(tmp_path: Path, capsys) -> None:
    for change, said in (({"seeds": 0}, "--seeds"), ({"workers": -1}, "--workers")):
        options = replace(evaluate.Options(tmp_path, out=tmp_path / "out"), **change)
        assert said in refusal(lambda options=options: evaluate.main(options), capsys)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, capsys) -> None:
    given = gapped(tmp_path / "in.wav")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        options = Options(str(given), tmp_path / "out.wav")
        said = refusal(lambda: restore.main(options), capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "out.wav: File too large" in said
    assert set(tree(tmp_path)) == {"in.wav"}


def test_a_format_that_cannot_hold_the_recording_is_told_first(tmp_path: Path, capsys) -> None:
    wave = 0.1 * np.random.default_rng(0).standard_normal((8000, 9))
    soundfile.write(tmp_path / "in.wav", wave, 8000)
    options = Options(str(tmp_path / "in.wav"), tmp_path / "out.flac", gaps=("0.3-0.4",))
    assert ".flac cannot hold 9 channels" in refusal(lambda: restore.main(options), capsys)
    assert set(tree(tmp_path)) == {"in.wav"}


NETWORKS = {
    "empty": b"",
    "truncated": (SHIPPED / "gpa.safetensors").read_bytes()[:-100],
    "renamed pickle": pickle.dumps({"x": 1}),
}


@pytest.mark.parametrize("data", NETWORKS.values(), ids=NETWORKS)
def test_a_damaged_run_is_not_replaced_by_the_shipped_network(
    tmp_path: Path, data: bytes, capsys
) -> None:
    checkpoints.save(tmp_path / "gpa", 3, {"net/x": torch.ones(1)}, {"steps": 3})
    (tmp_path / "gpa" / "step-00000003.safetensors").write_bytes(data)
    options = Options(REFRAIN, tmp_path / "out.wav", damage=True, runs=tmp_path)
    assert "every checkpoint in" in refusal(lambda: restore.main(options), capsys)
    assert not (tmp_path / "out.wav").exists()


def test_a_run_of_another_network_is_refused(tmp_path: Path, capsys) -> None:
    checkpoints.save(tmp_path / "gpa", 3, {"net/x": torch.ones(1)}, {"steps": 3})
    options = Options(REFRAIN, tmp_path / "out.wav", damage=True, runs=tmp_path)
    assert "made with another network" in refusal(lambda: restore.main(options), capsys)


@pytest.mark.parametrize("text", ["[]", "null", "{", '{"steps": -1}', '{"steps": 1, "options": 3}'])
def test_a_plan_of_another_form_is_refused(tmp_path: Path, text: str, capsys) -> None:
    folder = tmp_path / "gpa"
    folder.mkdir()
    (folder / "steps.json").write_text(text)
    assert "steps.json" in refusal(lambda: train.main(train.Options(out=tmp_path)), capsys)
    assert tree(tmp_path)["gpa/steps.json"] == text.encode()

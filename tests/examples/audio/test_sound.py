"""Spectra, damage, files and measures."""

import errno
import math
import resource
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from examples.audio.damage import Damage, put_damage
from examples.audio.files import at_rate, read_recording, write_recording
from examples.audio.gaps import Silences, gaps_in, known_outside, silences, spans
from examples.audio.metrics import log_spectral_distance_db, sdr_db
from examples.audio.model import across_gaps
from examples.audio.spectrum import (
    BANDS,
    confidence,
    delayed,
    known_frames,
    log_bands,
    spectrum,
    to_bins,
    waveform,
)


def draw(samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("samples", [2000, 2047, 2049])
def test_the_waveform_of_a_spectrum_is_the_one_it_came_from(samples):
    wave = draw(samples)
    torch.testing.assert_close(waveform(spectrum(wave), samples), wave, atol=1e-5, rtol=0)


def test_bands_are_levels():
    """Twice the amplitude is log 2 more in every band, and every bin has one band."""
    wave = 10 * draw(4000)
    quiet, loud = log_bands(spectrum(wave)), log_bands(spectrum(2 * wave))
    assert quiet.shape[1] == BANDS
    torch.testing.assert_close(loud - quiet, torch.full_like(loud, math.log(2)), atol=2e-2, rtol=0)
    assert to_bins(quiet).shape[1] == spectrum(wave).shape[1]


def test_a_whole_delay_moves_samples():
    wave = torch.randn(101)
    torch.testing.assert_close(delayed(wave, 1.0)[1:], wave[:-1], atol=1e-5, rtol=0)


def test_a_part_of_a_delay_moves_a_tone():
    t = torch.arange(1000)
    out = delayed((0.5 * t).sin(), 0.3)
    wanted = (0.5 * (t - 0.3)).sin()
    torch.testing.assert_close(out[50:-50], wanted[50:-50], atol=1e-3, rtol=0)


def test_frames_away_from_a_gap_are_known():
    known = torch.ones(1, 4096, dtype=torch.bool)
    known[:, 2000:2100] = False
    frames = known_frames(confidence(known))[0]
    centres = 128 * torch.arange(len(frames))
    apart = (centres + 256 <= 2000) | (centres - 256 >= 2100)
    within = (centres > 1900) & (centres < 2200)
    inner = (centres >= 256) & (centres <= 4096 - 256)
    assert frames[apart & inner].all()
    assert not frames[within].any()


def test_damage_is_what_was_asked_for():
    damaged = put_damage(draw(160_000), Damage(), torch.Generator().manual_seed(1))
    lengths = [(end - start) / 16_000 for start, end in gaps_in(damaged.known[0])]
    assert len(lengths) > 3
    assert min(lengths) >= 0.0199
    assert max(lengths) <= 0.5001
    assert (damaged.wave == damaged.true * damaged.known).all()
    assert 0.03 < (~damaged.known).float().mean() < 0.3


def test_noise_and_clipping_are_what_was_asked_for():
    wave = draw(160_000)
    noisy = put_damage(wave, Damage(noise_db=20.0), torch.Generator().manual_seed(1))
    everywhere = noisy.known
    assert sdr_db(noisy.wave, noisy.true, everywhere) == pytest.approx(20, abs=0.2)
    clipped = put_damage(wave, Damage(clip=0.25), torch.Generator().manual_seed(1))
    assert clipped.wave.abs().max() == 0.25 * wave.abs().max()


def test_a_short_recording_gets_a_gap():
    damaged = put_damage(draw(4000), Damage(), torch.Generator().manual_seed(1))
    assert len(gaps_in(damaged.known[0])) == 1


def test_sdr_of_an_error_of_a_tenth_is_20_db():
    wave = draw(1000)
    where = torch.ones_like(wave, dtype=torch.bool)
    assert sdr_db(1.1 * wave, wave, where) == pytest.approx(20, abs=1e-3)


def test_log_spectral_distance_of_half_the_amplitude_is_6_db():
    wave = draw(8000)
    known = torch.ones_like(wave, dtype=torch.bool)
    known[:, 3000:5000] = False
    distance = log_spectral_distance_db(0.5 * wave, wave, known)
    assert distance == pytest.approx(20 * math.log10(2), abs=0.05)


def test_across_gaps_is_a_straight_line():
    bands = torch.tensor([[[9.0, 1, 9, 9, 4, 9]]])
    known = torch.tensor([[False, True, False, False, True, False]])
    assert across_gaps(bands, known, causal=False).tolist() == [[[1, 1, 2, 3, 4, 4]]]
    assert across_gaps(bands, known, causal=True).tolist() == [[[9, 1, 1, 1, 4, 4]]]
    nothing = torch.zeros_like(known)
    assert across_gaps(bands, nothing, causal=False).tolist() == bands.tolist()


def test_gaps_are_silences_within():
    wave = torch.ones(2, 1000)
    wave[:, :50] = wave[:, 200:300] = wave[:, 400:403] = 0
    wave[0, 600:700] = 0  # the other channel sounds on
    wave[:, 790:800] = 1e-2  # dies away
    wave[:, 800:900] = 0
    assert silences(wave, 1000) == Silences([(0.2, 0.3)], [(0, 0.05), (0.8, 0.9)])
    assert gaps_in(known_outside([(0.2, 0.3)], 1000, 1000)) == [(200, 300)]


@pytest.mark.parametrize(
    ("text", "says"), [("3", "START-END"), ("a-b", "START-END"), ("3-2", "lie"), ("1-99", "lie")]
)
def test_gaps_that_are_none(text, says):
    with pytest.raises(ValueError, match=says):
        spans((text,), 10.0)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_files_keep_channels_and_rate(tmp_path: Path, suffix):
    t = torch.arange(22_050) / 22_050
    wave = 0.3 * torch.stack([(2000 * t).sin(), (3000 * t).sin()])
    write_recording(tmp_path / f"x{suffix}", wave, 22_050)
    again, rate = read_recording(tmp_path / f"x{suffix}")
    assert rate == 22_050
    torch.testing.assert_close(again, wave, atol=0.02, rtol=0)


def test_another_rate_keeps_a_tone():
    t = torch.arange(44_100) / 44_100
    wave = (2 * math.pi * 440 * t).sin()[None]
    wanted = (2 * math.pi * 440 * torch.arange(16_000) / 16_000).sin()
    out = at_rate(wave, 44_100, 16_000)[0]
    torch.testing.assert_close(out[200:-200], wanted[200:-200], atol=2e-3, rtol=0)


def test_files_that_are_no_recordings(tmp_path: Path):
    with pytest.raises(ValueError, match="is not a file"):
        read_recording(tmp_path / "none.wav")
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF, but no more")
    with pytest.raises(ValueError, match="cannot be read as a recording"):
        read_recording(broken)
    soundfile.write(tmp_path / "short.wav", np.zeros(10), 8000)
    with pytest.raises(ValueError, match=r"lasts 0\.001 s"):
        read_recording(tmp_path / "short.wav")
    soundfile.write(tmp_path / "nan.wav", np.full(8000, np.nan), 8000, subtype="FLOAT")
    with pytest.raises(ValueError, match="not finite"):
        read_recording(tmp_path / "nan.wav")
    with pytest.raises(ValueError, match=r"must end in \.wav"):
        write_recording(tmp_path / "x.doc", draw(8000), 8000)


def test_a_full_disk_leaves_the_old_file_and_no_half_of_a_new_one(tmp_path: Path):
    write_recording(tmp_path / "x.wav", draw(1000).clamp(-1, 1), 8000)
    before = (tmp_path / "x.wav").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError) as caught:  # noqa: PT011 (the code is checked)
            write_recording(tmp_path / "x.wav", draw(100_000), 8000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert [path.name for path in tmp_path.iterdir()] == ["x.wav"]
    assert (tmp_path / "x.wav").read_bytes() == before

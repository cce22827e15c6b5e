"""Finding, copying and filling."""

import pytest
import torch

from examples.audio.align import find_copies, likeliest_lags
from examples.audio.candidates import strongest_keys
from examples.audio.damage import Damage, put_damage
from examples.audio.methods import interpolated, straight_line
from examples.audio.metrics import sdr_db
from examples.audio.model import Question, Restorer
from examples.audio.operators import operator, space
from examples.audio.restoring import joined, places, restore
from examples.audio.spectrum import HOP, WINDOW, delayed
from examples.audio.weights import SHIPPED, trained
from ndgpa import GPA


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sounds(samples: int, seed: int = 0) -> torch.Tensor:
    """Noise without treble."""
    wave = torch.randn(samples, generator=generator(seed))
    for _ in range(2):
        wave = torch.nn.functional.avg_pool1d(wave[None], 5, 1, 2)[0]
    return 0.1 * wave


def question(frames: int, seed: int = 0) -> Question:
    draw = generator(seed)
    query, key = torch.randn(2, 1, 2, frames, 8, generator=draw)
    known = torch.rand(1, frames, generator=draw) > 0.2
    return Question(3 * query, key, key, known)


@pytest.mark.parametrize("by", [0.0, 0.4, -0.3])
def test_a_copy_is_found_to_a_part_of_a_sample(by):
    """A recording plays twice, the second time between samples and louder."""
    once = sounds(30_000)
    wave = torch.cat([once, 1.5 * delayed(once, by)])
    known = torch.ones(len(wave), dtype=torch.bool)
    known[40_000:43_000] = False
    lag = 30_000 // HOP + 1
    copy = find_copies(wave * known, known, (40_000, 43_000), [99, lag], causal=False)[0]
    assert copy.lag == pytest.approx(30_000 + by, abs=0.06)
    assert copy.likeness > 0.95
    assert sdr_db(copy.wave[None], wave[None, 40_000:43_000], torch.tensor(True)) > 20


@pytest.mark.parametrize("gap", [(0, 3000), (57_000, 60_000)], ids=["start", "end"])
def test_a_gap_at_the_border_is_found_by_its_one_side(gap):
    wave = sounds(30_000).repeat(2)
    known = torch.ones(len(wave), dtype=torch.bool)
    known[slice(*gap)] = False
    lags = [-30_000 // HOP, 30_000 // HOP]
    copy = find_copies(wave * known, known, gap, lags, causal=False)[0]
    assert abs(copy.lag) == pytest.approx(30_000, abs=0.06)
    assert sdr_db(copy.wave[None], wave[None, slice(*gap)], torch.tensor(True)) > 20


def test_what_is_missing_in_a_source_comes_from_the_next():
    once = sounds(10_000)
    wave = once.repeat(4)
    known = torch.ones(len(wave), dtype=torch.bool)
    known[25_000:27_000] = known[15_000:15_500] = False
    lags = [round(10_000 / HOP), round(-10_000 / HOP)]
    copies = find_copies(wave * known, known, (25_000, 27_000), lags, causal=False)
    assert not copies[0].whole.all() or not copies[1].whole.all()
    sound, likeness = joined(copies, (25_000, 27_000))
    assert sdr_db(sound[None], wave[None, 25_000:27_000], torch.tensor(True)) > 30
    assert likeness.min() > 0.95


def test_the_lags_of_most_votes_come_first():
    frames = torch.tensor([100, 101, 102])
    keys = torch.tensor([[[40, 97], [41, 191], [42, -1]]])
    weights = torch.tensor([[[0.1, 0.9], [0.9, 0.1], [1.0, 0.0]]])
    assert likeliest_lags(frames, keys, weights, 10, causal=False) == [60, -90]
    assert likeliest_lags(frames, keys, weights, 10, causal=True) == [60]
    assert likeliest_lags(frames, keys, weights, 91, causal=False) == []


def strongest_and_read(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The strongest key of some frames, its weight, and what the operator reads of every key."""
    asked = question(200)
    attend, frames = operator(name, 200), torch.tensor([0, 3, 77, 199])
    keys, weights = strongest_keys(asked, attend, space(200), frames, 1)
    one_hot = torch.eye(200).expand(1, 2, -1, -1)
    masks = {"key_mask": asked.known, "query_mask": torch.ones_like(asked.known)}
    out = attend(asked.query, asked.key, one_hot, space(200), **masks)[0, :, frames]
    return keys, weights, out


@pytest.mark.parametrize("name", ["gpa", "window", "full"])
def test_the_strongest_keys_are_those_the_operator_reads(name):
    """One weight is moved to a feature of its own value, and must come out of the operator."""
    keys, weights, out = strongest_and_read(name)
    best = out.max(dim=-1)
    assert (keys[..., 0] == best.indices).all()
    torch.testing.assert_close(weights[..., 0], best.values)


def test_beside_a_far_field_a_key_has_the_weight_that_the_operator_gives_it():
    keys, weights, out = strongest_and_read("GPA(2, far=site)")
    torch.testing.assert_close(weights, out.gather(2, keys))


def test_gpa_with_every_block_answers_as_full_attention():
    net = Restorer()
    damaged = put_damage(sounds(20_000)[None], Damage(), generator(0))
    all_blocks = GPA(10_000, scale=1.0)
    with torch.no_grad():
        ours = net(damaged.wave, damaged.known, all_blocks)
        full = net(damaged.wave, damaged.known, operator("full", 1))
    torch.testing.assert_close(ours.bands, full.bands, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["gpa", "full", "nothing"])
@pytest.mark.parametrize("gap", [(39_000, 43_000), (39_700, 39_900), (39_990, 40_300)])
def test_a_causal_network_never_looks_ahead(name, gap):
    """What comes later changes nothing earlier than a window, in any bit.

    In one of two recordings a gap goes on or ends as given, in the other all is known from now on.
    """
    torch.manual_seed(0)
    net, now = Restorer(causal=True).eval(), 40_000
    damaged = put_damage(sounds(50_000)[None], Damage(missing=0.3), generator(3))
    known = damaged.known.clone()
    known[:, 38_000:] = True
    known[:, gap[0] : gap[1]] = False
    wave, later, known_later = damaged.true * known, damaged.true.clone(), known.clone()
    known_later[:, now:] = True
    later[:, now:] = sounds(10_000, seed=9)
    attend = operator(name, 1 + 50_000 // HOP, causal=True)
    for clean in (False, True):
        before = restore(net, attend, wave, known, clean).wave
        after = restore(net, attend, later * known_later, known_later, clean).wave
        assert torch.equal(before[:, : now - WINDOW], after[:, : now - WINDOW])
        assert not torch.equal(before, after)


def test_a_network_that_is_not_causal_does_look_ahead():
    torch.manual_seed(0)
    net = Restorer()
    wave, known = sounds(20_000)[None], torch.ones(1, 20_000, dtype=torch.bool)
    later = wave.clone()
    later[:, 15_000:] = 0
    with torch.no_grad():
        one, two = (net(x, known, operator("gpa", 157)).bands for x in (wave, later))
    assert not torch.equal(one[..., :100], two[..., :100])


def test_known_samples_stay_as_they_are():
    damaged = put_damage(sounds(40_000)[None], Damage(), generator(0))
    restored = restore(Restorer(), operator("gpa", 313), damaged.wave, damaged.known).wave
    assert torch.equal(restored[damaged.known], damaged.wave[damaged.known])
    assert (restored[~damaged.known] != 0).float().mean() > 0.99


def test_a_softer_recording_is_restored_as_a_louder_one():
    damaged = put_damage(sounds(30_000)[None], Damage(), generator(0))
    net, attend = Restorer(), operator("gpa", 235)
    loud = restore(net, attend, damaged.wave, damaged.known).wave
    soft = restore(net, attend, 1e-3 * damaged.wave, damaged.known).wave
    torch.testing.assert_close(1e3 * soft, loud, atol=1e-3, rtol=1e-2)


def test_silence_stays_silent():
    known = torch.ones(1, 20_000, dtype=torch.bool)
    known[:, 9_000:9_500] = False
    net = Restorer()
    out = restore(net, operator("gpa", 157), torch.zeros(1, 20_000), known).wave
    assert out.isfinite().all()
    assert (out[known] == 0).all()


def test_channels_do_not_hear_each_other():
    damaged = put_damage(torch.stack([sounds(30_000), sounds(30_000, 1)]), Damage(), generator(0))
    net, attend = Restorer(causal=True), operator("gpa", 235, causal=True)
    both = restore(net, attend, damaged.wave, damaged.known).wave
    one = restore(net, attend, damaged.wave[1:], damaged.known[1:]).wave
    torch.testing.assert_close(both[1:], one, atol=1e-4, rtol=0)


def test_ways_without_a_network_fill_gaps_only():
    damaged = put_damage(sounds(40_000)[None], Damage(), generator(0))
    for out in (
        straight_line(damaged.wave, damaged.known),
        interpolated(damaged.wave, damaged.known),
    ):
        assert torch.equal(out[damaged.known], damaged.wave[damaged.known])
        assert (out[~damaged.known] != 0).any()


@pytest.mark.parametrize("causal", [False, True])
def test_the_network_that_ships_finds_what_recurs(causal, tmp_path):
    """A tune of half a minute of noise plays twice; of its second playing a piece is missing."""
    from examples.audio.synthesis import band

    tune = band(6 * 16_000, generator(5))
    tune = 0.05 * tune / tune.square().mean().sqrt()
    wave = torch.cat([tune, sounds(16_000), tune])[None]
    known = torch.ones(wave.shape, dtype=torch.bool)
    start = 7 * 16_000 + 3 * 16_000
    known[:, start : start + 4000] = False
    net = trained("gpa", causal, tmp_path)
    attend = operator("gpa", 1 + wave.shape[1] // HOP, causal)
    restored = restore(net, attend, wave * known, known)
    assert sdr_db(restored.wave, wave, ~known) > 10
    line = straight_line(wave * known, known)
    assert sdr_db(line, wave, ~known) < 3


def test_what_ships_is_small():
    files = list(SHIPPED.glob("*.safetensors"))
    assert len(files) == 2
    assert sum(path.stat().st_size for path in files) < 3e6


def test_a_stream_asks_the_first_frames_of_a_gap_only():
    asked = question(300)
    short, long = [(10_000, 11_000)], [(10_000, 15_000)]
    attend = operator("gpa", 300, causal=True)
    assert places(asked, attend, short, True) == places(asked, attend, long, True)


def test_unknown_attentions_are_told():
    with pytest.raises(ValueError, match="expected one of gpa, window, full, nothing"):
        operator("gqa", 100)
    with pytest.raises(ValueError, match="no causal form"):
        operator("window", 100, causal=True)
    with pytest.raises(ValueError, match="it is not known what it reads"):
        operator("Performer(24, 8)", 100)

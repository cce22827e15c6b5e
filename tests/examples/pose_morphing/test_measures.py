"""The measures, against independent computations."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from einops import rearrange
from skimage.metrics import peak_signal_noise_ratio

import ndgpa
from examples.common.frechet import RandomFeatures, frechet_distance
from examples.images.pose_morphing.levels import Level
from examples.images.pose_morphing.measures.scores import (
    best_keys,
    copy_accuracy,
    key_distances,
    keys_and_weights,
    l1,
    places_of,
    psnr,
    sites_of,
    ssim,
)
from examples.images.pose_morphing.studies.memory import attention_bytes
from ndgpa.operators import Operator


def pictures(h: int = 40, w: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(h * w)
    truths = torch.rand(2, 3, h, w, generator=generator, dtype=torch.float64)
    noise = torch.rand(2, 3, h, w, generator=generator, dtype=torch.float64)
    return 0.8 * truths + 0.15 * noise, truths


def as_numpy(x: torch.Tensor) -> np.ndarray:
    return rearrange(x, "c h w -> h w c").numpy()


def ssim_by_hand(x: np.ndarray, y: np.ndarray, data_range: float) -> np.ndarray:
    """The formula of Wang et al. 2004, window by window, on what lies 5 pixels from the border."""
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    weight = np.outer(line, line) / line.sum() ** 2
    windows = [np.lib.stride_tricks.sliding_window_view(z, (11, 11), (0, 1)) for z in (x, y)]
    mean_x, mean_y = ((z * weight).sum((-1, -2)) for z in windows)
    dx, dy = (z - m[..., None, None] for z, m in zip(windows, (mean_x, mean_y)))
    var_x, var_y, both = ((z * weight).sum((-1, -2)) for z in (dx * dx, dy * dy, dx * dy))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    return (likeness / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean(axis=2)


def test_ssim_is_the_formula_of_its_paper() -> None:
    images, truths = pictures()
    for place, value in enumerate(ssim(images, truths)):
        expected = ssim_by_hand(as_numpy(truths[place]), as_numpy(images[place]), 1.0)
        assert float(value) == pytest.approx(expected.mean(), abs=1e-9)


def test_the_protocol_of_patn_pads_with_white_and_takes_the_range_of_the_image() -> None:
    images, truths = pictures(256, 176)
    for place, value in enumerate(ssim(images, truths, "patn")):
        pair = [
            np.pad(as_numpy(x[place]), ((0, 0), (40, 40), (0, 0)), constant_values=1.0)
            for x in (truths, images)
        ]
        expected = ssim_by_hand(*pair, data_range=pair[1].max() - pair[1].min())
        assert float(value) == pytest.approx(expected.mean(), abs=1e-9)
    assert (ssim(images, truths, "patn") > ssim(images, truths)).all()


def test_masked_ssim_is_the_mean_of_the_formula_there() -> None:
    images, truths = pictures()
    where = torch.zeros(2, 40, 24, dtype=torch.bool)
    where[:, 5:-5, 5:-5] = torch.rand(2, 30, 14) < 0.3
    for place, value in enumerate(ssim(images, truths, where=where)):
        maps = ssim_by_hand(as_numpy(truths[place]), as_numpy(images[place]), 1.0)
        chosen = where[place, 5:-5, 5:-5].numpy()
        assert float(value) == pytest.approx(maps[chosen].mean(), abs=1e-9)


def test_an_unknown_protocol_is_refused() -> None:
    small = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ValueError, match="unknown SSIM protocol 'pose'; expected one of 'plain'"):
        ssim(small, small, "pose")


def test_errors_of_pixels() -> None:
    images, truths = pictures()
    for place in range(2):
        pair = truths[place].numpy(), images[place].numpy()
        expected = peak_signal_noise_ratio(*pair, data_range=1.0)
        assert psnr(images, truths)[place].item() == pytest.approx(expected)
        assert l1(images, truths)[place].item() == pytest.approx(np.abs(pair[0] - pair[1]).mean())


def test_only_the_chosen_pixels_count() -> None:
    images, truths = pictures()
    where = torch.zeros(2, 40, 24, dtype=torch.bool)
    where[0, 3, 4] = True
    expected = (images - truths)[0, :, 3, 4].square().mean().log10() * -10
    values = psnr(images, truths, where)
    assert values[0] == pytest.approx(expected.item())
    assert math.isnan(values[1])


def test_a_frechet_distance_by_hand() -> None:
    """Two points a mean apart on each axis: covariances are diagonal and known."""
    corners = torch.tensor([[-1.0, 0], [1, 0], [0, -1], [0, 1]])
    other = corners * torch.tensor([2.0, 3.0]) + torch.tensor([5.0, 0.0])
    # variances 2/3 against 4 * 2/3 and 9 * 2/3: (s - s')^2 on each axis, and the shift
    expected = 25 + (2 / 3) * (1 + 4)
    assert frechet_distance(corners, other) == pytest.approx(expected)


def test_the_frechet_distance_is_that_of_scipys_square_root() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(60, 8, generator=generator, dtype=torch.float64)
    b = a[:50] @ torch.randn(8, 8, generator=generator, dtype=torch.float64) + 0.3
    cov_a, cov_b = np.cov(a.numpy().T), np.cov(b.numpy().T)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    shift = ((a.mean(dim=0) - b.mean(dim=0)) ** 2).sum().item()
    expected = shift + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_too_few_samples_for_a_covariance_are_warned_of() -> None:
    a = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.warns(RuntimeWarning, match="of 8 features needs more samples than that .* got 8;"):
        frechet_distance(a, a)


def test_random_features_are_the_same_each_time_and_see_blur() -> None:
    images = torch.rand(80, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(images, 3, stride=1, padding=1)
    features = RandomFeatures()
    assert torch.equal(features(images), RandomFeatures()(images))
    near = frechet_distance(features(images), features(images.flip(3)))
    far = frechet_distance(features(images), features(blurred))
    assert far > 10 * near


OPERATORS = [ndgpa.GPA(2, scale=1.0, affinity="euclidean"), ndgpa.Full(1.0, "euclidean")]


def matching_level(operator: Operator, shift: int = 2, size: tuple[int, int] = (16, 8)) -> Level:
    """A level whose pixels look for those `shift` rows above; the first rows find the last."""
    rows, columns = torch.meshgrid(*(torch.arange(float(n)) for n in size), indexing="ij")
    key = 4 * torch.stack([rows, columns], dim=-1).reshape(1, 1, -1, 2)
    wanted = (torch.arange(size[0] * size[1]) - shift * size[1]) % (size[0] * size[1])
    structure = ndgpa.Image(size, block=2)
    return Level(size, torch.zeros(1, 3, *size), key[:, :, wanted], key, structure, operator)


@pytest.mark.parametrize("operator", OPERATORS)
def test_keys_and_their_weights_are_those_of_the_attention(operator: Operator) -> None:
    level = matching_level(operator)
    level = replace(level, query=level.query / 20, key=level.key / 20)
    sites = torch.tensor([3, 77, 127])
    keys, weights = keys_and_weights(level, 0, sites)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3))
    best = keys.gather(1, weights.argmax(dim=1, keepdim=True))[:, 0]
    assert torch.equal(best_keys(level, 0, sites), best)
    value = torch.randn(1, 1, 128, 5, generator=torch.Generator().manual_seed(0))
    expected = operator(level.query, level.key, value, level.structure)[0, 0, sites]
    read = value[0, 0][keys] * weights[..., None]
    torch.testing.assert_close(read.sum(dim=1), expected)


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_true_key_is_at_distance_zero_and_a_shifted_one_at_its_shift(
    operator: Operator,
) -> None:
    level = matching_level(operator)
    copyable = torch.zeros(16, 8, dtype=torch.bool)
    copyable[2:, 1:7] = True
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(8.0), indexing="ij")
    truth = torch.stack([rows - 2, columns], dim=-1)
    distances = key_distances(level, 0, truth, copyable)
    assert len(distances) == 14 * 6
    assert distances.abs().max() == 0
    truth[..., 1] += 0.5  # half a pixel of 16 rows: 4 of 128
    distances = key_distances(level, 0, truth, copyable)
    assert copy_accuracy(distances) == {"key_px": 4.0, "acc3": 0.0, "acc6": 1.0}


def test_a_coarse_level_reads_the_middles_of_its_sites() -> None:
    sites = sites_of(torch.tensor([[0.0, 0.0], [31.0, 15.0], [4.0, 3.0]]), (32, 16), (8, 4))
    assert sites.tolist() == [0, 31, 4]
    assert places_of(torch.tensor([4]), (32, 16), (8, 4)).tolist() == [[5.5, 1.5]]


def test_no_copyable_pixel_has_no_accuracy() -> None:
    level = matching_level(OPERATORS[0])
    none = torch.zeros(16, 8, dtype=torch.bool)
    accuracy = copy_accuracy(key_distances(level, 0, torch.zeros(16, 8, 2), none))
    assert all(math.isnan(value) for value in accuracy.values())


def test_attention_to_all_takes_more_memory_than_to_few() -> None:
    few, all_ = (
        attention_bytes(matching_level(operator, size=(64, 64)), value_channels=4)
        for operator in OPERATORS
    )
    assert all_ > 2 * 4096**2 * 4  # the affinity and its gradient
    assert 4096 * 8 * 4 < few < all_ / 5

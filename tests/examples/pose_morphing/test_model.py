"""The generator and discriminator of pose morphing: tables of the paper, names, and what copies."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

import ndgpa
from examples.images.pose_morphing.config import PRESETS, ModelConfig, parse
from examples.images.pose_morphing.layers import (
    Conv,
    ModulatedConv,
    activate,
    blur,
    double,
    halve,
)
from examples.images.pose_morphing.losses import R1_GAMMA, gradient_penalty
from examples.images.pose_morphing.model import Discriminator, Generator, set_kappa, with_deviation

SMALL = ModelConfig((16, 16), (4, 6, 8), "GPA16_3_4")
LEARNABLE = dataclasses.replace(
    SMALL,
    affinity="euclidean",
    query_width=4,
    pyramid=True,
    coordinates=True,
    temperature=True,
    copy_rgb=True,
)
DATA = torch.Generator().manual_seed(1)


def question(b: int, h: int, w: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    source = 2 * torch.rand(b, 3, h, w, generator=DATA) - 1
    return source, *torch.rand(2, b, 18, h, w, generator=DATA)


def built(config: ModelConfig, seed: int = 0) -> Generator:
    torch.manual_seed(seed)
    return Generator(config)


@pytest.mark.parametrize(
    ("preset", "channels", "factors", "cells", "side", "kappa"),
    [
        ("df256", [160, 320, 640, 640, 640, 640], [4, 2, 1, 1, 1, 1], 1024, 2, 12),
        ("chal512", [128, 256, 512, 768, 768, 768], [8, 4, 2, 1, 1, 1], 2048, 1, 4),
    ],
)
def test_the_presets_of_the_paper_are_its_tables(
    preset: str, channels: list[int], factors: list[int], cells: int, side: int, kappa: int
) -> None:
    config = PRESETS[preset]
    with torch.device("meta"):
        generator = Generator(config)
    assert [a.fuse.weight.shape[0] for a in generator.attentions] == channels
    assert len(generator.attentions) == 6
    for attention, factor in zip(generator.attentions, factors, strict=True):
        selects = isinstance(attention.operator, ndgpa.GPA)
        assert selects == (factor > 1)
        if selects:
            assert attention.operator.rule == kappa
            assert attention.structure.num_cells == cells
            assert attention.structure.cells.shape[1] == side**2
            assert set(attention.structure.block_sizes.tolist()) == {factor**2}


@pytest.mark.parametrize(
    ("preset", "generator", "discriminator"),
    [("df256", 133_099_230, 56_979_361), ("chal512", 158_614_046, 111_906_945)],
)
def test_parameter_counts_stay(preset: str, generator: int, discriminator: int) -> None:
    with torch.device("meta"):
        made = Generator(PRESETS[preset]), Discriminator(PRESETS[preset])
    counts = [sum(p.numel() for p in module.parameters()) for module in made]
    assert counts == [generator, discriminator]


@pytest.mark.parametrize("name", ["tiny64", "small128"])
def test_the_small_presets_morph(name: str) -> None:
    config = PRESETS[name]
    with torch.no_grad():
        morph = built(config)(*question(2, *config.size))
    assert morph.image.shape == (2, 3, *config.size)
    assert [level.size for level in morph.levels] == config.sizes
    assert bool(morph.image.isfinite().all())


@pytest.mark.parametrize("name", ["GPA16_3_4", "NYF8_4", "PER8_4", "FULL", "NO_4"])
@pytest.mark.parametrize("base", [SMALL, LEARNABLE])
def test_any_attention_by_its_name_trains(name: str, base: ModelConfig) -> None:
    generator = built(dataclasses.replace(base, attention=name))
    morph = generator(*question(2, 16, 16))
    copied = sum(level.copied.square().mean() for level in morph.levels)
    (morph.image.square().mean() + copied).backward()
    unused = {n for n, p in generator.named_parameters() if p.grad is None}
    silent = [f"{part}.{i}." for part in ("attentions", "source_decoder") for i in (0, 1)]
    assert all(name == "NO_4" and n.startswith(tuple(silent)) for n in unused)
    assert len(morph.levels) == (1 if name == "NO_4" else 3)


@pytest.mark.parametrize(
    "operator",
    [
        ndgpa.operators.Neighborhood(3),
        ndgpa.GPA(ndgpa.StraightThrough(ndgpa.TopK(2))),
        ndgpa.operators.Nystrom(4),
    ],
    ids=lambda operator: type(operator).__name__,
)
def test_any_operator_can_stand_at_a_level(operator: ndgpa.operators.Operator) -> None:
    generator = built(LEARNABLE)
    generator.attentions[1].operator = operator
    source, *maps = question(1, 16, 16)
    morph = generator(source, *maps)
    morph.image.sum().backward()
    assert morph.levels[1].operator is operator
    assert generator.attentions[1].to_query.weight.grad is not None


def test_names_say_what_the_paper_says() -> None:
    pivot = parse("GPA1024_12_64")
    assert [pivot.factor((n, n)) for n in (256, 128, 64, 32)] == [4, 2, 1, 1]
    assert pivot.operator((256, 256), "dot", 8) == ndgpa.GPA(12, scale=1.0)
    assert pivot.operator((64, 64), "dot", 8) == ndgpa.Full(scale=1.0)
    assert parse("NO_64").operator((128, 128), "dot", 8) == ndgpa.operators.NoAttention()


@pytest.mark.parametrize(
    "name", ["GPA", "GPA_1_2", "gpa1024_12_64", "NO", "NYF_64", "GPA128_4_0", "GPA0_4_8", ""]
)
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unknown attention"):
        parse(name)


def test_cells_that_do_not_tile_are_refused() -> None:
    with pytest.raises(ValueError, match="1000 square cells do not tile a level of 256x256"):
        ModelConfig((256, 256), (4, 4), "GPA1000_12_64")
    with pytest.raises(ValueError, match="3 levels need a size that 4 divides"):
        ModelConfig((18, 16), (4, 4, 4))


def test_the_picture_is_the_sum_of_what_each_level_paints() -> None:
    generator, asked = built(dataclasses.replace(SMALL, noise=False)), question(1, 16, 16)
    with torch.no_grad():
        whole = generator(*asked).image
        parts = []
        for level in range(3):
            other = built(dataclasses.replace(SMALL, noise=False))
            for i, conv in enumerate(other.to_rgb):
                if i != level:
                    conv.weight.zero_()
                    conv.bias.zero_()
            parts.append(other(*asked).image)
    torch.testing.assert_close(sum(parts), whole)


def test_what_a_level_copied_is_its_attention_over_the_source() -> None:
    source, *maps = question(2, 16, 16)
    with torch.no_grad():
        morph = built(LEARNABLE)(source, *maps)
    finest = morph.levels[0]
    pixels = source.flatten(2).mT[:, None]
    copied = finest.operator(finest.query, finest.key, pixels, finest.structure)
    torch.testing.assert_close(copied[:, 0].mT.reshape(2, 3, 16, 16), finest.copied)


def test_where_the_mask_is_one_the_finest_level_shows_its_copy() -> None:
    generator = built(LEARNABLE)
    with torch.no_grad():
        generator.to_rgb[0].weight.zero_()
        generator.to_rgb[0].bias.copy_(torch.tensor([0, 0, 0, 1e4]))
        morph = generator(*question(1, 16, 16))
    torch.testing.assert_close(morph.image, morph.levels[0].copied)


def test_the_pyramid_hands_down_queries_and_keys() -> None:
    generator = built(LEARNABLE)
    with torch.no_grad():
        for attention in generator.attentions[:-1]:
            for conv in (attention.to_query, attention.to_key):
                conv.weight.zero_()
                conv.bias.zero_()
            attention.log_temperature.zero_()
        generator.attentions[-1].log_temperature.zero_()
        morph = generator(*question(1, 16, 16))
    coarse = morph.levels[-1].query[:, 0].mT.reshape(1, 4, 4, 4)
    finer = F.interpolate(coarse, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(morph.levels[1].query[:, 0].mT.reshape(1, 4, 8, 8), finer)


def test_selection_hears_of_keys_only_through_the_level_below() -> None:
    """Law of hard selection: a key that no cell reads gets no gradient from that level."""
    generator = built(dataclasses.replace(LEARNABLE, pyramid=False))
    morph = generator(*question(1, 16, 16))
    finest = morph.levels[0]
    finest.key.retain_grad()
    again = finest.operator(finest.query, finest.key, finest.key, finest.structure)
    again.square().sum().backward()
    chosen = ndgpa.select(
        finest.query, finest.key, finest.structure, 3, scale=1.0, affinity="euclidean"
    )
    read = torch.zeros(256, dtype=torch.bool)
    read[finest.structure.upsample(chosen.blocks).flatten()] = True
    moved = finest.key.grad[0, 0].abs().sum(1) > 0
    assert not bool((moved & ~read).any())
    assert bool((moved & read).any())


def test_a_style_changes_the_picture() -> None:
    generator, asked = built(dataclasses.replace(SMALL, noise=False)), question(1, 16, 16)
    with torch.no_grad():
        before = generator(*asked).image
        for block in (*generator.target_decoder, *generator.source_decoder):
            block.conv.to_scale.bias.mul_(2)
            block.conv.to_scale.weight.mul_(2)
        torch.testing.assert_close(generator(*asked).image, before)  # demodulated
        for block in generator.target_decoder:
            block.conv.to_scale.weight.mul_(3)
        assert (generator(*asked).image - before).abs().max() > 1e-3


def test_noise_begins_at_nothing() -> None:
    generator, asked = built(SMALL), question(1, 16, 16)
    with torch.no_grad():
        assert torch.equal(generator(*asked).image, generator(*asked).image)
        generator.target_decoder[0].noise.strength.fill_(1.0)
        assert not torch.equal(generator(*asked).image, generator(*asked).image)


def test_coarse_only_leaves_out_the_attentions_that_select() -> None:
    with torch.no_grad():
        morph = built(LEARNABLE)(*question(1, 16, 16), coarse_only=True)
    assert [level.size for level in morph.levels] == [(4, 4)]


def test_kappa_can_be_another_after_training() -> None:
    generator, asked = built(LEARNABLE), question(1, 16, 16)
    full = built(dataclasses.replace(LEARNABLE, attention="FULL"))
    full.load_state_dict(generator.state_dict())
    set_kappa(generator, 16)
    with torch.no_grad():
        torch.testing.assert_close(generator(*asked).image, full(*asked).image)
        set_kappa(generator, 1)
        assert (generator(*asked).image - full(*asked).image).abs().max() > 1e-4


def test_modulated_convolution_is_one_convolution_a_sample() -> None:
    torch.manual_seed(0)
    layer = ModulatedConv(3, 5, style=4)
    x, style = torch.randn(2, 3, 6, 6), torch.randn(2, 4)
    want = []
    for sample, scale in zip(x, layer.to_scale(style), strict=True):
        weight = layer.conv.weight * layer.conv.scale * scale[None, :, None, None]
        norm = (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        want.append(F.conv2d(sample[None], weight / norm, padding=1))
    torch.testing.assert_close(layer(x, style), torch.cat(want))


def test_learning_rate_multiplier_changes_steps_and_not_the_network() -> None:
    torch.manual_seed(0)
    plain = Conv(4, 4)
    torch.manual_seed(0)
    quick = Conv(4, 4, lr=12.0)
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(quick(x), plain(x))
    torch.testing.assert_close(12 * quick.weight, plain.weight)


def test_activation_and_convolution_keep_the_variance() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 64, 16, 16)
    out = activate(Conv(64, 64)(x))[:, :, 1:-1, 1:-1]
    assert 0.8 < out.square().mean() < 1.25


@pytest.mark.parametrize("smooth", [True, False])
def test_resampling_keeps_a_flat_picture(smooth: bool) -> None:
    flat = torch.ones(1, 2, 8, 12)
    assert halve(flat, smooth).shape == (1, 2, 4, 6)
    assert double(flat, smooth).shape == (1, 2, 16, 24)
    torch.testing.assert_close(halve(flat, smooth)[:, :, 1:-1, 1:-1], flat[:, :, 1:3, 1:5])
    torch.testing.assert_close(double(flat, smooth)[:, :, 2:-2, 2:-2], torch.ones(1, 2, 12, 20))


def test_the_filter_is_that_of_stylegan2() -> None:
    spot = torch.zeros(1, 1, 5, 5)
    spot[0, 0, 2, 2] = 64.0
    row = torch.tensor([1.0, 3.0, 3.0, 1.0])
    torch.testing.assert_close(blur(spot)[0, 0, 1:5, 1:5], row.outer(row))


@pytest.mark.parametrize("batch", [1, 2, 3, 6])
def test_any_batch_has_a_deviation(batch: int) -> None:
    x = torch.randn(batch, 4, 2, 2, generator=DATA)
    out = with_deviation(x)
    assert out.shape == (batch, 5, 2, 2)
    if batch == 3:
        deviation = x.std(dim=0, correction=0).mean()
        torch.testing.assert_close(out[:, 4], deviation.expand(3, 2, 2), atol=1e-4, rtol=0)


def test_the_penalty_of_a_linear_judge_is_its_squared_slope() -> None:
    slope = torch.randn(3, 4, 4, generator=DATA)

    class Judge(torch.nn.Module):
        def forward(self, image: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
            return (image * slope).sum((1, 2, 3))

    penalty = gradient_penalty(Judge(), torch.randn(2, 3, 4, 4), torch.zeros(2, 18, 4, 4))
    torch.testing.assert_close(penalty, R1_GAMMA / 2 * slope.square().sum())


def test_the_discriminator_has_a_penalty_that_trains_it() -> None:
    torch.manual_seed(0)
    judge = Discriminator(SMALL)
    source, maps, _ = question(3, 16, 16)
    assert judge(source, maps).shape == (3,)
    gradient_penalty(judge, source, maps).backward()
    assert all(p.grad is not None for n, p in judge.named_parameters() if "weight" in n)

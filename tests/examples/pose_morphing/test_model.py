"""The generator and discriminator of pose morphing: tables of the paper, names, and what copies."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

import ndgpa
from examples.common.adversarial import r1
from examples.common.stylegan2 import (
    Conv,
    ModulatedConv,
    activate,
    double,
    halve,
    with_deviation,
)
from examples.images.pose_morphing.config import PRESETS, ModelConfig, parse
from examples.images.pose_morphing.model import (
    Generator,
    UpBlock,
    discriminator_of,
    set_kappa,
)

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
    [("df256", 156_615_720, 56_979_361), ("chal512", 182_902_568, 111_906_945)],
)
def test_parameter_counts_stay(preset: str, generator: int, discriminator: int) -> None:
    with torch.device("meta"):
        made = Generator(PRESETS[preset]), discriminator_of(PRESETS[preset])
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


@pytest.mark.parametrize("affinity", ["dot", "euclidean"])
def test_low_rank_attentions_have_the_affinity_of_the_others(affinity: str) -> None:
    """With as many landmarks as sites Nystromformer is full attention; Performer comes near it."""
    query, key = (0.3 * torch.randn(1, 1, 64, 4, generator=DATA) for _ in range(2))
    value, space = torch.randn(1, 1, 64, 3, generator=DATA), ndgpa.Image((8, 8), block=1)
    full = ndgpa.Full(scale=1.0, affinity=affinity)(query, key, value, space)
    for name in ("NYF64_4", "FULL_4"):
        operator = parse(name).operator((8, 8), affinity, width=4)
        torch.testing.assert_close(operator(query, key, value, space), full)
    torch.manual_seed(0)
    performer = parse("PER4096_4").operator((8, 8), affinity, width=4)
    assert (performer(query, key, value, space) - full).norm() < 0.1 * full.norm()


@pytest.mark.parametrize("name", ["GPA16_3_4", "NYF8_4", "PER8_4", "FULL_4", "FULL", "NO_4"])
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


def test_a_name_says_the_far_field_and_the_rule() -> None:
    operator = parse("GPA1024_12_64+site+through").operator((128, 128), "dot", 8)
    through = ndgpa.StraightThrough(ndgpa.TopK(12))
    assert operator == ndgpa.GPA(through, scale=1.0, far="site")
    assert parse("GPA1024_12_64+block").operator((128, 128), "dot", 8).far == "block"
    assert parse("GPA1024_12_64+soft").rule == ndgpa.SoftTopK(12, at_most=24)
    assert parse("GPA1024_12_64+logit").rule == ndgpa.TopK(12, relevance="logit")


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["GPA128_4_8+far", "GPA128_4_8+soft+site", "NO_8+site", "FULL+"])
def test_unknown_words_after_a_name_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"after a GPA may follow one of \+site, \+block"):
        parse(name)


@pytest.mark.parametrize("name", ["GPA16_3_4+site", "GPA16_3_4+block+refine", "GPA16_3_4+soft"])
def test_learnt_and_far_attentions_reach_keys_that_hard_selection_does_not(name: str) -> None:
    morphs = {}
    for each in ("GPA16_3_4", name):
        morph = built(dataclasses.replace(LEARNABLE, attention=each, pyramid=False))(
            *question(1, 16, 16)
        )
        morph.levels[0].key.retain_grad()
        morph.image.square().sum().backward()
        morphs[each] = morph.levels[0].key.grad.abs().sum(dim=3).count_nonzero()
    assert morphs[name] > morphs["GPA16_3_4"]


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_heads_are_attentions_side_by_side(heads: int) -> None:
    """The finest level with h heads is h attentions to its channels' parts."""
    widths = (4, 8, 8)
    config = dataclasses.replace(LEARNABLE, channels=widths, heads=heads, query_width=8)
    level = built(config).attentions[0]
    query, key, source = (torch.randn(2, d, 16, 16, generator=DATA) for d in (8, 8, 4))
    pixels = torch.rand(2, 3, 16, 16, generator=DATA)
    with torch.no_grad():
        features, copied, *_ = level.attend(query, key, source, pixels)
        values = level.to_value(source).chunk(heads, dim=1)
        asked = (level.heat(x).chunk(heads, dim=1) for x in (query, key))
        parts = [
            level.operator(
                *(x.flatten(2).mT[:, None] for x in (q, k, torch.cat([v, pixels], 1))),
                level.structure,
            )[:, 0].mT.unflatten(2, (16, 16))
            for q, k, v in zip(*asked, values, strict=True)
        ]
    torch.testing.assert_close(features, torch.cat([x[:, :-3] for x in parts], dim=1))
    torch.testing.assert_close(copied, torch.stack([x[:, -3:] for x in parts]).mean(dim=0))


@pytest.mark.bad_input
def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="4 heads must divide the channels"):
        dataclasses.replace(SMALL, heads=4)


def test_the_decoder_block_is_that_of_stylegan2() -> None:
    """Double, convolve; encoder's features beside, convolve; each modulated, then activated."""
    torch.manual_seed(0)
    block = UpBlock(6, 4, SMALL)
    coarser, skip, style = (
        torch.randn(2, *s, generator=DATA) for s in ((6, 4, 4), (4, 8, 8), (8,))
    )

    def convolved(x: torch.Tensor, layer: ModulatedConv) -> torch.Tensor:
        scale = style @ layer.to_scale.weight.T * layer.to_scale.scale + layer.to_scale.bias
        each = []
        for sample, s in zip(x, scale, strict=True):
            weight = layer.conv.weight * layer.conv.scale * s[None, :, None, None]
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
            each.append(F.conv2d(sample[None], weight, layer.conv.bias, padding=1))
        return F.leaky_relu(torch.cat(each), 0.2) * (2 / 1.04) ** 0.5

    x = convolved(double(coarser, smooth=True), block.first.conv)
    wanted = convolved(torch.cat([x, skip], dim=1), block.second.conv)
    torch.testing.assert_close(block(coarser, skip, style), wanted)


def test_encoder_and_discriminator_have_the_same_blocks() -> None:
    generator, judge = built(SMALL), discriminator_of(SMALL)
    for encoder in (generator.source_encoder, generator.target_encoder):
        shapes = [p.shape for p in encoder.down.parameters()]
        assert shapes == [p.shape for p in judge.blocks.parameters()]


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
        for layer in modulated(generator):
            layer.to_scale.bias.mul_(2)
            layer.to_scale.weight.mul_(2)
        torch.testing.assert_close(generator(*asked).image, before)  # demodulated
        for layer in modulated(generator.target_decoder):
            layer.to_scale.weight.mul_(3)
        assert (generator(*asked).image - before).abs().max() > 1e-3


def modulated(module: torch.nn.Module) -> list[ModulatedConv]:
    return [layer for layer in module.modules() if isinstance(layer, ModulatedConv)]


def test_noise_begins_at_nothing() -> None:
    generator, asked = built(SMALL), question(1, 16, 16)
    with torch.no_grad():
        assert torch.equal(generator(*asked).image, generator(*asked).image)
        generator.target_decoder[0].second.noise.strength.fill_(1.0)
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
    assert halve(flat).shape == (1, 2, 4, 6)
    assert double(flat, smooth).shape == (1, 2, 16, 24)
    torch.testing.assert_close(halve(flat)[:, :, 1:-1, 1:-1], flat[:, :, 1:3, 1:5])
    torch.testing.assert_close(double(flat, smooth)[:, :, 2:-2, 2:-2], torch.ones(1, 2, 12, 20))


def test_the_filter_is_that_of_stylegan2() -> None:
    row = torch.tensor([1.0, 3.0, 3.0, 1.0])
    spot = torch.zeros(1, 1, 4, 4)
    spot[0, 0, 1, 1] = 16.0
    torch.testing.assert_close(double(spot, smooth=True)[0, 0, 1:5, 1:5], row.outer(row))
    wide = torch.randn(1, 2, 8, 8, generator=DATA)
    inner = (wide[..., 1:5, 1:5] * row.outer(row)).sum((2, 3)) / 64
    torch.testing.assert_close(halve(wide)[..., 1, 1], inner)


@pytest.mark.parametrize("batch", [1, 2, 3, 6])
def test_any_batch_has_a_deviation(batch: int) -> None:
    x = torch.randn(batch, 4, 2, 2, generator=DATA)
    out = with_deviation(x)
    assert out.shape == (batch, 5, 2, 2)
    if batch == 3:
        deviation = x.std(dim=0, correction=0).mean()
        torch.testing.assert_close(out[:, 4], deviation.expand(3, 2, 2), atol=1e-4, rtol=0)


def test_the_discriminator_has_a_penalty_that_trains_it() -> None:
    torch.manual_seed(0)
    judge = discriminator_of(SMALL)
    source, maps, _ = question(3, 16, 16)
    assert judge(source, maps).shape == (3,)
    r1(lambda x: judge(x, maps), source, 5.0).backward()
    assert all(p.grad is not None for n, p in judge.named_parameters() if "weight" in n)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["df256", "chal512"])
def test_the_presets_of_the_paper_run_forward_and_backward(preset: str) -> None:
    """Several GB and minutes of a CPU; every parameter gets a gradient that is finite."""
    config = PRESETS[preset]
    generator = built(config)
    morph = generator(*question(1, *config.size))
    assert morph.image.shape == (1, 3, *config.size)
    assert [level.size for level in morph.levels] == config.sizes
    morph.image.square().mean().backward()
    gradients = {name: p.grad for name, p in generator.named_parameters()}
    assert [name for name, g in gradients.items() if g is None or not g.isfinite().all()] == []

"""The generators are those of their papers: sizes, shapes, and what depends on what."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from examples.images.gan import hit, stylenat, ylg
from examples.images.gan.systems import SYSTEMS, config_of, latent_width


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("imagenet128", 32_866_627), ("ffhq256", 46_217_670), ("ffhq1024", 88_216_300)],
)
def test_hit_has_as_many_parameters_as_the_released_code(preset: str, parameters: int) -> None:
    with torch.device("meta"):
        assert count(hit.Generator(hit.PRESETS[preset])) == parameters


@pytest.mark.parametrize(("preset", "millions"), [("ffhq256", 48.921), ("ffhq1024", 49.453)])
def test_stylenat_has_as_many_parameters_as_published(preset: str, millions: float) -> None:
    with torch.device("meta"):
        assert round(count(stylenat.Generator(stylenat.PRESETS[preset])) / 1e6, 3) == millions


def test_hit_stage_by_stage() -> None:
    generator = hit.Generator(hit.PRESETS["tiny64"])
    sides: list[tuple[int, int]] = []
    for stage in generator.stages:
        stage.from_tokens.register_forward_hook(lambda _, __, x: sides.append(tuple(x.shape[1:])))
    picture = generator(torch.randn(2, 128))
    assert sides == [(64, 128), (256, 96), (1024, 64), (4096, 32)]
    assert picture.shape == (2, 3, 64, 64)


def test_the_table_of_hit_at_256() -> None:
    with torch.device("meta"):
        generator = hit.Generator(hit.PRESETS["ffhq256"]).eval()
        found: list[tuple[int, int]] = []
        for stage in generator.stages:
            stage.from_tokens.register_forward_hook(lambda _, __, x: found.append((*x.shape[1:],)))
        assert generator(torch.empty(1, 512)).shape == (1, 3, 256, 256)
    assert found == [(64, 512), (256, 512), (1024, 256), (4096, 128), (16384, 64), (65536, 64)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("system", "preset"),
    [("hit", "ffhq256"), ("ylg", "imagenet128"), ("sagan", "imagenet128"), ("stylenat", "ffhq256")],
)
@torch.no_grad()
def test_full_presets_make_a_picture_on_a_cpu(system: str, preset: str) -> None:
    config = config_of(system, preset, None, 1000)
    generator = SYSTEMS[system].generator(config).eval()
    picture = generator(torch.randn(1, latent_width(config)), torch.tensor([3]))
    assert picture.shape == (1, 3, config.size, config.size)
    assert picture.isfinite().all()
    assert picture.std() > 0


def test_a_latent_reaches_every_stage_of_hit_through_its_tokens() -> None:
    generator = hit.Generator(hit.PRESETS["tiny32"]).eval()
    for stage in generator.stages:
        channels = stage.place.shape[1]
        x = torch.randn(1, stage.side**2, channels)
        a, b = (stage.from_tokens(x, stage.image, torch.randn(1, 16, 512)) for _ in range(2))
        assert not torch.allclose(a, b)


def test_pixels_of_a_late_stage_of_hit_do_not_see_each_other() -> None:
    stage = hit.Generator(hit.PRESETS["tiny32"]).eval().stages[-1]
    x, tokens = torch.randn(1, *stage.place.shape), torch.randn(1, 16, 512)
    order = torch.randperm(32**2)
    layer = stage.layers[0]
    torch.testing.assert_close(layer(x)[:, order], layer(x[:, order]))
    attended = stage.from_tokens(x, stage.image, tokens)
    torch.testing.assert_close(
        attended[:, order], stage.from_tokens(x[:, order], stage.image, tokens)
    )


def test_keys_and_values_of_hit_have_one_head() -> None:
    attention = hit.Generator(hit.PRESETS["tiny32"]).stages[0].layers[0].attention
    assert attention.to_key.out_features == attention.to_value.out_features == 64 // 4


def test_the_discriminator_of_hit_begins_as_layers_of_keras_do() -> None:
    network = hit.Discriminator((16, 32, 64))
    weights = dict(network.named_parameters())
    assert all(not bias.any() for name, bias in weights.items() if name.endswith("bias"))
    for name, fans in (("blocks.1.second.weight", 9 * (32 + 64)), ("dense.weight", 16 * 64 + 64)):
        bound = (6 / fans) ** 0.5
        assert 0.99 * bound < weights[name].abs().max() <= bound
        assert weights[name].std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_attention_of_ylg_begins_as_the_identity() -> None:
    attention = ylg.SelfAttention(64, None)
    x = torch.randn(2, 64, 16, 16)
    assert torch.equal(attention(x), x)


def test_ylg_knows_its_class() -> None:
    config = ylg.PRESETS["tiny32"]
    generator, discriminator = ylg.Generator(config).eval(), ylg.Discriminator(config).eval()
    nn.init.normal_(generator.blocks[0].norms[0].shift.weight)
    latent = torch.randn(1, config.latent)
    a, b = (generator(latent, torch.tensor([label])) for label in (0, 1))
    assert a.shape == (1, 3, 32, 32)
    assert not torch.allclose(a, b)
    scores = [discriminator(a, torch.tensor([label])) for label in (0, 1)]
    assert scores[0] != scores[1]
    assert discriminator.features(a).shape[-1] == config.attend_at


def test_norms_of_stylenat_have_a_gain_about_0_and_not_1() -> None:
    norm = stylenat.StyledNorm(64, 32)
    nn.init.zeros_(norm.to_gain_shift.weight)
    assert not norm(torch.randn(2, 10, 64), torch.randn(2, 32)).any()


def test_each_block_of_stylenat_has_a_style_of_its_own() -> None:
    config = stylenat.PRESETS["tiny32"]
    generator = stylenat.Generator(config).eval()
    styles = torch.randn(1, config.latents, config.style)
    picture = generator.of_styles(styles)
    for block in range(config.latents):
        other = styles.clone()
        other[:, block] = torch.randn(config.style)
        assert not torch.equal(generator.of_styles(other), picture)


def test_the_small_full_attention_of_stylenat_has_a_bias_for_each_relative_place() -> None:
    attention = stylenat.FullWithPlaces(4, 2)
    nn.init.normal_(attention.bias)
    query, key, value = torch.randn(3, 1, 2, 16, 8)
    logits = query @ key.mT * 8**-0.5
    for i in range(16):
        for j in range(16):
            apart = (j // 4 - i // 4 + 3) * 7 + (j % 4 - i % 4 + 3)
            logits[..., i, j] += attention.bias[:, apart]
    torch.testing.assert_close(attention(query, key, value), logits.softmax(dim=-1) @ value)


@pytest.mark.bad_input
def test_a_window_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="at 16 pixels a window of 5 keys 4 apart needs 20 pixels"):
        replace(stylenat.PRESETS["tiny32"], dilations=((1,), (1,), (1, 4), (1, 4)))


@pytest.mark.parametrize("attention", ["GPA(4, far=block)", "Full()", "NoAttention"])
def test_any_attention_fits_into_each(attention: str) -> None:
    latent = torch.randn(2, 64)
    made = [
        hit.Generator(replace(hit.PRESETS["tiny32"], attention=attention))(latent),
        stylenat.Generator(replace(stylenat.PRESETS["tiny32"], attention=attention))(latent),
        ylg.Generator(replace(ylg.PRESETS["tiny32"], attention=attention))(
            latent, torch.tensor([0, 1])
        ),
    ]
    assert [x.shape for x in made] == [(2, 3, 32, 32)] * 3

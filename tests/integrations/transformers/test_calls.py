"""The grid belongs to the call: sizes, threads, recomputation, copies; masks; decoding."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

import transformers

import ndgpa
from ndgpa.analysis import peak_bytes
from ndgpa.integrations.transformers import disable, enable
from tests.integrations.transformers.models import KINDS, PICTURE, TEXT, output, pictures, sound

EVERYTHING = 10_000
FREE_SIZE = ("DINOv2", "DINOv2 with registers", "DINOv3")


def of(kind: str, **options: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    model, inputs = KINDS[kind]()
    if options:
        enable(model, **options)
    return model, inputs


# Sizes


@pytest.mark.parametrize("kind", FREE_SIZE)
@torch.no_grad()
def test_two_pictures_of_as_many_tokens_each_have_their_own_grid(kind: str) -> None:
    """8x8, 4x16 and 16x4: a structure kept from the last call would fit each of them."""
    sizes = [(32, 32), (16, 64), (64, 16), (20, 36), (32, 32)]
    inputs = [pictures(*size) for size in sizes]
    fresh = [output(of(kind, rule=2, block=2)[0], x) for x in inputs]
    model, _ = of(kind, rule=2, block=2)
    for x, wanted in zip(inputs, fresh):
        assert torch.equal(output(model, x), wanted)
    turned = {"pixel_values": inputs[1]["pixel_values"].reshape(2, 3, 64, 16)}
    assert not torch.allclose(output(model, turned), fresh[1], atol=1e-3)


@torch.no_grad()
def test_a_vit_of_interpolated_positions_takes_any_size() -> None:
    model, _ = of("ViT")
    inputs = [pictures(16, 64), pictures(40, 24)]
    wanted = [output(model, x, interpolate_pos_encoding=True) for x in inputs]
    enable(model, EVERYTHING, block=4)
    for x, y in zip(inputs, wanted):
        out = output(model, x, interpolate_pos_encoding=True)
        torch.testing.assert_close(out, y, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_call_of_a_part_of_a_model_goes_by_the_grid_of_the_picture_or_not_at_all() -> None:
    model, inputs = of("DINOv2", rule=2, block=2)
    hidden = model.embeddings(**inputs)
    with pytest.raises(ValueError, match="the grid of these tokens is not known: call Dinov2Model"):
        model.encoder(hidden)


@torch.no_grad()
def test_sounds_of_many_lengths_are_what_they_are_in_a_model_of_their_own() -> None:
    model, _ = of("wav2vec2", rule=2, block=4, cell=2)
    inputs = [sound(samples) for samples in (400, 90, 1000, 400, 30, *range(300, 500, 16))]
    for x in inputs:
        assert torch.equal(output(model, x), output(of("wav2vec2", rule=2, block=4, cell=2)[0], x))


@torch.no_grad()
def test_only_a_few_structures_are_kept() -> None:
    model, _ = of("wav2vec2", rule=2, block=4)
    for samples in range(100, 400, 16):
        output(model, sound(samples, batch=1))
    recent = model.encoder.layers[0].attention.ndgpa.space.recent
    assert 1 < len(recent._kept) <= 8
    assert model.encoder.layers[1].attention.ndgpa.space.recent is recent


# The call is run again, or many at once


def _gradient(model: nn.Module, inputs: list[dict[str, Tensor]]) -> list[Tensor]:
    """Both forwards before the backward: what is recomputed is not the last grid."""
    model.train().zero_grad()
    sum(output(model, x).square().mean() for x in inputs).backward()
    return [x.grad.clone() for x in model.parameters() if x.grad is not None]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["DINOv2", "DINOv3", "VideoMAE", "wav2vec2", "Llama"])
def test_activation_checkpointing_gives_the_same_gradient(kind: str, reentrant: bool) -> None:
    model, inputs = of(kind, rule=2, block=2)
    other = pictures(16, 64) if kind in FREE_SIZE else inputs
    both = [{name: x.clone() for name, x in y.items()} for y in (inputs, other)]
    torch.manual_seed(3)
    wanted = _gradient(model, both)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    torch.manual_seed(3)
    got = _gradient(model, both)
    assert len(got) == len(wanted)
    for mine, theirs in zip(got, wanted):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_eight_threads_share_a_model() -> None:
    sizes = [(32, 32), (16, 64), (64, 16), (8, 128), (128, 8), (20, 36), (36, 20), (64, 64)]
    inputs = [pictures(*size, batch=1) for size in sizes]
    wanted = [output(of("DINOv2", rule=2, block=2)[0], x).detach() for x in inputs]
    model, _ = of("DINOv2", rule=2, block=2)
    calls = [number for _ in range(6) for number in range(len(sizes))]
    with ThreadPoolExecutor(8) as pool:
        outs = list(pool.map(lambda number: output(model, inputs[number]), calls))
    assert all(torch.equal(out, wanted[number]) for out, number in zip(outs, calls))


@torch.no_grad()
def test_copies_and_pickles_of_a_model_work_and_are_disabled_alone() -> None:
    model, inputs = of("DINOv2")
    dense = output(model, inputs)
    enable(model, 2, block=2)
    wanted = output(model, inputs)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(output(twin, inputs), wanted)
        disable(twin)
        assert torch.equal(output(twin, inputs), dense)
        assert torch.equal(output(model, inputs), wanted)


def test_the_weights_keep_their_names(tmp_path: Any) -> None:
    model, inputs = of("ViT")
    names = list(model.state_dict())
    enable(model, 2, block=2)
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    assert "ndgpa" not in (tmp_path / "config.json").read_text()
    again = transformers.ViTModel.from_pretrained(tmp_path)
    disable(model)
    torch.testing.assert_close(output(again.eval(), inputs), output(model, inputs))


# Padding


@pytest.mark.parametrize("kind", ["wav2vec2", "HuBERT"])
@torch.no_grad()
def test_padding_of_a_sound_is_not_attended(kind: str) -> None:
    model, inputs = of(kind)
    mask = torch.ones(2, 400, dtype=torch.int64)
    mask[1, 250:] = 0
    wanted = output(model, inputs, attention_mask=mask)
    assert (wanted - output(model, inputs)).abs().max() > 1e-3
    enable(model, EVERYTHING, block=3)
    frames = model._get_feat_extract_output_lengths(mask.sum(1)).tolist()
    out = output(model, inputs, attention_mask=mask)
    for row, count in enumerate(frames):
        torch.testing.assert_close(out[row, :count], wanted[row, :count], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["ViT", "DINOv2 with registers", "AST"])
@torch.no_grad()
def test_hidden_patches_and_tokens_are_not_attended(kind: str) -> None:
    model, inputs = of(kind)
    count = output(model, inputs).shape[1]
    mask = torch.rand(next(iter(inputs.values())).shape[0], count) < 0.6
    mask[:, 0], mask[:, 1] = True, False  # a register, or a token of distillation, or a patch
    wanted = output(model, inputs, attention_mask=mask)
    enable(model, EVERYTHING, block=3)
    out = output(model, inputs, attention_mask=mask)
    torch.testing.assert_close(out[mask], wanted[mask], rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["Llama", "Qwen2"])
@torch.no_grad()
def test_padding_of_a_text_is_not_attended(kind: str, side: str) -> None:
    model, inputs = of(kind)
    mask = torch.ones(2, 27, dtype=torch.int64)
    mask[1, slice(0, 9) if side == "left" else slice(18, None)] = 0
    wanted = output(model, inputs, attention_mask=mask)
    enable(model, EVERYTHING, block=4)
    out = output(model, inputs, attention_mask=mask)
    seen = mask.bool()
    torch.testing.assert_close(out[seen], wanted[seen], rtol=0, atol=1e-5)


@torch.no_grad()
def test_what_a_text_says_later_changes_nothing_before() -> None:
    model, inputs = of("Llama", rule=2, block=3)
    first = output(model, inputs)
    inputs["input_ids"][:, 20:] = 5
    assert torch.equal(output(model, inputs)[:, :20], first[:, :20])


# Decoding


@pytest.mark.parametrize("kind", ["Llama", "Qwen3"])
@pytest.mark.parametrize("padded", [0, 5])
def test_it_generates_the_text_that_the_dense_model_does(kind: str, padded: int) -> None:
    model, inputs = of(kind)
    mask = torch.ones(2, 27, dtype=torch.int64)
    mask[1, :padded] = 0
    options = {"attention_mask": mask, "max_new_tokens": 9, "do_sample": False}
    wanted = model.generate(**inputs, **options)
    enable(model, EVERYTHING, block=4)
    assert torch.equal(model.generate(**inputs, **options), wanted)


@torch.no_grad()
def test_with_a_static_cache_it_decodes_densely() -> None:
    model, inputs = of("Llama")
    options = {"max_new_tokens": 5, "do_sample": False, "cache_implementation": "static"}
    wanted = model.generate(**inputs, **options)
    enable(model, 1, block=4)
    assert torch.equal(model.generate(**inputs, **options), wanted)


def test_the_encoder_of_whisper_changes_and_its_decoder_stays() -> None:
    model = transformers.WhisperForConditionalGeneration(of("Whisper")[0].config).eval()
    features = torch.randn(2, 8, 80)
    wanted = model.generate(features, max_new_tokens=6)
    changed = enable(model, EVERYTHING, block=4)
    assert changed == [f"model.encoder.layers.{number}.self_attn" for number in range(2)]
    assert torch.equal(model.generate(features, max_new_tokens=6), wanted)


# Which layers, which model


@torch.no_grad()
def test_layers_can_have_rules_of_their_own() -> None:
    model, inputs = of("ViT", rule=EVERYTHING, block=4)
    enable(model, ndgpa.TopK(1), block=2, cell=2, layers=[1])
    rules = [layer.attention.ndgpa.operator.rule for layer in model.layers]
    assert rules == [ndgpa.TopK(EVERYTHING), ndgpa.TopK(1)]
    disable(model)
    dense = output(model, inputs)
    assert enable(model, EVERYTHING, block=4, layers=[0]) == ["layers.0.attention"]
    torch.testing.assert_close(output(model, inputs), dense, rtol=0, atol=1e-5)


@torch.no_grad()
def test_another_model_of_the_same_config_stays_as_it_is() -> None:
    model, inputs = of("ViT")
    twin = transformers.ViTModel(model.config).eval()
    twin.load_state_dict(model.state_dict())
    wanted = output(twin, inputs)
    enable(model, 1, block=4)
    assert torch.equal(output(twin, inputs), wanted)


@torch.no_grad()
def test_two_models_of_one_config_are_changed_and_changed_back_together() -> None:
    model, inputs = of("ViT")
    pair = nn.ModuleList([model, transformers.ViTModel(model.config).eval()])
    wanted = [output(one, inputs) for one in pair]
    assert len(enable(pair, 1, block=4)) == 4
    assert all((output(x, inputs) - y).abs().max() > 1e-3 for x, y in zip(pair, wanted))
    disable(pair)
    assert all(torch.equal(output(x, inputs), y) for x, y in zip(pair, wanted))


@torch.no_grad()
def test_a_model_within_another_is_found() -> None:
    whole = transformers.ViTForImageClassification(transformers.ViTConfig(**PICTURE)).eval()
    x = pictures()
    wanted = output(whole, x)
    holder = nn.ModuleDict({"picture": whole})
    assert len(enable(holder, EVERYTHING, block=4)) == 2
    torch.testing.assert_close(output(whole, x), wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_model_that_is_not_known_takes_a_structure() -> None:
    config = transformers.BertConfig(
        vocab_size=48, hidden_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = transformers.BertModel(config).eval()
    ids = torch.randint(3, 48, (2, 27))
    mask = torch.ones(2, 27)
    mask[0, 20:] = 0
    wanted = output(model, {"input_ids": ids, "attention_mask": mask})
    for structure in (ndgpa.Grid(27, 4), lambda count: ndgpa.Grid(count, 4)):
        assert len(enable(model, EVERYTHING, structure=structure)) == 2
        out = output(model, {"input_ids": ids, "attention_mask": mask})
        torch.testing.assert_close(out[mask.bool()], wanted[mask.bool()], rtol=0, atol=1e-5)
        disable(model)


# Memory


@pytest.mark.parametrize("kind", ["ViT", "Llama"])
def test_its_peak_memory_is_below_dense(kind: str) -> None:
    if kind == "ViT":
        config = transformers.Dinov2Config(**{**PICTURE, "num_hidden_layers": 1})
        model: nn.Module = transformers.Dinov2Model(config)
        inputs = pictures(160, 160, batch=1)
    else:
        model = transformers.LlamaModel(
            transformers.LlamaConfig(**{**TEXT, "num_hidden_layers": 1})
        )
        inputs = {"input_ids": torch.randint(3, 48, (1, 2048))}
        inputs["attention_mask"] = torch.ones(1, 2048)
        inputs["attention_mask"][0, :100] = 0

    def step() -> None:
        output(model, inputs).square().mean().backward()

    model.set_attn_implementation("eager")
    dense = peak_bytes(step)
    enable(model, 4, block=4 if kind == "ViT" else 16, cell=2)
    assert peak_bytes(step) < dense / 3

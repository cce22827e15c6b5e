"""Every kind of model against its dense self."""

import copy
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor

from ndgpa import GPA, TopK
from ndgpa.integrations.diffusers import disable, enable
from ndgpa.integrations.diffusers.attention import Processor
from tests.integrations.diffusers.models import (
    KINDS,
    Kind,
    cogvideox,
    cogvideox_inputs,
    hunyuan,
    hunyuan_inputs,
    wan,
    wan_inputs,
)

ALL = 10_000
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 1e-5, of outputs that are up to 10 (their weights are random)."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@each_kind
@torch.no_grad()
def test_all_blocks_are_dense_attention(kind: Kind) -> None:
    model = kind.model()
    dense = [kind.call(model, size) for size in kind.sizes]
    enable(model, ALL, block=kind.block)
    for size, expected in zip(kind.sizes, dense):
        assert_near(kind.call(model, size), expected)


@each_kind
@torch.no_grad()
def test_few_blocks_are_not_and_a_size_is_never_stale(kind: Kind) -> None:
    used, fresh = kind.model(), kind.model()
    dense = kind.call(used, kind.sizes[0])
    enable(used, 2, block=kind.block)
    for size in kind.sizes:
        out = kind.call(used, size)
    enable(fresh, 2, block=kind.block)
    assert torch.equal(kind.call(fresh, size), out)
    assert not torch.allclose(kind.call(used, kind.sizes[0]), dense, atol=1e-3)


@each_kind
@torch.no_grad()
def test_disable_undoes_enable(kind: Kind) -> None:
    model = kind.model()
    before = kind.call(model, kind.sizes[0]), list(model.state_dict()), str(hooks(model))
    enable(model, 2, block=kind.block)
    disable(model)
    disable(model)
    after = kind.call(model, kind.sizes[0]), list(model.state_dict()), str(hooks(model))
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert not any(isinstance(getattr(x, "processor", None), Processor) for x in model.modules())


def hooks(model: torch.nn.Module) -> list[Any]:
    return [(x._forward_hooks, x._forward_pre_hooks) for x in model.modules()]


@each_kind
def test_few_blocks_have_a_gradient(kind: Kind) -> None:
    model = kind.model()
    names = enable(model, 2, block=kind.block, cell=(1, 1, 2)[-len(kind.sizes[0]) :])
    kind.call(model, kind.sizes[0]).square().mean().backward()
    assert len(names) == kind.layers
    for name in names:
        weight = model.get_submodule(name).to_q.weight
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0


@torch.no_grad()
def test_gpa_replaces_self_attention_alone() -> None:
    model = KINDS["unet"].model()
    cross = {
        name: module.processor
        for name, module in model.named_modules()
        if isinstance(module, Attention) and module.is_cross_attention
    }
    names = enable(model, 2, block=4)
    assert len(cross) == 4
    assert all(name.endswith("attn1") for name in names)
    assert all(model.get_submodule(name).processor is before for name, before in cross.items())


@torch.no_grad()
def test_padded_text_does_not_matter() -> None:
    kind = KINDS["hunyuan"]
    model = kind.model()
    enable(model, 2, block=kind.block)
    torch.manual_seed(1)
    inputs = kind.inputs(kind.sizes[0])
    out = model(**inputs)[0]
    inputs["encoder_hidden_states"][1, 4:] = 100
    assert_near(model(**inputs)[0], out)
    inputs["encoder_hidden_states"][1, :4] = 100
    assert not torch.allclose(model(**inputs)[0], out, atol=1e-3)


def patched_in_time(size: tuple[int, ...]) -> dict[str, Any]:
    """Inputs of CogVideoX 1.5, whose patches are two frames long."""
    inputs = cogvideox_inputs(size)
    inputs["hidden_states"] = inputs["hidden_states"].repeat_interleave(2, dim=1)
    return inputs


VARIANTS = {
    "hunyuan image to video": (
        lambda: hunyuan(image_condition_type="token_replace"),
        hunyuan_inputs,
    ),
    "cogvideox 1.5": (lambda: cogvideox(patch_size_t=2), patched_in_time),
    "cogvideox 2b": (
        lambda: cogvideox(use_rotary_positional_embeddings=False),
        lambda size: {**cogvideox_inputs(size), "image_rotary_emb": None},
    ),
}


@pytest.mark.parametrize(("make", "inputs"), VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_all_blocks_are_dense_attention_in_variants(make: Any, inputs: Any) -> None:
    size = (4, 8, 8)
    kind = Kind(make, inputs, (size, size), (1, 4, 4), 2)
    model = kind.model()
    dense = kind.call(model, size)
    enable(model, ALL, block=kind.block)
    assert_near(kind.call(model, size), dense)


@torch.no_grad()
def test_layers_can_differ() -> None:
    kind = KINDS["wan"]
    model = kind.model()
    assert enable(model, TopK(3), block=4, layers=[1]) == ["blocks.1.attn1"]
    assert not isinstance(model.blocks[0].attn1.processor, Processor)
    enable(model, 5, block=2, far="site", layers=[0])
    assert model.blocks[0].attn1.processor.operator == GPA(TopK(5), far="site")
    assert model.blocks[1].attn1.processor.operator == GPA(TopK(3))
    assert torch.isfinite(kind.call(model, kind.sizes[0])).all()


@pytest.mark.parametrize("name", ["wan", "flux", "cogvideox", "unet"])
@torch.no_grad()
def test_fused_projections_serve_as_well(name: str) -> None:
    kind = KINDS[name]
    model = kind.model()
    dense = kind.call(model, kind.sizes[0])
    model.fuse_qkv_projections()
    enable(model, ALL, block=kind.block)
    assert_near(kind.call(model, kind.sizes[0]), dense)


@torch.no_grad()
def test_a_copy_of_a_model_is_of_its_own() -> None:
    kind = KINDS["wan"]
    model = kind.model()
    dense = kind.call(model, kind.sizes[0])
    enable(model, 2, block=kind.block)
    sparse = kind.call(model, kind.sizes[0])
    copied = copy.deepcopy(model)
    disable(model)
    assert torch.equal(kind.call(copied, kind.sizes[0]), sparse)
    disable(copied)
    assert torch.equal(kind.call(copied, kind.sizes[0]), dense)


@torch.no_grad()
def test_the_grid_of_flux_may_be_told() -> None:
    kind = KINDS["flux"]
    model = kind.model()
    enable(model, 2, block=kind.block)
    expected = kind.call(model, (8, 18))
    torch.manual_seed(1)
    inputs = kind.inputs((8, 18))
    told = model(**inputs, joint_attention_kwargs={"ndgpa_grid": (8, 18)})[0]
    assert torch.equal(told, expected)


# Bad input

bad_input = pytest.mark.bad_input


@bad_input
def test_unknown_models_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="GPA does not know Linear, only WanTransformer3DModel,"):
        enable(torch.nn.Linear(1, 1), 2, block=4)
    pipeline = type("Pipeline", (), {"transformer": None})()
    with pytest.raises(TypeError, match=r"model must be a module; got Pipeline: pass its \.transf"):
        enable(pipeline, 2, block=4)


@bad_input
def test_other_processors_are_refused_and_nothing_changes() -> None:
    model = KINDS["unet"].make()
    model.mid_block.attentions[0].transformer_blocks[0].attn1.set_processor(AttnProcessor())
    before = str(hooks(model))
    with pytest.raises(ValueError, match="attends by AttnProcessor; GPA can only take the pl"):
        enable(model, 2, block=4)
    assert str(hooks(model)) == before
    assert not any(isinstance(x, Processor) for x in model.attn_processors.values())


@bad_input
def test_bad_options_are_refused() -> None:
    model = wan()
    with pytest.raises(ValueError, match="block must be at least 1; got 0"):
        enable(model, 2, block=0)
    with pytest.raises(TypeError, match="rule must be a Rule or an int; got str"):
        enable(model, "2", block=4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layers names layer 2 but the model has 2"):
        enable(model, 2, block=4, layers=[2])
    with pytest.raises(ValueError, match="unknown far 'near'"):
        enable(model, 2, block=4, far="near")  # type: ignore[arg-type]


@bad_input
def test_a_block_of_another_rank_is_refused_at_the_call() -> None:
    model = wan()
    enable(model, 2, block=(4, 4))
    with pytest.raises(ValueError, match="block has 2 entries but the grid has 3 axes"):
        model(**wan_inputs((2, 4, 4)))


@bad_input
def test_a_block_alone_has_no_grid() -> None:
    model = wan()
    enable(model, 2, block=4)
    x, angles = torch.randn(2, 32, 24), torch.randn(1, 32, 1, 12)
    with pytest.raises(ValueError, match="the grid of these 32 tokens is not known: call WanTrans"):
        model.blocks[0].attn1(x, None, None, (angles.cos(), angles.sin()))


@bad_input
def test_tokens_off_the_grid_are_refused() -> None:
    ltx = KINDS["ltx"].make()
    enable(ltx, 2, block=4)
    inputs = KINDS["ltx"].inputs((2, 4, 4))
    with pytest.raises(NotImplementedError, match="GPA needs num_frames, height and width of LTX"):
        ltx(**{**inputs, "video_coords": torch.zeros(2, 3, 32)})
    flux = KINDS["flux"].make()
    enable(flux, 2, block=4)
    inputs = KINDS["flux"].inputs((4, 4))
    inputs["img_ids"] = inputs["img_ids"].flip(0)
    with pytest.raises(NotImplementedError, match="img_ids must be those of one image in raster"):
        flux(**inputs)
    with pytest.raises(ValueError, match="has 23 tokens but a grid of 8x8"):
        flux(**inputs, joint_attention_kwargs={"ndgpa_grid": (8, 8)})


@bad_input
def test_a_mask_of_pairs_is_refused() -> None:
    model = KINDS["unet"].make()
    enable(model, 2, block=4)
    inputs = KINDS["unet"].inputs((16, 16))
    with pytest.raises(NotImplementedError, match="GPA takes a mask of padding, bool of shape"):
        model(**inputs, attention_mask=torch.ones(2, 256))

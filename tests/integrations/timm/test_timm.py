"""timm's vision transformers: exact at all blocks, weights and names kept, the rest refused."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("timm")

import timm

import ndgpa
from ndgpa.integrations.timm import disable, enable
from tests.docs.pages import PAGES, examples

EVERYTHING = 10_000
SMALL: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 5,
}


def vit(**options: Any) -> nn.Module:
    return timm.models.VisionTransformer(**{**SMALL, **options})


def eva(**options: Any) -> nn.Module:
    return timm.models.eva.Eva(**{**SMALL, **options})


MODELS: dict[str, Callable[[], nn.Module]] = {
    "ViT": vit,
    "without a class token": lambda: vit(class_token=False, global_pool="avg"),
    "registers": lambda: vit(reg_tokens=4, no_embed_class=True, init_values=1.0),
    "norm of queries and keys": lambda: vit(qk_norm=True),
    "DeiT": lambda: timm.models.deit.VisionTransformerDistilled(**SMALL),
    "EVA": eva,
    "EVA02": lambda: eva(use_rot_pos_emb=True, swiglu_mlp=True, scale_mlp=True, qkv_fused=False),
    "DINOv3": lambda: eva(use_rot_pos_emb=True, num_reg_tokens=4, use_abs_pos_emb=False),
    "attention with rope": lambda: eva(use_rot_pos_emb=True, attn_type="rope"),
}
each = pytest.mark.parametrize("name", MODELS)


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    model = MODELS[name]().eval()
    for parameter in model.parameters():  # an initial scale of 0 would hide any difference
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=1.0, std=0.1)
    for name, parameter in model.named_parameters():
        if name.startswith("head") and parameter.ndim == 2:
            nn.init.normal_(parameter)
    return model, torch.randn(2, 3, 32, 32)


@each
@torch.no_grad()
def test_with_every_block_kept_it_is_the_model_that_it_was(name: str) -> None:
    model, x = made(name)
    wanted, names = model.forward_features(x), list(model.state_dict())
    assert enable(model, EVERYTHING, block=3, cell=2) == ["blocks.0.attn", "blocks.1.attn"]
    torch.testing.assert_close(model.forward_features(x), wanted, rtol=0, atol=1e-5)
    assert list(model.state_dict()) == names


@each
@torch.no_grad()
def test_with_few_blocks_it_is_another_model_until_it_is_disabled(name: str) -> None:
    model, x = made(name)
    wanted, kinds = model.forward_features(x), [type(m) for m in model.modules()]
    enable(model, 1, block=3)
    assert (model.forward_features(x) - wanted).abs().max() > 1e-3
    disable(model)
    assert torch.equal(model.forward_features(x), wanted)
    assert [type(m) for m in model.modules()] == kinds


@each
def test_with_few_blocks_every_parameter_that_had_a_gradient_has_one(name: str) -> None:
    model, x = made(name)
    model(x).square().mean().backward()
    wanted = {name for name, y in model.named_parameters() if y.grad is not None}
    model.zero_grad()
    enable(model, ndgpa.TopK(2, force=ndgpa.Own()), block=3)
    model(x).square().mean().backward()
    grads = {name: y.grad for name, y in model.named_parameters() if y.grad is not None}
    assert set(grads) == wanted
    assert all(grad.isfinite().all() for grad in grads.values())


@pytest.mark.parametrize("name", ["ViT", "EVA02"])
def test_activation_checkpointing_gives_the_same_gradient(name: str) -> None:
    model, x = made(name)
    enable(model, 2, block=2)
    model.train()

    def gradient() -> list[Tensor]:
        model.zero_grad()
        model(x).square().mean().backward()
        return [y.grad.clone() for y in model.parameters() if y.grad is not None]

    wanted = gradient()
    model.set_grad_checkpointing()
    for mine, theirs in zip(gradient(), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_threads_share_a_model_and_other_attention_stays() -> None:
    sparse, x = made("ViT")
    dense = copy.deepcopy(sparse)
    enable(sparse, 2, block=2)
    wanted = [sparse(x), dense(x)]
    with ThreadPoolExecutor(8) as pool:
        outs = list(pool.map(lambda n: (sparse, dense)[n % 2](x), range(32)))
    assert all(torch.equal(out, wanted[n % 2]) for n, out in enumerate(outs))


@torch.no_grad()
def test_layers_have_rules_of_their_own_and_copies_are_independent() -> None:
    model, x = made("ViT")
    enable(model, EVERYTHING, block=4)
    assert enable(model, 1, block=4, layers=[1]) == ["blocks.1.attn"]
    assert [layer.attn.ndgpa.rule.k for layer in model.blocks] == [EVERYTHING, 1]
    twin = copy.deepcopy(model)
    disable(model)
    assert not torch.equal(twin(x), model(x))


@torch.no_grad()
def test_the_grid_is_the_one_that_the_model_has_when_it_is_called() -> None:
    """16x64 pixels are as many patches as 32x32."""
    (early, _), (late, _) = made("ViT"), made("ViT")
    x = torch.randn(2, 3, 16, 64)
    enable(early, 2, block=2)
    for model in (early, late):
        model.set_input_size((16, 64))
    enable(late, 2, block=2)
    assert torch.equal(early(x), late(x))


def test_the_page_of_the_docs_runs() -> None:
    for code in examples(PAGES["docs/integrations/timm.md"]).values():
        exec(compile(code, "timm.md", "exec"), {})


@pytest.mark.compiled
@pytest.mark.slow
@torch.no_grad()
def test_it_compiles_as_one_graph() -> None:
    torch._dynamo.reset()
    model = vit(depth=1).eval()
    x = torch.randn(1, 3, 32, 32)
    enable(model, 2, block=4)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=1e-5)


@pytest.mark.bad_input
def test_what_it_cannot_do_is_refused_by_name() -> None:
    swin = timm.models.swin_transformer.SwinTransformer(
        img_size=32, patch_size=4, window_size=4, embed_dim=16, depths=(1,), num_heads=(2,)
    )
    with pytest.raises(NotImplementedError, match="SwinTransformer is not known to ndgpa, only Vi"):
        enable(swin, 2, block=4)
    biased = timm.models.vision_transformer_relpos.VisionTransformerRelPos(**SMALL)
    with pytest.raises(NotImplementedError, match="VisionTransformerRelPos is not known to ndgpa"):
        enable(biased, 2, block=4)
    parallel = vit(block_fn=timm.models.vision_transformer.ParallelThingsBlock)
    with pytest.raises(NotImplementedError, match="layer 0 of VisionTransformer attends with None"):
        enable(parallel, 2, block=4)
    with pytest.raises(NotImplementedError, match="takes pictures of any size"):
        enable(vit(dynamic_img_size=True), 2, block=4)
    with pytest.raises(ValueError, match="layers names layer 2 but the model has 2"):
        enable(vit(), 2, block=4, layers=[2])
    with pytest.raises(ValueError, match="block has 3 entries but the grid of VisionTransformer"):
        enable(vit(), 2, block=(4, 4, 4))


@pytest.mark.bad_input
def test_masks_dropout_and_lost_patches_are_refused() -> None:
    x = torch.randn(2, 3, 32, 32)
    model = vit()
    enable(model, 2, block=4)
    with pytest.raises(NotImplementedError, match="takes no attn_mask and no is_causal"):
        model.forward_features(x, is_causal=True)
    model = vit(attn_drop_rate=0.1)
    enable(model, 2, block=4)
    with pytest.raises(NotImplementedError, match=r"drops out 0.1 of its attention weights"):
        model(x)
    enable(model, 2, block=4, ignore_dropout=True)
    model(x)
    model = vit(patch_drop_rate=0.5)
    enable(model, 2, block=4)
    with pytest.raises(ValueError, match="has 33 tokens but a grid of 8x8 and 1 more"):
        model(x)

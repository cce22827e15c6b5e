"""The grid travels with its call: checkpoints, threads, offload, LoRA, compilation."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import accelerate
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from peft import LoraConfig
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ndgpa.integrations.diffusers import disable, enable
from tests.integrations.diffusers.models import KINDS, Kind, wan

each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
CHECKPOINTS = {
    "reentrant": functools.partial(checkpoint, use_reentrant=True),
    "not reentrant": functools.partial(checkpoint, use_reentrant=False),
}


@pytest.mark.parametrize("way", CHECKPOINTS.values(), ids=CHECKPOINTS)
@each_kind
def test_checkpoints_recompute_on_the_grid_of_their_forward(
    kind: Kind, way: Callable[..., Any]
) -> None:
    stored, again = kind.model(), kind.model()
    enable(stored, 2, block=kind.block)
    enable(again, 2, block=kind.block)
    again.enable_gradient_checkpointing(way)
    torch.testing.assert_close(
        gradients(again, kind), gradients(stored, kind), rtol=1e-5, atol=1e-6
    )


def gradients(model: nn.Module, kind: Kind) -> dict[str, Tensor]:
    """Two forwards on grids of two shapes, then one backward."""
    outs = [kind.call(model, size).square().mean() for size in kind.sizes]
    (outs[0] + outs[1]).backward()
    found = {name: x.grad for name, x in model.named_parameters() if x.grad is not None}
    assert any("to_q" in name for name in found)
    return found


@torch.no_grad()
@each_kind
def test_eight_threads_agree_with_one(kind: Kind) -> None:
    model = kind.model()
    enable(model, 2, block=kind.block)
    calls = [with_seed(kind, size) for size in kind.sizes]
    expected = [run(model, inputs) for inputs in calls]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(functools.partial(run, model), 4 * calls))
    assert all(torch.equal(a, b) for a, b in zip(found, 4 * expected, strict=True))


def with_seed(kind: Kind, size: tuple[int, ...]) -> dict[str, Any]:
    torch.manual_seed(1)
    return kind.inputs(size)


@torch.no_grad()
def run(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    return model(**inputs, return_dict=False)[0]


def by_accelerate(model: nn.Module) -> None:
    accelerate.cpu_offload(model, execution_device="cpu")


def by_leaf(model: nn.Module) -> None:
    apply_group_offloading(model, onload_device=torch.device("cpu"), offload_type="leaf_level")


def by_block(model: nn.Module) -> None:
    apply_group_offloading(
        model,
        onload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
    )


@pytest.mark.parametrize(
    ("offload", "first"),
    [
        (by_accelerate, "enable"),
        (by_accelerate, "offload"),
        (by_leaf, "enable"),
        (by_block, "offload"),
    ],
)
@pytest.mark.parametrize("name", ["wan", "flux", "unet"])
@torch.no_grad()
def test_offloaded_models_attend_alike(
    name: str, offload: Callable[[nn.Module], None], first: str
) -> None:
    kind = KINDS[name]
    plain, moved = kind.model(), kind.model()
    enable(plain, 2, block=kind.block)
    if first == "offload":
        offload(moved)
    enable(moved, 2, block=kind.block)
    if first == "enable":
        offload(moved)
    for size in kind.sizes:
        assert torch.equal(kind.call(moved, size), kind.call(plain, size))
    disable(moved)
    disable(plain)
    assert torch.equal(kind.call(moved, size), kind.call(plain, size))


@pytest.mark.parametrize("name", ["wan", "ltx", "hunyuan", "cogvideox", "flux", "unet"])
def test_lora_layers_are_part_of_it(name: str) -> None:
    kind = KINDS[name]
    model = kind.model()
    with torch.no_grad():
        without = kind.call(model, kind.sizes[0])
    enable(model, 10_000, block=kind.block)
    torch.manual_seed(2)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    model.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    out = kind.call(model, kind.sizes[0])
    out.square().mean().backward()
    trained = [name for name, x in model.named_parameters() if x.grad is not None]
    assert trained
    assert all("lora" in name for name in trained)
    disable(model)
    torch.testing.assert_close(out, kind.call(model, kind.sizes[0]), rtol=0, atol=1e-5)
    assert not torch.allclose(out, without, atol=1e-2)


@pytest.mark.compiled
@pytest.mark.slow
def test_a_model_compiles_to_one_graph_for_a_size() -> None:
    kind = replace(KINDS["wan"], make=functools.partial(wan, num_layers=1))
    compiles_to_one_graph(kind, torch.compile)


@pytest.mark.compiled
@pytest.mark.slow
@each_kind
def test_every_model_compiles_to_one_graph_for_a_size(kind: Kind) -> None:
    by_default_two_more = kind in (KINDS["cogvideox"], KINDS["dit"])
    fixed = functools.partial(torch.compile, dynamic=False)
    compiles_to_one_graph(kind, fixed if by_default_two_more else torch.compile)


@pytest.mark.compiled
@pytest.mark.slow
@pytest.mark.parametrize("name", ["wan", "ltx", "hunyuan", "flux"])
def test_repeated_blocks_compile_to_one_graph_for_a_size(name: str) -> None:
    kind = KINDS[name]

    def blocks(model: Any, **options: Any) -> Any:
        model.compile_repeated_blocks(**options)
        return model

    compiles_to_one_graph(kind, blocks, of_kinds_of_block=len(kind.model()._repeated_blocks))


@torch.no_grad()
def compiles_to_one_graph(
    kind: Kind, compiled: Callable[..., nn.Module], of_kinds_of_block: int = 1
) -> None:
    torch.compiler.reset()
    graphs = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    model, eager = kind.model(), kind.model()
    enable(model, 2, block=kind.block)
    enable(eager, 2, block=kind.block)
    fast = compiled(model, fullgraph=True, backend=count)
    for number, size in enumerate((*kind.sizes, kind.sizes[0]), start=1):
        inputs = with_seed(kind, size)
        if kind is KINDS["flux"]:  # whose grid is in the values of a tensor
            inputs["joint_attention_kwargs"] = {"ndgpa_grid": size}
        torch.testing.assert_close(run(fast, inputs), run(eager, inputs))
        assert 0 < len(graphs) <= of_kinds_of_block * min(number, 2)

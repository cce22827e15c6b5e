"""Suggestions for the layers of other libraries."""

from typing import Any

import pytest
import torch
from torch_geometric.data import Batch, Data

import ndgpa
from ndgpa.integrations import transformers
from ndgpa.integrations.diffusers import disable, enable
from ndgpa.integrations.diffusers.attention import Processor
from ndgpa.integrations.pyg import GPACoarsening, GPAConv, structure_of
from ndgpa.integrations.transformers.attention import NAME
from tests.integrations.diffusers.models import KINDS
from tests.integrations.transformers.models import KINDS as TRANSFORMERS


def test_graphs_of_a_batch_are_measured_apart() -> None:
    """Even attention over 40 nodes in 5 blocks, and over 80 in 10: one block is 1/5 and 1/10."""
    coarsen = GPACoarsening(block=8, cell=1)
    graphs = []
    for nodes in (40, 80):
        ring = torch.arange(nodes)
        edge_index = torch.stack([ring, (ring + 1) % nodes])
        graphs.append(coarsen(Data(x=torch.randn(nodes, 16), edge_index=edge_index)))
    batch = Batch.from_data_list(graphs)
    layer = GPAConv(16, heads=2)
    with torch.no_grad():
        layer.attention.to_query.weight.zero_()
    inputs = {"x": batch.x, "edge_index": batch.edge_index, "structure": structure_of(batch)}
    found = ndgpa.suggest(layer, inputs, samples=1000, verbose=False)[0]
    assert found.name == "attention"
    assert found.curve[0] == (1, pytest.approx((40 / 5 + 80 / 10) / 120))


@pytest.mark.parametrize("name", ["hunyuan", "unet"])
def test_every_self_attention_of_a_diffusers_model_is_measured(name: str) -> None:
    kind = KINDS[name]
    model = kind.model()
    torch.manual_seed(1)
    inputs = kind.inputs(kind.sizes[0])
    names = enable(model, 1, block=kind.block)
    found = ndgpa.suggest(model, inputs, coverage=0.8, verbose=False)
    assert [layer.name for layer in found] == names
    for number, layer in enumerate(found):
        enable(model, layer.k, block=layer.block, cell=layer.cell, far=layer.far, layers=[number])
    chosen = [x.processor.operator for x in model.modules() if is_ours(x)]
    assert chosen == [layer.operator for layer in found]
    disable(model)


@pytest.mark.parametrize("name", ["HuBERT", "Llama"])
def test_every_self_attention_of_a_transformers_model_is_measured(name: str) -> None:
    """As its query and key are by themselves, which the first layer is caught with."""
    model, inputs = TRANSFORMERS[name]()
    names = transformers.enable(model, 1, block=2)
    found = ndgpa.suggest(model, inputs, coverage=0.8, verbose=False)
    assert [layer.name for layer in found] == names
    first, calls = getattr(model.get_submodule(names[0]), NAME), []
    operator = first.operator

    def catch(*given: Any, **options: Any) -> Any:
        calls.append((given, options))
        return operator(*given, **options)

    first.operator = catch
    model(**inputs)
    (query, key, value, structure), options = calls[0]
    assert options["causal"] == (name == "Llama")
    layer = ndgpa.nn.SpatialAttention(8)  # whose operator is called as it was
    layer.project = lambda *_: (query, key, value)  # type: ignore[method-assign]
    layer._join = lambda out: out.transpose(1, 2).flatten(2)  # type: ignore[method-assign]
    layer.operator = ndgpa.GPA(1, scale=options["scale"], causal=options["causal"])
    flat = torch.zeros(len(query), query.shape[2], 8)
    (alone,) = ndgpa.suggest(layer, (flat, structure), coverage=0.8, verbose=False)
    assert (alone.k, alone.block, alone.coverage) == (
        found[0].k,
        found[0].block,
        found[0].coverage,
    )


def is_ours(module: torch.nn.Module) -> bool:
    return isinstance(getattr(module, "processor", None), Processor)

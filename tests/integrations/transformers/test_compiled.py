"""A model with GPA compiles as one graph, once for each size."""

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import torch._dynamo.testing
import transformers
from torch import Tensor, nn

from ndgpa.integrations.transformers import enable
from tests.integrations.transformers.models import (
    KINDS,
    PICTURE,
    output,
    pictures,
    sound,
    tokens,
)

pytestmark = pytest.mark.compiled


def _text(count: int) -> dict[str, Tensor]:
    mask = torch.ones(2, count, dtype=torch.int64)
    mask[0, -3:] = 0
    return {**tokens(count), "attention_mask": mask}


INPUTS: dict[str, list[dict[str, Tensor]]] = {
    "DINOv2": [pictures(32, 32), pictures(16, 64)],
    "DINOv3": [pictures(32, 32), pictures(16, 64), pictures(40, 24)],
    "wav2vec2": [sound(400), sound(250), sound(300)],
    "Llama": [_text(27), _text(20)],
}


@torch.no_grad()
def _check(model: nn.Module, inputs: list[dict[str, Tensor]], **options: Any) -> None:
    """One graph for each size, and none for a size that was seen."""
    torch._dynamo.reset()
    graphs = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=graphs)
    for count, x in enumerate(inputs, start=1):
        for _ in range(2):
            out = output(compiled, x, **options)
            assert graphs.frame_count == count
        torch.testing.assert_close(out, output(model, x, **options), rtol=0, atol=1e-5)


def test_another_size_is_one_more_graph() -> None:
    config = transformers.Dinov2Config(**{**PICTURE, "num_hidden_layers": 1})
    model = transformers.Dinov2Model(config).eval()
    enable(model, 2, block=2)
    _check(model, INPUTS["DINOv2"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a .functools.lru_cache")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_compiles_as_one_graph(kind: str) -> None:
    model, inputs = KINDS[kind]()
    enable(model, 2, block=3)
    text = {"use_cache": False} if kind in ("Llama", "Qwen2", "Qwen3", "Mistral") else {}
    if text:
        inputs = _text(27)
    _check(model, INPUTS.get(kind, [inputs]), **text)

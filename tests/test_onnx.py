"""`torch.onnx.export` of a module that calls `gpa`: onnxruntime gives the numbers of torch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ndgpa
from ndgpa import operators

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]

SEQUENCE = ndgpa.Sequence(24, block=4, cell=2)
IMAGE = ndgpa.Image((7, 6), block=2, cell=2)  # ragged
VIDEO = ndgpa.Video((3, 4, 4), block=(1, 2, 2))
BATCH = torch.export.Dim("batch", min=1)


class Attention(nn.Module):
    def __init__(
        self, space: ndgpa.SpatialStructure, rule: ndgpa.Rule | int, **options: Any
    ) -> None:
        super().__init__()
        self.space, self.rule, self.options = space, rule, options

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return ndgpa.gpa(query, key, value, self.space, self.rule, **self.options)


class Layer(nn.Module):
    def __init__(self, operator: ndgpa.operators.Operator) -> None:
        super().__init__()
        self.image = ndgpa.Image((8, 8), block=2, cell=2)
        self.attend = ndgpa.nn.SpatialAttention(8, heads=2, operator=operator)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, self.image)


def sites(space: ndgpa.SpatialStructure, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = torch.randn(3, batch, 2, space.num_sites, 4)
    return query, key, value


def exported(
    module: nn.Module, path: Path, *inputs: Tensor, dynamic: Any = ({0: BATCH},) * 3
) -> Any:
    """Return what runs the module in onnxruntime, for a batch of any size where it is dynamic."""
    dynamic = dynamic and dynamic[: len(inputs)]
    torch.onnx.export(
        module.eval(), inputs, path, dynamo=True, dynamic_shapes=dynamic, verbose=False
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*xs: Tensor) -> Tensor:
        (out,) = session.run(None, dict(zip(names, (x.numpy() for x in xs), strict=True)))
        return torch.from_numpy(out)

    return run


def assert_same(module: nn.Module, path: Path, example: tuple[Tensor, ...], *others: Any) -> None:
    run = exported(module, path / "model.onnx", *example)
    for inputs in (example, *others):
        torch.testing.assert_close(run(*inputs), module(*inputs), atol=1e-5, rtol=0)


def test_a_sequence_gives_the_same_numbers(tmp_path: Path) -> None:
    module, inputs = Attention(SEQUENCE, 2), sites(SEQUENCE, 2)
    run = exported(module, tmp_path / "model.onnx", *inputs, dynamic=None)
    torch.testing.assert_close(run(*inputs), module(*inputs), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_an_image_of_any_batch_gives_the_same_numbers(tmp_path: Path) -> None:
    assert_same(Attention(IMAGE, 2), tmp_path, sites(IMAGE, 2), sites(IMAGE, 1), sites(IMAGE, 5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("space", "rule", "options"),
    [
        (SEQUENCE, 2, {}),
        (VIDEO, ndgpa.TopK(2, share="all", force=ndgpa.Own()), {}),
        (SEQUENCE, 2, {"causal": True}),
        (VIDEO, 2, {"causal": True}),
        (ndgpa.Video((4, 4, 4), 2), 2, {"causal": True}),
        (IMAGE, 2, {"affinity": "euclidean"}),
        (IMAGE, ndgpa.TopP(0.7, at_most=4), {}),
        (IMAGE, ndgpa.TopRatio(0.4), {}),
        (IMAGE, ndgpa.TopK(2) | ndgpa.Window(1), {}),
        (IMAGE, ndgpa.TopK(2, estimate="site"), {}),
        (IMAGE, ndgpa.Refine(ndgpa.TopK(5), 2), {}),
        (VIDEO, ndgpa.Refine(ndgpa.TopK(3), 2, 2, estimate="site"), {"causal": True}),
        (IMAGE, 2, {"backend": "reference"}),
        (IMAGE, 2, {"far": "site"}),
        (IMAGE, 2, {"far": ndgpa.Bundles(3), "affinity": "euclidean"}),
        (VIDEO, 2, {"far": "site", "causal": True}),
        (ndgpa.Video((4, 4, 4), 2), 2, {"far": "block", "causal": True}),
        (ndgpa.with_tokens(IMAGE, 1, 1), 2, {}),
        (ndgpa.with_tokens(IMAGE, 2), 2, {"far": "block"}),
        (IMAGE, ndgpa.Propagate(ndgpa.Refine(ndgpa.TopK(4), 2)), {}),
    ],
    ids=lambda x: f"{x.shape}" if isinstance(x, ndgpa.Grid) else str(x),
)
def test_every_space_and_rule_of_any_batch(
    space: ndgpa.SpatialStructure, rule: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    assert_same(Attention(space, rule, **options), tmp_path, sites(space, 3), sites(space, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "operator",
    [
        ndgpa.GPA(3),
        operators.Full(),
        operators.Neighborhood((3, 3), rel_bias=True, heads=2),
        operators.Hydra.of([(3, 3)], [1, 2]),
        operators.LocalSparse(("rtl",)),
        operators.MultiAxis(),
        operators.NoAttention(),
        operators.Nystrom(8),
        operators.Performer(4),
    ],
    ids=str,
)
def test_a_layer_with_its_weights_gives_the_same_numbers(operator: Any, tmp_path: Path) -> None:
    assert_same(Layer(operator), tmp_path, (torch.randn(2, 64, 8),), (torch.randn(3, 64, 8),))


@pytest.mark.slow
def test_of_equals_the_lowest_block_is_read_in_onnx_too(tmp_path: Path) -> None:
    same = torch.ones(2, 2, SEQUENCE.num_sites, 4)
    value = torch.arange(24.0).view(1, 1, 24, 1).expand(2, 2, 24, 4).contiguous()
    run = exported(Attention(SEQUENCE, 1), tmp_path / "model.onnx", same, same.clone(), value)
    torch.testing.assert_close(run(same, same, value), torch.full_like(value, 1.5))


def test_what_is_causal_exports_and_keeps_its_tables_as_constants() -> None:
    module = Attention(ndgpa.Video((3, 4, 4), block=(1, 2, 2)), ndgpa.TopK(2), causal=True)
    inputs = sites(VIDEO, 2)
    program = torch.export.export(module, inputs, dynamic_shapes=[{0: BATCH}] * 3)
    more = sites(VIDEO, 5)
    torch.testing.assert_close(program.module()(*more), module(*more))
    parts = program.graph_module.modules()
    graphs = (part.graph for part in parts if isinstance(part, torch.fx.GraphModule))
    targets = {str(node.target) for graph in graphs for node in graph.nodes}
    assert "ndgpa.select_top_k.default" in targets
    assert "aten.bincount.default" not in targets

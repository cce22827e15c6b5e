"""What every operator must satisfy."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

import ndgpa
from ndgpa.operators import Operator


class OperatorContract:
    """Inherit, give the operator, and a structure that it can work on."""

    structure: ndgpa.SpatialStructure = ndgpa.Image((6, 8), 2)
    heads = 2
    width = 4
    differentiable = True

    def operator(self) -> Operator:
        raise NotImplementedError

    def inputs(self, dtype: torch.dtype = torch.float64, batch: int = 2) -> list[Tensor]:
        shape = (batch, self.heads, self.structure.num_sites, self.width)
        return [torch.randn(shape, dtype=dtype) for _ in range(3)]

    def test_it_is_an_operator(self) -> None:
        assert isinstance(self.operator(), Operator)

    def test_the_output_has_the_sites_of_the_query_and_the_features_of_the_value(self) -> None:
        query, key, value = self.inputs(torch.float32)
        out = self.operator()(query, key, value[..., :3], self.structure)
        assert out.shape == (*query.shape[:3], 3)
        assert out.dtype == torch.float32
        assert bool(out.isfinite().all())

    @given(st.integers(0, 2**20))
    def test_batches_do_not_see_each_other(self, seed: int) -> None:
        torch.manual_seed(seed)
        inputs, operator = self.inputs(), self.operator()
        whole = operator(*inputs, self.structure)
        for b in range(len(whole)):
            alone = operator(*(x[b, None] for x in inputs), self.structure)
            torch.testing.assert_close(alone[0], whole[b])

    def test_strides_do_not_matter(self) -> None:
        inputs, operator = self.inputs(), self.operator()
        strided = [x.mT.contiguous().mT for x in inputs]
        torch.testing.assert_close(
            operator(*strided, self.structure), operator(*inputs, self.structure)
        )

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_sixteen_bits_come_back_as_sixteen_bits(self, dtype: torch.dtype) -> None:
        inputs, operator = self.inputs(), self.operator()
        out = operator(*(x.to(dtype) for x in inputs), self.structure)
        assert out.dtype == dtype
        exact = operator(*(x.to(dtype).double() for x in inputs), self.structure)
        assert float((out.double() - exact).abs().max()) < 30 * torch.finfo(dtype).eps

    def test_autocast_casts_the_inputs(self) -> None:
        inputs, operator = self.inputs(torch.float32), self.operator()
        with torch.autocast("cpu", torch.bfloat16):
            out = operator(*inputs, self.structure)
        assert out.dtype == torch.bfloat16 or not self.differentiable

    def test_masked_keys_do_not_exist(self) -> None:
        query, key, value = self.inputs()
        mask = torch.rand(2, self.structure.num_sites) < 0.8
        unseen = ~mask[:, None, :, None]
        operator = self.operator()
        clean = operator(query, key, value, self.structure, key_mask=mask)
        key, value = key.masked_fill(unseen, torch.nan), value.masked_fill(unseen, torch.nan)
        assert torch.equal(operator(query, key, value, self.structure, key_mask=mask), clean)

    def test_gradients(self) -> None:
        if not self.differentiable:
            pytest.skip("the output does not depend on the input")
        inputs = [x[:1].requires_grad_() for x in self.inputs()]
        operator = self.operator()
        assert gradcheck(lambda *xs: operator(*xs, self.structure), inputs, fast_mode=True)

    @pytest.mark.compiled
    def test_it_compiles_to_one_graph(self) -> None:
        inputs, operator = self.inputs(torch.float32), self.operator()
        leaves = [x.requires_grad_() for x in inputs]

        def call(*xs: Tensor) -> Tensor:
            return operator(*xs, self.structure)

        eager = call(*leaves)
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")(*leaves)
        torch.testing.assert_close(compiled, eager)
        if self.differentiable:
            ours = torch.autograd.grad(compiled.square().sum(), leaves)
            theirs = torch.autograd.grad(eager.square().sum(), leaves)
            torch.testing.assert_close(ours, theirs)

    @pytest.mark.compiled
    def test_it_exports(self) -> None:
        inputs = self.inputs(torch.float32)
        module = _Bound(self.operator(), self.structure).eval()
        exported = torch.export.export(module, tuple(inputs)).module()
        torch.testing.assert_close(exported(*inputs), module(*inputs))

    @pytest.mark.bad_input
    def test_sizes_that_do_not_fit_are_refused(self) -> None:
        query, key, value = self.inputs()
        with pytest.raises(ValueError, match="query has 47 sites but structure has 48"):
            self.operator()(query[:, :, 1:], key, value, self.structure)
        with pytest.raises(ValueError, match="value has 2 heads and 47 sites but key has 2 and 48"):
            self.operator()(query, key, value[:, :, 1:], self.structure)


class _Bound(torch.nn.Module):
    """An operator with its structure, as a model holds them."""

    def __init__(self, operator: Any, structure: ndgpa.SpatialStructure) -> None:
        super().__init__()
        self.operator, self.structure = operator, structure

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.operator(*inputs, self.structure)

"""What every operator must satisfy, whatever it reads."""

from typing import Any

import pytest
import torch
from torch import Tensor

import ndgpa
from ndgpa.operators import Operator


class OperatorContract:
    """Tests of an `Operator`, whatever it reads.

    Inherit it and override `operator`. An operator that cannot run on these small structures names
    others; one that cannot be differentiated twice sets `twice` to False.
    """

    structure: ndgpa.SpatialStructure = ndgpa.Grid((6, 8), block=2, cell=2)
    key_structure: ndgpa.SpatialStructure | None = None
    tiny: ndgpa.SpatialStructure = ndgpa.Grid((4, 4), block=2)
    heads, key_heads, width = 4, 2, 8
    twice = True  # whether it can be differentiated twice
    tolerance = 1e-12  # of comparisons in float64 that need not keep every bit

    def operator(self, heads: int, width: int) -> Operator:
        """Make the operator for this many heads with this many features each."""
        raise NotImplementedError

    def test_it_is_an_operator(self) -> None:
        assert isinstance(self.ready(), Operator)

    # Shapes, dtypes, layout

    @pytest.mark.parametrize(
        "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
    )
    def test_the_output_has_the_dtype_of_the_inputs(self, dtype: torch.dtype) -> None:
        inputs = [x.to(dtype) for x in self.inputs(torch.float64, value_width=3)]
        out = self.call(*inputs)
        assert out.dtype == dtype
        assert out.shape == (2, self.heads, self.structure.num_sites, 3)
        assert out.isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_fewer_bits_change_the_output_by_rounding_only(self, dtype: torch.dtype) -> None:
        inputs = [x.to(dtype) for x in self.inputs(torch.float64)]
        exact = self.call(*(x.double() for x in inputs))
        error = (self.call(*inputs).double() - exact).norm() / exact.norm().clamp(min=1)
        assert error < 16 * torch.finfo(dtype).eps

    def test_autocast_gives_the_output_of_the_lower_dtype(self) -> None:
        inputs = self.inputs(torch.float32)
        exact = self.call(*inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = self.call(*inputs)
        assert out.dtype == torch.bfloat16
        error = (out.float() - exact).norm() / exact.norm().clamp(min=1)
        assert error < 16 * torch.finfo(torch.bfloat16).eps

    def test_strides_do_not_matter(self) -> None:
        inputs = self.inputs()
        strided = [x.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2) for x in inputs]
        assert not strided[0].is_contiguous()
        assert torch.equal(self.call(*inputs), self.call(*strided))

    def test_the_same_input_gives_the_same_bits(self) -> None:
        operator, inputs = self.ready(), self.inputs(torch.float32)
        first, again = (self.with_gradients(operator, inputs) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    # What sees what

    def test_batches_do_not_see_each_other(self) -> None:
        operator, inputs = self.ready(), self.inputs()
        mask = self.key_mask()
        whole = self.call(*inputs, operator=operator, key_mask=mask)
        for b in range(2):
            alone = [x[b, None] for x in inputs]
            out = self.call(*alone, operator=operator, key_mask=mask[b, None])
            torch.testing.assert_close(out[0], whole[b], rtol=0, atol=self.tolerance)

    @pytest.mark.parametrize("masked", [False, True])
    def test_a_batch_of_none_has_an_output_of_none(self, masked: bool) -> None:
        operator, inputs = self.ready(), self.inputs(batch=0)
        mask = self.key_mask()[:0] if masked else None
        out, *grads = self.with_gradients(operator, inputs, mask)
        assert out.shape == (0, self.heads, self.structure.num_sites, 4)
        assert all(g.shape == x.shape for g, x in zip(grads, inputs))

    def test_heads_do_not_see_each_other(self) -> None:
        operator, (query, key, value) = self.ready(), self.inputs()
        before = self.call(query, key, value, operator=operator)
        key, value = key.clone(), value.clone()
        key[:, 1], value[:, 1] = 3.0, -5.0  # read by the second half of the heads
        after = self.call(query, key, value, operator=operator)
        assert torch.equal(before[:, : self.heads // 2], after[:, : self.heads // 2])

    def test_shared_key_heads_are_repeated_key_heads(self) -> None:
        operator, (query, key, value) = self.ready(), self.inputs()
        repeated = [x.repeat_interleave(self.heads // self.key_heads, dim=1) for x in (key, value)]
        torch.testing.assert_close(
            self.call(query, key, value, operator=operator),
            self.call(query, *repeated, operator=operator),
            rtol=0,
            atol=self.tolerance,
        )

    def test_masked_keys_do_not_exist(self) -> None:
        operator, (query, key, value), mask = self.ready(), self.inputs(), self.key_mask()
        unseen = ~mask[:, None, :, None]
        poisoned = [x.masked_fill(unseen, torch.nan) for x in (key, value)]
        before = self.with_gradients(operator, (query, key, value), mask)
        after = self.with_gradients(operator, (query, *poisoned), mask)
        assert before[0].isfinite().all()
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    @pytest.mark.parametrize("filling", [9.0, torch.nan], ids=["numbers", "nan"])
    def test_padding_does_not_exist(self, filling: float) -> None:
        """As queries, keys and values at once, whatever stands in it; to the bit."""
        operator, inputs, key_mask = self.ready(), self.inputs(), self.key_mask()
        query_mask, options = key_mask, {"key_mask": key_mask}
        if self.key_structure is not None:
            query_mask = torch.arange(self.structure.num_sites) % 3 != torch.arange(2)[:, None]
            options["query_mask"] = query_mask
        masks = (query_mask, key_mask, key_mask)
        filled = [
            x.where(mask[:, None, :, None], filling * torch.randn_like(x))
            for x, mask in zip(inputs, masks)
        ]
        before, after = (
            operator(*xs, self.structure, self.key_structure, **options) for xs in (inputs, filled)
        )
        seen = query_mask[:, None, :, None].expand_as(before)
        assert before[seen].isfinite().all()
        assert torch.equal(before[seen], after[seen])

    def test_where_nothing_is_seen_the_output_is_zero(self) -> None:
        inputs = self.inputs()
        mask = torch.zeros_like(self.key_mask())
        assert torch.equal(self.call(*inputs, key_mask=mask), torch.zeros_like(self.call(*inputs)))

    def test_what_the_mask_hides_has_no_influence(self) -> None:
        """`mask` says which keys an output can depend on, and every one of them has a weight."""
        operator, (query, key, value) = self.ready(), self.inputs(batch=1)
        value.requires_grad_()
        says: Any = operator
        keys = self.structure if self.key_structure is None else self.key_structure
        masks = says.mask(self.structure, keys, query, key)
        read = torch.zeros(self.structure.num_sites, keys.num_sites, dtype=torch.bool)
        for site in range(0, self.structure.num_sites, 5):
            out = self.call(query, key, value, operator=operator)[0, :, site].sum()
            if out.requires_grad:
                read[site] = torch.autograd.grad(out, value)[0].abs().sum(dim=(0, 1, 3)) > 0
        assert torch.equal(read[::5], masks.any(dim=0)[::5])

    # Derivatives

    @pytest.mark.parametrize("masked", [False, True])
    def test_derivatives_are_right(self, masked: bool) -> None:
        operator = self.ready(heads=2, width=3)
        inputs = [x.requires_grad_() for x in self.tiny_inputs()]
        mask = None
        if masked:
            mask = torch.ones(1, self.tiny.num_sites, dtype=torch.bool)
            mask[0, ::3] = False

        def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return operator(query, key, value, self.tiny, key_mask=mask)

        assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
        if self.twice:
            assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)

    # Graphs

    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_it_compiles_as_one_graph(self, backend: str) -> None:
        torch.compiler.reset()
        operator = self.ready(dtype=torch.float32)
        inputs = [x.requires_grad_() for x in self.inputs(torch.float32)]
        mask = self.key_mask()

        def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return operator(query, key, value, self.structure, self.key_structure, key_mask=mask)

        eager = call(*inputs)
        compiled = torch.compile(call, fullgraph=True, backend=backend)(*inputs)
        torch.testing.assert_close(compiled, eager)
        if eager.requires_grad:
            for mine, theirs in zip(_gradients(compiled, inputs), _gradients(eager, inputs)):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)

    def test_it_exports(self) -> None:
        operator, inputs = self.ready(dtype=torch.float32), self.inputs(torch.float32)
        layer = _Layer(operator, self.structure, self.key_structure).eval()
        program = torch.export.export(layer, tuple(inputs))
        torch.testing.assert_close(program.module()(*inputs), layer(*inputs))

    # Errors

    def test_errors_come_before_any_work(self) -> None:
        operator, (query, key, value) = self.ready(), self.inputs()
        with pytest.raises(ValueError, match=r"query has \d+ sites but structure has \d+"):
            self.call(query[:, :, 1:], key, value, operator=operator)
        with pytest.raises(ValueError, match="is not a multiple of"):
            self.call(query[:, :3], key, value, operator=operator)
        with pytest.raises(ValueError, match="value has"):
            self.call(query, key, value[:, :, 1:], operator=operator)
        with pytest.raises(TypeError, match="floating-point dtype"):
            self.call(query.long(), key.long(), value, operator=operator)
        with pytest.raises(TypeError, match="key_mask must be a bool tensor"):
            self.call(query, key, value, operator=operator, key_mask=torch.ones(2, 48))

    # What the tests call

    def ready(
        self, heads: int | None = None, width: int | None = None, dtype: torch.dtype = torch.float64
    ) -> Operator:
        """The operator; its parameters, if any, in the dtype and away from their first values."""
        torch.manual_seed(0)
        operator = self.operator(heads or self.heads, width or self.width)
        if isinstance(operator, torch.nn.Module):
            operator = operator.to(dtype).eval()
            generator = torch.Generator().manual_seed(1)
            for parameter in operator.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.data += 0.2 * noise.to(dtype)
        return operator

    def call(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        operator: Operator | None = None,
        key_mask: Tensor | None = None,
    ) -> Tensor:
        operator = self.ready(dtype=query.dtype) if operator is None else operator
        return operator(query, key, value, self.structure, self.key_structure, key_mask=key_mask)

    def inputs(
        self, dtype: torch.dtype = torch.float64, batch: int = 2, value_width: int = 4
    ) -> list[Tensor]:
        keys = self.structure if self.key_structure is None else self.key_structure
        return _normal(
            (batch, self.heads, self.structure.num_sites, self.width),
            (batch, self.key_heads, keys.num_sites, self.width),
            (batch, self.key_heads, keys.num_sites, value_width),
            dtype=dtype,
        )

    def tiny_inputs(self) -> list[Tensor]:
        n = self.tiny.num_sites
        return _normal((1, 2, n, 3), (1, 2, n, 3), (1, 2, n, 2), dtype=torch.float64)

    def key_mask(self) -> Tensor:
        keys = self.structure if self.key_structure is None else self.key_structure
        mask = torch.ones(2, keys.num_sites, dtype=torch.bool)
        mask[0, 1::4] = False
        mask[1, 2::3] = False
        return mask

    def with_gradients(
        self, operator: Operator, inputs: Any, key_mask: Tensor | None = None
    ) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = self.call(*leaves, operator=operator, key_mask=key_mask)
        return [out.detach(), *(_gradients(out, leaves) if out.requires_grad else [])]


class _Layer(torch.nn.Module):
    def __init__(
        self,
        operator: Operator,
        structure: ndgpa.SpatialStructure,
        key_structure: ndgpa.SpatialStructure | None,
    ) -> None:
        super().__init__()
        self.operator, self.spaces = operator, (structure, key_structure)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.operator(query, key, value, *self.spaces)


def _gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return list(torch.autograd.grad((out * weight).sum(), inputs))


def _normal(*shapes: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]

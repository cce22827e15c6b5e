"""What every backend of `attend` must satisfy: `ndgpa/attention/reference.py` has the signature."""

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.functional import hessian

import ndgpa
from ndgpa.testing import draw
from ndgpa.testing.derivatives import (
    constant,
    derivatives,
    everything,
    plain_derivatives,
    repeated,
)
from ndgpa.testing.oracle import attend_sites, full_attention, rows


class BackendContract:
    """Tests of a backend of `attend`: the selected blocks are read, and no others, at any order.

    Inherit it and name the backend, after `ndgpa.attention.BACKENDS["mine"] = mine`. One that
    computes in float32 at most says so by `dtype` and a `tolerance` to go with it.
    """

    backend: str
    dtype = torch.float64
    tolerance = 1e-12

    @draw.data
    def test_each_site_reads_the_sites_of_its_selected_blocks(self, data: Any) -> None:
        """Against a loop over batches, heads and cells."""
        problem = data.draw(draw.problems(dtype=self.dtype))
        selection = data.draw(draw.selections(problem, bias=False))
        blocks, cells = rows(problem.key_structure.blocks), rows(problem.structure.cell_sites)
        query, key, value = (x.double() for x in problem.inputs)
        heads = query.shape[1]
        expected = torch.zeros(*query.shape[:3], value.shape[3], dtype=torch.float64)
        for b, h in product(range(len(query)), range(heads)):
            g, s = (h * x.shape[1] // heads for x in (key, selection.blocks))
            seen = torch.ones(key.shape[2]) if problem.key_mask is None else problem.key_mask[b]
            for own, kept in zip(cells, rows(selection.blocks[b, s]), strict=True):
                sites = [y for j in kept for y in blocks[j] if seen[y]]
                expected[b, h, own] = attend_sites(
                    query[b, h, own],
                    key[b, g],
                    value[b, g],
                    sites,
                    problem.logit_scale,
                    problem.affinity,
                )
        out = self.attend(problem, selection).double()
        torch.testing.assert_close(out, expected, rtol=self.tolerance, atol=self.tolerance)

    def test_a_future_that_is_not_finite_does_not_reach_back(self) -> None:
        """Within the block and the cell of the present too, in output and gradients."""
        space, rule = ndgpa.Sequence(12, 4, 2), ndgpa.Fixed((0, 1, 2))
        query, key, value = torch.randn(3, 1, 1, 12, 3, dtype=self.dtype)
        no_key, no_value = key.clone(), value.clone()
        no_key[:, :, 6:], no_value[:, :, 6:] = torch.nan, torch.inf

        def early(*inputs: Tensor) -> list[Tensor]:
            leaves = [x.clone().requires_grad_() for x in inputs]
            out = ndgpa.gpa(*leaves, space, rule, causal=True, backend=self.backend)
            assert not out[:, :, :6].isnan().any()
            grads = torch.autograd.grad(out[:, :, :6].square().sum(), leaves)
            return [out[:, :, :6], *(x[:, :, :6] for x in grads)]

        clean = early(query, key, value)
        for ours, expected in zip(early(query, key, no_value), clean):
            torch.testing.assert_close(ours, expected)
        # The late queries have no gradient, but 0 times their weights, which are NaN.
        for ours, expected in zip(early(query, no_key, no_value)[:2], clean):
            torch.testing.assert_close(ours, expected)
        late = ndgpa.gpa(query, key, no_value, space, rule, causal=True, backend=self.backend)
        assert late[:, :, 6:].isnan().all()

    @draw.data
    def test_every_block_kept_is_full_attention(self, data: Any) -> None:
        problem = data.draw(draw.problems(dtype=self.dtype))
        expected = full_attention(
            *problem.inputs, problem.logit_scale, problem.affinity, _of_each_query(problem.key_mask)
        )
        torch.testing.assert_close(
            self.attend(problem, everything(problem)),
            expected,
            rtol=self.tolerance,
            atol=self.tolerance,
        )

    @draw.data
    def test_it_agrees_with_the_reference_to_the_second_derivative(self, data: Any) -> None:
        problem = data.draw(draw.problems(dtype=self.dtype))
        selection = data.draw(draw.selections(problem))
        ours = derivatives(problem, selection, self.backend)
        reference = derivatives(problem, selection, "reference")
        for mine, theirs in zip(ours, reference, strict=True):
            torch.testing.assert_close(
                mine, theirs, rtol=100 * self.tolerance, atol=100 * self.tolerance
            )

    def test_the_log_sum_exp_of_two_equal_logits_bends_by_a_quarter(self) -> None:
        query = torch.ones(1, 1, 1, 1, dtype=self.dtype)
        first = ndgpa.Selection(torch.zeros(1, 1, 1, 1, dtype=torch.int32))

        def log_sum_exp(key: Tensor) -> Tensor:
            return ndgpa.attend(
                query,
                key.view(1, 1, 2, 1),
                key.view(1, 1, 2, 1),
                first,
                ndgpa.Sequence(1, 1),
                key_structure=ndgpa.Sequence(2, 2),
                scale=1.0,
                backend=self.backend,
                return_lse=True,
            )[1].sum()

        found = hessian(log_sum_exp, torch.zeros(2, dtype=self.dtype))
        expected = torch.tensor([[1, -1], [-1, 1]], dtype=self.dtype) / 4
        torch.testing.assert_close(found, expected, rtol=self.tolerance, atol=self.tolerance)

    @draw.data
    def test_second_derivatives_agree_where_logits_tie(self, data: Any) -> None:
        """Constant inputs, zeros, frames that repeat, and signs alone."""
        problem = data.draw(draw.problems(dtype=self.dtype))
        selection = data.draw(draw.selections(problem))
        tie = data.draw(st.sampled_from([constant, torch.zeros_like, repeated, torch.sign]))
        query, key, value = problem.inputs
        problem = problem.with_inputs(query, tie(key), value)
        ours = derivatives(problem, selection, self.backend)
        reference = derivatives(problem, selection, "reference")
        for mine, theirs in zip(ours, reference, strict=True):
            torch.testing.assert_close(
                mine, theirs, rtol=100 * self.tolerance, atol=100 * self.tolerance
            )

    @draw.data
    def test_later_times_do_not_matter(self, data: Any) -> None:
        problem = data.draw(draw.problems(dtype=self.dtype, masked=False, time=True))
        selection = data.draw(draw.selections(problem))
        time, key_time = problem.structure.time, problem.key_structure.time
        assert time is not None
        assert key_time is not None
        now = int(data.draw(st.sampled_from(sorted(set(time.tolist())))))
        later = key_time > now
        changed = problem.with_inputs(
            problem.query,
            problem.key.masked_fill(later[:, None], 7.0),
            problem.value.masked_fill(later[:, None], -3.0),
        )
        bad = data.draw(st.sampled_from([torch.nan, torch.inf, -torch.inf]))
        lost = problem.with_inputs(
            problem.query,
            problem.key.masked_fill(later[:, None], bad),
            problem.value.masked_fill(later[:, None], bad),
        )
        before, *after = (
            self.attend(p, selection, causal=True)[:, :, time <= now]
            for p in (problem, changed, lost)
        )
        assert all(torch.equal(before, x) for x in after)

    @draw.data
    def test_causal_attention_toeverything_is_masked_full_attention(self, data: Any) -> None:
        problem = data.draw(draw.problems(dtype=self.dtype, masked=False, same=True, time=True))
        time = problem.structure.time
        assert time is not None
        past = time[:, None] >= time
        expected = full_attention(
            *problem.inputs, problem.logit_scale, problem.affinity, past[None]
        )
        torch.testing.assert_close(
            self.attend(problem, everything(problem), causal=True),
            expected,
            rtol=self.tolerance,
            atol=self.tolerance,
        )

    @draw.data
    def test_masked_keys_and_padding_are_never_read(self, data: Any) -> None:
        problem = data.draw(draw.problems(dtype=self.dtype, masked=True))
        selection = data.draw(draw.selections(problem))
        assert problem.key_mask is not None
        unseen = ~problem.key_mask[:, None, :, None]
        poisoned = problem.with_inputs(
            problem.query,
            problem.key.masked_fill(unseen, torch.nan),
            problem.value.masked_fill(unseen, torch.nan),
        )
        for mine, theirs in zip(
            derivatives(problem, selection, self.backend, order=1),
            derivatives(poisoned, selection, self.backend, order=1),
            strict=True,
        ):
            assert torch.equal(mine, theirs)

    @draw.data
    def test_empty_slots_read_nothing(self, data: Any) -> None:
        """Block 0, to which a careless gather would send them, holds NaN."""
        problem = data.draw(draw.problems(dtype=self.dtype, masked=False))
        selection = data.draw(draw.selections(problem, bias=False))
        blocks = selection.blocks.masked_fill(selection.blocks == 0, -1)
        first = problem.key_structure.block_of_site == 0
        poisoned = problem.with_inputs(
            problem.query,
            problem.key.masked_fill(first[:, None], torch.nan),
            problem.value.masked_fill(first[:, None], torch.nan),
        )
        out = self.attend(poisoned, ndgpa.Selection(blocks))
        assert torch.equal(out, self.attend(problem, ndgpa.Selection(blocks)))

    @draw.data
    def test_inputs_that_are_not_finite_stay_in_their_batch_head_and_cell(self, data: Any) -> None:
        problem = data.draw(draw.problems(dtype=self.dtype, masked=False))
        selection = data.draw(draw.selections(problem))
        bad = data.draw(st.sampled_from([torch.nan, torch.inf, -torch.inf]))
        site = data.draw(st.integers(0, problem.key_structure.num_sites - 1))
        key, value = problem.key.clone(), problem.value.clone()
        key[0, 0, site], value[0, 0, site] = bad, bad
        before = self.attend(problem, selection)
        after = self.attend(problem.with_inputs(problem.query, key, value), selection)
        heads = problem.query.shape[1]
        block = problem.key_structure.block_of_site[site]
        reads = (selection.blocks == block).any(dim=-1)
        reads = reads.repeat_interleave(heads // reads.shape[1], dim=1)
        reads = reads[:, :, problem.structure.cell_of_site]
        group = torch.arange(heads) * problem.key.shape[1] // heads
        touched = reads & (group == 0)[:, None] & (torch.arange(len(key)) == 0)[:, None, None]
        assert torch.equal(before[~touched], after[~touched])

    @draw.data
    def test_log_sum_exp_is_that_of_the_visible_logits(self, data: Any) -> None:
        problem = data.draw(draw.problems(dtype=self.dtype))
        selection = everything(problem)
        _, lse = self.attend(problem, selection, return_lse=True)
        for b in range(len(lse)):
            keep = slice(None) if problem.key_mask is None else problem.key_mask[b]
            for h in range(lse.shape[1]):
                g = h * problem.key.shape[1] // lse.shape[1]
                q, k = problem.query[b, h], problem.key[b, g][keep]
                if problem.affinity == "dot":
                    logits = problem.logit_scale * q @ k.mT
                else:
                    logits = -problem.logit_scale * (q[:, None] - k).square().sum(-1)
                torch.testing.assert_close(
                    lse[b, h].double(),
                    logits.double().logsumexp(-1),
                    rtol=self.tolerance,
                    atol=self.tolerance,
                )

    @draw.data
    def test_a_batch_of_none_has_derivatives_of_none(self, data: Any) -> None:
        problem = data.draw(draw.problems(dtype=self.dtype, masked=False))
        selection = data.draw(draw.selections(problem))
        bias = None if selection.bias is None else selection.bias[:0]
        leaves = [x[:0].clone().requires_grad_() for x in problem.inputs]
        nothing = ndgpa.Selection(selection.blocks[:0], bias)
        out = self.attend(problem.with_inputs(*leaves), nothing)
        assert out.shape == (0, *problem.query.shape[1:3], problem.value.shape[3])
        for grad, x in zip(torch.autograd.grad(out.sum(), leaves), leaves):
            assert grad.shape == x.shape

    def test_a_batch_of_none_has_second_derivatives_of_none(self) -> None:
        shape, space = (0, 2, 64, 4), ndgpa.Image((8, 8), 2, 2)
        inputs = [torch.randn(shape, dtype=self.dtype, requires_grad=True) for _ in range(3)]
        out = ndgpa.gpa(*inputs, space, 2, backend=self.backend)
        grads = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        bend = torch.stack([g.square().sum() for g in grads]).sum()
        assert [x.shape for x in torch.autograd.grad(bend, inputs)] == 3 * [shape]

    @draw.data
    def test_the_same_input_gives_the_same_bits(self, data: Any) -> None:
        problem = data.draw(draw.problems(dtype=torch.float32))
        selection = data.draw(draw.selections(problem))
        first = derivatives(problem, selection, self.backend, order=1)
        again = derivatives(problem, selection, self.backend, order=1)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    @draw.data
    def test_strides_do_not_matter(self, data: Any) -> None:
        problem = data.draw(draw.problems(dtype=self.dtype))
        selection = data.draw(draw.selections(problem))
        strided = [x.mT.contiguous().mT for x in problem.inputs]
        torch.testing.assert_close(
            self.attend(problem.with_inputs(*strided), selection),
            self.attend(problem, selection),
            rtol=self.tolerance,
            atol=self.tolerance,
        )

    @pytest.mark.parametrize("size", [1, 4, 16])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_errors_keep_to_twice_those_of_plain_torch(self, dtype: torch.dtype, size: int) -> None:
        """In 16 and 32 bits, against float64, at three input scales; gradients three times.

        Over thousands of rows: few of them, with weights that nearly tie, make most of the error.
        """
        for structure in (
            ndgpa.Grid((9, 20), (4, 3), (1, 3)),
            ndgpa.Clusters(torch.arange(180) % 7, torch.arange(7) // 3),
        ):
            generator = draw.seeded(0)
            problem = draw.Problem(
                *(
                    (size * torch.randn(8, heads, 180, d, generator=generator)).to(dtype)
                    for heads, d in ((4, 24), (2, 24), (2, 20))
                ),
                structure,
                structure,
                affinity="dot",
                scale=None,
                key_mask=None,
            )
            exact = plain_derivatives(problem, [x.double() for x in problem.inputs])
            plain = plain_derivatives(problem, problem.inputs)
            ours = derivatives(problem, everything(problem), self.backend, order=1, lse=False)
            for name, *found, truth in zip(
                ("out", "query", "key", "value"), ours, plain, exact, strict=True
            ):
                error, allowed = ((x.double() - truth).norm() for x in found)
                assert error <= (2 if name == "out" else 3) * allowed, name

    # What the tests call

    def attend(self, problem: draw.Problem, selection: ndgpa.Selection, **options: Any) -> Any:
        return ndgpa.attend(
            *problem.inputs,
            selection,
            problem.structure,
            backend=self.backend,
            **(problem.options | options),
        )


def _of_each_query(mask: Tensor | None) -> Tensor | None:
    """A key mask as a mask of queries (one row) and keys."""
    return None if mask is None else mask[:, None]

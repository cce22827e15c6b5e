"""What every backend of `attend` must satisfy where a space has special tokens."""

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import ndgpa
from ndgpa.structures import visible
from ndgpa.testing import draw
from ndgpa.testing.derivatives import derivatives, everything
from ndgpa.testing.oracle import full_attention


class TokensContract:
    """Tests of a backend of `attend` on spaces with special tokens, made by `ndgpa.with_tokens`.

    Inherit it and name the backend, as for `BackendContract`.
    """

    backend: str
    dtype = torch.float64
    tolerance = 1e-12

    @draw.data
    def test_sites_read_their_blocks_and_all_tokens_and_tokens_everything(self, data: Any) -> None:
        """Against dense attention in float64, with its gradients and the log-sum-exp."""
        problem, causal = self.draw_call(data)
        selection = data.draw(draw.selections(problem))
        query, key, value = leaves = [x.clone().requires_grad_() for x in problem.inputs]
        ours = ndgpa.attend(
            query,
            key,
            value,
            selection,
            problem.structure,
            causal=causal,
            backend=self.backend,
            return_lse=True,
            **problem.options,
        )
        wide = [x.detach().double().requires_grad_() for x in problem.inputs]
        dense = self.dense(problem.with_inputs(*wide), selection, causal)
        slopes = [
            torch.autograd.grad(self.total(*pair), xs)
            for pair, xs in ((ours, leaves), (dense, wide))
        ]
        for mine, theirs in zip((*ours, *slopes[0]), (*dense, *slopes[1]), strict=True):
            torch.testing.assert_close(
                mine.double(), theirs, rtol=10 * self.tolerance, atol=10 * self.tolerance
            )

    @draw.data
    def test_every_block_kept_and_all_tokens_are_full_attention(self, data: Any) -> None:
        problem, causal = self.draw_call(data)
        seen = visible(problem.structure, problem.key_structure, causal)
        mask = None if problem.key_mask is None else problem.key_mask[:, None]
        if seen is not None:
            mask = seen[None] if mask is None else seen & mask
        expected = full_attention(*problem.inputs, problem.logit_scale, problem.affinity, mask)
        torch.testing.assert_close(
            self.attend(problem, everything(problem), causal),
            expected,
            rtol=self.tolerance,
            atol=self.tolerance,
        )

    @draw.data
    def test_tokens_leave_the_reference_at_no_order_of_derivative(self, data: Any) -> None:
        problem, _ = self.draw_call(data)
        selection = data.draw(draw.selections(problem))
        ours = derivatives(problem, selection, self.backend)
        reference = derivatives(problem, selection, "reference")
        for mine, theirs in zip(ours, reference, strict=True):
            torch.testing.assert_close(
                mine, theirs, rtol=100 * self.tolerance, atol=100 * self.tolerance
            )

    @draw.data
    def test_masked_tokens_and_sites_are_never_read(self, data: Any) -> None:
        problem, _ = self.draw_call(data, masked=True)
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
    def test_later_tokens_and_sites_do_not_matter(self, data: Any) -> None:
        problem = data.draw(
            draw.problems(dtype=self.dtype, masked=False, spaces=draw.with_tokens(time=True))
        )
        selection = data.draw(draw.selections(problem))
        time, key_time = problem.structure.time, problem.key_structure.time
        assert time is not None
        assert key_time is not None
        now = int(time[data.draw(st.integers(0, len(time) - 1))])
        later = (key_time > now)[:, None]
        before = self.attend(problem, selection, causal=True)[:, :, time <= now]
        for filling in (7.0, torch.nan, torch.inf):
            changed = problem.with_inputs(
                problem.query,
                problem.key.masked_fill(later, filling),
                problem.value.masked_fill(later, filling),
            )
            after = self.attend(changed, selection, causal=True)[:, :, time <= now]
            assert torch.equal(before, after)

    # What the tests call

    def draw_call(self, data: Any, masked: bool | None = None) -> tuple[draw.Problem, bool]:
        """A problem, and whether it is causal."""
        problem = data.draw(
            draw.problems(dtype=self.dtype, masked=masked, spaces=draw.with_tokens())
        )
        times = problem.structure.time, problem.key_structure.time
        return problem, all(time is not None for time in times) and data.draw(st.booleans())

    def attend(self, problem: draw.Problem, selection: ndgpa.Selection, causal: bool) -> Tensor:
        return ndgpa.attend(
            *problem.inputs,
            selection,
            problem.structure,
            causal=causal,
            backend=self.backend,
            **problem.options,
        )

    def total(self, out: Tensor, lse: Tensor) -> Tensor:
        """A number that depends on all of both."""
        return out.sin().sum() + lse.masked_fill(lse == -torch.inf, 0).sin().sum()

    def dense(
        self, problem: draw.Problem, selection: ndgpa.Selection, causal: bool
    ) -> tuple[Tensor, Tensor]:
        """Softmax over all pairs; a key that is read k times has log k added to its logit."""
        query, key, value = problem.inputs
        heads = query.shape[1]
        key, value = (x.repeat_interleave(heads // x.shape[1], 1) for x in (key, value))
        logits = problem.logit_scale * query @ key.mT
        if problem.affinity == "euclidean":
            apart = query[..., :, None, :] - key[..., None, :, :]
            logits = -problem.logit_scale * apart.square().sum(-1)
        times_read = self.times_read(problem, selection)
        if problem.key_mask is not None:
            times_read = times_read * problem.key_mask[:, None, None]
        seen = visible(problem.structure, problem.key_structure, causal)
        if seen is not None:
            times_read = times_read * seen
        sees = (times_read > 0).any(dim=-1, keepdim=True)
        logits = (logits + times_read.log()).masked_fill(~sees, 0)
        out = logits.softmax(dim=-1).masked_fill(~sees, 0) @ value
        lse = logits.logsumexp(dim=-1).masked_fill(~sees[..., 0], -torch.inf)
        return out, lse

    def times_read(
        self, problem: draw.Problem, selection: ndgpa.Selection
    ) -> Tensor:  # (b, h, n, n_k)
        """How often each query reads each key, a slot with a bias exp(bias) times."""
        own, keys = problem.structure, problem.key_structure
        heads = problem.query.shape[1]
        blocks = selection.blocks.long().repeat_interleave(heads // selection.blocks.shape[1], 1)
        often = torch.ones(blocks.shape, dtype=torch.float64)
        if selection.bias is not None:
            bias = selection.bias.detach().double()
            often = bias.repeat_interleave(heads // bias.shape[1], 1).exp()
        count = torch.zeros(*blocks.shape[:3], keys.inner.num_blocks + 1, dtype=torch.float64)
        count.scatter_add_(3, blocks % count.shape[3], often)  # -1 is the last
        count = count[:, :, own.inner.cell_of_site][..., keys.inner.block_of_site]
        around = (keys.prefix, keys.suffix, own.prefix, own.suffix)
        return torch.nn.functional.pad(count, around, value=1.0)

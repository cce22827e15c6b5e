"""What holds of every backend that has a far field."""

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from torch import Tensor

import ndgpa
from ndgpa import Bundles
from ndgpa.structures import Jittered, Strided
from ndgpa.testing import draw
from ndgpa.testing.derivatives import _ramp, everything, plain_derivatives
from ndgpa.testing.oracle import full_attention
from tests.attention.far.dense import dense

KINDS = ("block", "site")
kinds = st.builds(Bundles, st.integers(1, 3)) | st.sampled_from(KINDS)
RARE = settings(draw.FEW, max_examples=max(1, draw.FEW.max_examples // 2))


class FarLaws:
    """Inherit and name the backend."""

    backend: str

    @given(st.data())
    @draw.FEW
    def test_it_is_a_softmax_over_sites_and_means(self, data: Any) -> None:
        """Outputs to 1e-10, gradients of queries, keys, values and slot bias to 1e-8."""
        problem, selection, kind = drawn(data)
        options = {
            "causal": data.draw(st.booleans()) and has_time(problem),
            "read": data.draw(st.sampled_from([None, Strided(2), Jittered(2)])),
        }
        ours, theirs = [], []
        for results, attend in ((ours, self.attend), (theirs, dense)):
            leaves, selected = leaves_of(problem, selection)
            out = attend(problem.with_inputs(*leaves[:3]), selected, kind, **options)
            results += [out, *gradients_of(out, leaves)]
        for mine, other, allowed in zip(ours, theirs, [1e-10, *[1e-8] * 4]):
            torch.testing.assert_close(mine, other, rtol=allowed, atol=allowed)

    @given(st.data())
    def test_all_blocks_selected_is_full_attention(self, data: Any) -> None:
        problem, kind = data.draw(draw.problems()), data.draw(kinds)
        mask = None if problem.key_mask is None else problem.key_mask[:, None]
        torch.testing.assert_close(
            self.attend(problem, everything(problem), kind),
            full_attention(*problem.inputs, problem.logit_scale, problem.affinity, mask),
            rtol=1e-12,
            atol=1e-12,
        )

    @given(st.data())
    def test_nothing_selected_is_attention_to_means(self, data: Any) -> None:
        """With equal blocks: plain attention in which the means are the keys."""
        grid = ndgpa.Grid((4, 6), 2, cell=data.draw(st.sampled_from([1, 2, (2, 3)])))
        generator = draw.seeded(data.draw(st.integers(0, 2**20)))
        query, key, value = torch.randn(3, 2, 2, 24, 3, generator=generator).double()
        nothing = ndgpa.Selection(torch.empty(2, 1, grid.num_cells, 0, dtype=torch.int32))
        out = ndgpa.attend(query, key, value, nothing, grid, far="site", backend=self.backend)
        means = [grid.downsample(x) for x in (key, value)]
        torch.testing.assert_close(out, full_attention(query, *means, 3**-0.5, "dot", None))
        each = ndgpa.attend(
            query, key, value, nothing, grid, far=Bundles(grid.num_blocks), backend=self.backend
        )
        torch.testing.assert_close(each, out)
        one = ndgpa.attend(query, key, value, nothing, grid, far=Bundles(1), backend=self.backend)
        torch.testing.assert_close(one, value.mean(dim=2, keepdim=True).expand_as(one))

    @given(st.data())
    def test_equal_keys_and_values_in_each_block_leave_no_error(self, data: Any) -> None:
        """A block without spread is its mean; so GPA of any selection is full attention."""
        problem, selection, _ = drawn(data, bias=False, masked=False)
        again = selection.blocks.sort(dim=-1).values
        assume_once(again)
        space = problem.key_structure
        flat = [
            space.downsample(x).index_select(2, space.block_of_site)
            for x in (problem.key, problem.value)
        ]
        problem = problem.with_inputs(problem.query, *flat)
        torch.testing.assert_close(
            self.attend(problem, selection, "site"),
            full_attention(*problem.inputs, problem.logit_scale, problem.affinity, None),
            rtol=1e-10,
            atol=1e-10,
        )

    @given(st.data())
    def test_bundles_never_claim_more_weight_than_site(self, data: Any) -> None:
        """By Jensen's inequality, of products; not causal, where they may know fewer blocks."""
        problem, selection, _ = drawn(data)
        assume(problem.affinity == "dot")
        exact = self.attend(problem, selection, "site", return_lse=True)[1]
        for kind in (Bundles(1), Bundles(2), "block"):
            lse = self.attend(problem, selection, kind, return_lse=True)[1]
            assert bool((lse <= exact + 1e-9).all())

    @given(st.data())
    @RARE
    def test_a_bundle_for_each_block_is_site(self, data: Any) -> None:
        problem, selection, _ = drawn(data, masked=False)
        exact = self.attend(problem, selection, "site", return_lse=True)
        each = Bundles(problem.key_structure.num_blocks)
        torch.testing.assert_close(self.attend(problem, selection, each, return_lse=True), exact)

    @given(st.data())
    @draw.FEW
    def test_masked_keys_and_padding_do_not_exist(self, data: Any) -> None:
        problem, selection, kind = drawn(data, masked=True)
        assert problem.key_mask is not None
        unseen = ~problem.key_mask[:, None, :, None]
        poisoned = problem.with_inputs(
            problem.query, *(x.masked_fill(unseen, torch.nan) for x in problem.inputs[1:])
        )
        results = []
        for one in (problem, poisoned):
            leaves, selected = leaves_of(one, selection)
            out = self.attend(one.with_inputs(*leaves[:3]), selected, kind)
            results.append([out, *gradients_of(out, leaves)])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        assert results[0][0].isfinite().all()

    @given(st.data())
    def test_who_sees_nothing_gets_zero(self, data: Any) -> None:
        problem, selection, kind = drawn(data, masked=True)
        assert problem.key_mask is not None
        problem.key_mask[:] = False
        out, lse = self.attend(problem, selection, kind, return_lse=True)
        assert not out.any()
        assert bool((lse == -torch.inf).all())

    @given(st.data())
    def test_later_times_do_not_matter(self, data: Any) -> None:
        problem = data.draw(draw.problems(masked=False, time=True))
        selection, kind = data.draw(draw.selections(problem)), data.draw(kinds)
        time, key_time = problem.structure.time, problem.key_structure.time
        assert time is not None
        assert key_time is not None
        now = int(data.draw(st.sampled_from(sorted(set(time.tolist())))))
        later, key_later = (time > now)[:, None], (key_time > now)[:, None]
        poison = data.draw(st.sampled_from([7.0, torch.nan]))
        changed = problem.with_inputs(
            problem.query.masked_fill(later, poison),
            problem.key.masked_fill(key_later, poison),
            problem.value.masked_fill(key_later, poison),
        )
        before, after = (
            self.attend(p, selection, kind, causal=True)[:, :, time <= now]
            for p in (problem, changed)
        )
        assert torch.equal(before, after)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_future_value_that_is_not_finite_sends_no_gradient_back(self, kind: Any) -> None:
        space, rule = ndgpa.Sequence(12, 2, 2), ndgpa.Fixed((0, 2, 3))
        query, key, value = torch.randn(3, 1, 1, 12, 3).double()
        bad = value.clone()
        bad[:, :, 6:] = torch.inf

        def early(*inputs: Tensor) -> list[Tensor]:
            leaves = [x.clone().requires_grad_() for x in inputs]
            options = {"causal": True, "far": kind, "backend": self.backend}
            out = ndgpa.gpa(*leaves, space, rule, **options)[:, :, :6]
            return [out, *torch.autograd.grad(out.square().sum(), leaves)]

        for mine, clean in zip(early(query, key, bad), early(query, key, value)):
            torch.testing.assert_close(mine, clean)

    @given(st.data())
    def test_groups_do_not_see_each_other(self, data: Any) -> None:
        space = data.draw(draw.clusters(time=False, group=True))
        kind, generator = data.draw(kinds), draw.seeded(data.draw(st.integers(0, 2**20)))
        x = torch.randn(1, 1, space.num_sites, 3, generator=generator).double()
        blocks = torch.full((1, 1, space.num_cells, 1), -1).int()
        blocks[0, 0, :, 0] = space.cells.amax(dim=1)
        assert space.group is not None
        own = space.group[space.block_of_site] == int(space.group[0])
        other = x.masked_fill(~own[:, None], torch.nan)
        before, after = (
            ndgpa.attend(y, y, y, ndgpa.Selection(blocks), space, far=kind, backend=self.backend)[
                :, :, own
            ]
            for y in (x, other)
        )
        assert torch.equal(before, after)

    @given(st.data())
    @draw.FEW
    def test_heads_and_batches_do_not_see_each_other(self, data: Any) -> None:
        problem, selection, kind = drawn(data, masked=False)
        whole = self.attend(problem, selection, kind)
        heads, key_heads = problem.query.shape[1], problem.key.shape[1]
        for b in range(len(whole)):
            for h in range(heads):
                g, s = (h * count // heads for count in (key_heads, selection.blocks.shape[1]))
                one = problem.with_inputs(
                    problem.query[b, h][None, None],
                    *(x[b, g][None, None] for x in problem.inputs[1:]),
                )
                bias = None if selection.bias is None else selection.bias[b, s][None, None]
                alone = ndgpa.Selection(selection.blocks[b, s][None, None], bias)
                torch.testing.assert_close(self.attend(one, alone, kind)[0, 0], whole[b, h])

    @given(st.data())
    def test_renumbered_sites_are_renumbered_outputs(self, data: Any) -> None:
        problem = data.draw(draw.problems(same=True, masked=False))
        selection, kind = data.draw(draw.selections(problem)), data.draw(kinds)
        space = problem.structure
        order = torch.randperm(
            space.num_sites, generator=draw.seeded(data.draw(st.integers(0, 2**20)))
        )
        moved = ndgpa.Clusters(space.block_of_site[order], space.cell_of_block)
        there = draw.Problem(
            *(x[:, :, order] for x in problem.inputs),
            moved,
            moved,
            *list(vars(problem).values())[5:],
        )
        torch.testing.assert_close(
            self.attend(there, selection, kind), self.attend(problem, selection, kind)[:, :, order]
        )

    @given(st.data())
    def test_an_axis_of_one_changes_nothing(self, data: Any) -> None:
        kind = data.draw(kinds)
        x = torch.randn(1, 2, 24, 3, generator=draw.seeded(data.draw(st.integers(0, 2**20))))
        flat, tall = ndgpa.Grid((4, 6), (2, 3)), ndgpa.Grid((4, 1, 6), (2, 1, 3))
        outs = [ndgpa.gpa(x, x, x, g, 2, far=kind, backend=self.backend) for g in (flat, tall)]
        torch.testing.assert_close(*outs)

    @given(st.data())
    def test_the_same_input_gives_the_same_bits(self, data: Any) -> None:
        problem = data.draw(draw.problems(dtype=torch.float32))
        selection, kind = data.draw(draw.selections(problem)), data.draw(kinds)
        results = []
        for _ in range(2):
            leaves, selected = leaves_of(problem, selection)
            out = self.attend(problem.with_inputs(*leaves[:3]), selected, kind)
            results.append([out, *gradients_of(out, leaves)])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_batch_of_none_has_derivatives_of_none(self, kind: Any) -> None:
        shape, space = (0, 2, 64, 4), ndgpa.Image((8, 8), 2, 2)
        inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3)]
        out = ndgpa.gpa(*inputs, space, 2, far=kind, backend=self.backend)
        grads = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        bend = torch.stack([g.square().sum() for g in grads]).sum()
        assert [x.shape for x in torch.autograd.grad(bend, inputs)] == 3 * [shape]

    @pytest.mark.parametrize("kind", [Bundles(90), "site"], ids=str)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_errors_keep_to_twice_those_of_plain_torch(self, dtype: torch.dtype, kind: Any) -> None:
        """Blocks of one site: either kind is full attention, of whatever selection."""
        space = ndgpa.Grid((9, 10), 1)
        problem = draw.Problem(
            *(
                torch.randn(8, heads, 90, 24, generator=draw.seeded(heads)).to(dtype)
                for heads in (4, 2, 2)
            ),
            space,
            space,
            affinity="dot",
            scale=None,
            key_mask=None,
        )
        exact = plain_derivatives(problem, [x.double() for x in problem.inputs])
        plain = plain_derivatives(problem, problem.inputs)
        leaves, selection = leaves_of(problem, ndgpa.Selection(torch.full((8, 1, 90, 1), 3).int()))
        out = self.attend(problem.with_inputs(*leaves), selection, kind)
        grads = torch.autograd.grad((out * _ramp(out)).sum(), leaves)
        for mine, theirs, truth in zip((out, *grads), plain, exact, strict=True):
            error, allowed = ((x.double() - truth).norm() for x in (mine, theirs))
            assert error <= (2 if mine is out else 3) * allowed

    def attend(
        self,
        problem: draw.Problem,
        selection: ndgpa.Selection,
        kind: Any,
        **options: Any,
    ) -> Any:
        return ndgpa.attend(
            *problem.inputs,
            selection,
            problem.structure,
            **problem.options,
            **options,
            far=kind,
            backend=self.backend,
        )


# What the laws share


def drawn(
    data: Any, bias: bool | None = None, masked: bool | None = None
) -> tuple[draw.Problem, ndgpa.Selection, Any]:
    problem = data.draw(draw.problems(masked=masked))
    return problem, data.draw(draw.selections(problem, bias=bias)), data.draw(kinds)


def has_time(problem: draw.Problem) -> bool:
    return problem.structure.time is not None and problem.key_structure.time is not None


def assume_once(ascending: Tensor) -> None:
    again = (ascending[..., 1:] == ascending[..., :-1]) & (ascending[..., 1:] >= 0)
    assume(not bool(again.any()))


def leaves_of(
    problem: draw.Problem, selection: ndgpa.Selection
) -> tuple[list[Tensor], ndgpa.Selection]:
    leaves = [x.clone().requires_grad_() for x in problem.inputs]
    if selection.bias is None:
        return leaves, selection
    leaves.append(selection.bias.clone().requires_grad_())
    return leaves, ndgpa.Selection(selection.blocks, leaves[3])


def gradients_of(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    if not out.requires_grad:
        return [torch.zeros_like(x) for x in leaves]
    grads = torch.autograd.grad((out * _ramp(out)).sum(), leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves)]

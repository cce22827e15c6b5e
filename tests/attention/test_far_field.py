"""What a cell does not select takes part through means: against a literal dense construction."""

import math
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from torch import Tensor

import ndgpa
from ndgpa import Bundles
from ndgpa.attention.far_bundles import bundle_blocks
from ndgpa.attention.far_field import as_bundles
from ndgpa.structures import Jittered, Sampling, Strided
from ndgpa.testing import CausalContract, draw
from ndgpa.testing.derivatives import _ramp, everything, plain_derivatives
from ndgpa.testing.oracle import full_attention, rows

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
        problem, selection, kind = _drawn(data)
        options = {
            "causal": data.draw(st.booleans()) and _has_time(problem),
            "read": data.draw(st.sampled_from([None, Strided(2), Jittered(2)])),
        }
        ours, theirs = [], []
        for results, attend in ((ours, self.attend), (theirs, dense)):
            leaves, selected = _leaves(problem, selection)
            out = attend(problem.with_inputs(*leaves[:3]), selected, kind, **options)
            results += [out, *_gradients(out, leaves)]
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
        problem, selection, _ = _drawn(data, bias=False, masked=False)
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
        problem, selection, _ = _drawn(data)
        assume(problem.affinity == "dot")
        exact = self.attend(problem, selection, "site", return_lse=True)[1]
        for kind in (Bundles(1), Bundles(2), "block"):
            lse = self.attend(problem, selection, kind, return_lse=True)[1]
            assert bool((lse <= exact + 1e-9).all())

    @given(st.data())
    @RARE
    def test_a_bundle_for_each_block_is_site(self, data: Any) -> None:
        problem, selection, _ = _drawn(data, masked=False)
        exact = self.attend(problem, selection, "site", return_lse=True)
        each = Bundles(problem.key_structure.num_blocks)
        torch.testing.assert_close(self.attend(problem, selection, each, return_lse=True), exact)

    @given(st.data())
    @draw.FEW
    def test_masked_keys_and_padding_do_not_exist(self, data: Any) -> None:
        problem, selection, kind = _drawn(data, masked=True)
        assert problem.key_mask is not None
        unseen = ~problem.key_mask[:, None, :, None]
        poisoned = problem.with_inputs(
            problem.query, *(x.masked_fill(unseen, torch.nan) for x in problem.inputs[1:])
        )
        results = []
        for one in (problem, poisoned):
            leaves, selected = _leaves(one, selection)
            out = self.attend(one.with_inputs(*leaves[:3]), selected, kind)
            results.append([out, *_gradients(out, leaves)])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        assert results[0][0].isfinite().all()

    @given(st.data())
    def test_who_sees_nothing_gets_zero(self, data: Any) -> None:
        problem, selection, kind = _drawn(data, masked=True)
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
        problem, selection, kind = _drawn(data, masked=False)
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
            leaves, selected = _leaves(problem, selection)
            out = self.attend(problem.with_inputs(*leaves[:3]), selected, kind)
            results.append([out, *_gradients(out, leaves)])
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
        leaves, selection = _leaves(problem, ndgpa.Selection(torch.full((8, 1, 90, 1), 3).int()))
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


class TestLiteral(FarLaws):
    backend = "reference"


class TestChunked(FarLaws):
    backend = "torch"

    @given(st.data())
    @RARE
    def test_second_derivatives_are_right(self, data: Any) -> None:
        problem, selection, kind = _drawn(data)
        leaves, _ = _leaves(problem, selection)

        def call(*xs: Tensor) -> Tensor:
            chosen = ndgpa.Selection(selection.blocks, xs[3] if len(xs) > 3 else None)
            return self.attend(problem.with_inputs(*xs[:3]), chosen, kind)

        assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One query, or one site, a chunk."""
    for name, budget in (("far_rows", "_CHUNK"), ("far_merge", "_CHUNK"), ("chunks", "BUDGET")):
        monkeypatch.setitem(getattr(import_module(f"ndgpa.attention.{name}"), budget), "cpu", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("small_chunks")
class TestOneQueryAChunk(TestChunked):
    pass


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("kind", KINDS)
def test_small_chunks_change_nothing(kind: Any) -> None:
    """To the second derivative, for heads that share keys but no selection."""
    space = ndgpa.Grid((3, 5), 2, 1, time_axis=0)
    query, key, value = (torch.randn(2, h, 15, 3, dtype=torch.float64) for h in (4, 2, 2))
    blocks = torch.randint(-1, 6, (2, 4, 6, 2), dtype=torch.int32)
    results: list[list[Tensor]] = []
    for backend in ("torch", "reference"):
        leaves = [x.clone().requires_grad_() for x in (query, key, value)]
        options: Any = {"far": kind, "causal": True, "backend": backend}
        out = ndgpa.attend(*leaves, ndgpa.Selection(blocks), space, **options)
        grads = torch.autograd.grad((out * _ramp(out)).sum(), leaves, create_graph=True)
        bend = torch.stack([(g * _ramp(g)).sum() for g in grads]).sum()
        results.append([out, *grads, *torch.autograd.grad(bend, leaves)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


class TestCausalSelectionWithFarField(CausalContract):
    """Through the selection too."""

    def rules(self, problem: draw.Problem) -> st.SearchStrategy[ndgpa.TopK]:
        return st.builds(ndgpa.TopK, st.integers(1, 3))

    def options(self, data: Any) -> dict[str, Any]:
        return {"far": data.draw(kinds)}


@pytest.mark.bad_input
def test_what_cannot_be_is_said() -> None:
    x, space = torch.randn(1, 1, 16, 4), ndgpa.Sequence(16, 4)
    with pytest.raises(ValueError, match="unknown far 'cells'; expected one of 'site', 'block'"):
        ndgpa.gpa(x, x, x, space, 2, far="cells")
    with pytest.raises(ValueError, match="count must be at least 1"):
        Bundles(0)
    with pytest.raises(ValueError, match="unknown far 'cells'"):
        ndgpa.GPA(2, far="cells")
    with pytest.raises(ValueError, match="backend 'triton' needs tensors on a GPU; query is on"):
        ndgpa.gpa(x, x, x, space, 2, far="site", backend="triton")
    with pytest.raises(NotImplementedError, match="'torch' has no forward-mode derivative; use"):
        torch.func.jvp(lambda q: ndgpa.gpa(q, x, x, space, 2, far="site"), (x,), (x,))


@given(st.data())
def test_the_error_keeps_to_its_bound(data: Any) -> None:
    """docs/far_field.md: D tanh(w^2 / 32) + 2 m R tanh(w / 4)."""
    generator = draw.seeded(data.draw(st.integers(0, 2**20)))
    space = data.draw(draw.clusters(time=False))
    n, size = space.num_sites, data.draw(st.sampled_from([0.1, 1.0, 3.0]))
    query, key, value = size * torch.randn(3, 1, 1, n, 3, generator=generator).double()
    blocks = torch.randint(-1, space.num_blocks, (1, 1, space.num_cells, 1), generator=generator)
    out = ndgpa.attend(query, key, value, ndgpa.Selection(blocks.int()), space, far="site")
    exact = full_attention(query, key, value, 3**-0.5, "dot", None)
    errors = (out - exact)[0, 0].norm(dim=1).tolist()
    logits = 3**-0.5 * query[0, 0] @ key[0, 0].mT
    members = [torch.tensor(block) for block in rows(space.blocks)]
    radius = [(value[0, 0, m] - value[0, 0, m].mean(0)).norm(dim=1).max().item() for m in members]
    diameter = torch.cdist(value[0, 0], value[0, 0]).max().item()
    for x, cell in enumerate(space.cell_of_site.tolist()):
        far = [j for j in range(len(members)) if j != int(blocks[0, 0, cell, 0])]
        if not far:
            continue
        width = max(float(logits[x, members[j]].max() - logits[x, members[j]].min()) for j in far)
        mass = sum(float(logits[x].softmax(0)[members[j]].sum()) for j in far)
        within = 2 * mass * max(radius[j] for j in far) * math.tanh(width / 4)
        assert errors[x] <= diameter * math.tanh(width**2 / 32) + within + 1e-12


@given(st.data())
def test_a_bundle_keeps_to_its_bound(data: Any) -> None:
    """docs/far_field.md: at most u^2 / 8 below the log-sum-exp of its blocks."""
    generator = draw.seeded(data.draw(st.integers(0, 2**20)))
    space = data.draw(draw.clusters(time=False))
    query, key = 2 * torch.randn(2, 1, 1, space.num_sites, 3, generator=generator).double()
    nothing = ndgpa.Selection(torch.empty(1, 1, space.num_cells, 0, dtype=torch.int32))
    bundle, exact = (
        ndgpa.attend(query, key, key, nothing, space, far=far, return_lse=True)[1][0, 0]
        for far in (Bundles(1), "site")
    )
    logits = 3**-0.5 * query[0, 0] @ space.downsample(key)[0, 0].mT
    width = logits.amax(dim=1) - logits.amin(dim=1)
    assert bool((exact - bundle <= width**2 / 8 + 1e-12).all())


@given(st.data())
def test_a_bundle_is_what_is_nearest_to_a_landmark(data: Any) -> None:
    """Of several spaces in one, with blocks of which nothing is seen; causal, of the past alone."""
    space = data.draw(draw.clusters(time=data.draw(st.booleans()), group=True))
    generator = draw.seeded(data.draw(st.integers(0, 2**20)))
    key = torch.randn(space.num_sites, 3, generator=generator).double()
    seen = torch.rand(space.num_sites, generator=generator) < 0.8
    count = data.draw(st.integers(2, 4))
    sites = [[x for x in block if seen[x]] for block in rows(space.blocks)]
    assert space.group is not None
    latest = None if space.time is None else space.block_span[1]
    expected = bundles(
        key, sites, None if latest is None else latest.tolist(), space.group.tolist(), count
    )
    means = torch.stack([key[own].sum(dim=0) / max(1, len(own)) for own in sites])
    exists = torch.tensor([bool(own) for own in sites])
    found = bundle_blocks(means[None, None], exists[None, None], latest, space.group, count)
    assert found[0, 0][exists].tolist() == [g for g, own in zip(expected, sites) if own]


def test_the_operators_pass_opcheck() -> None:
    from ndgpa.attention.far_chunked import far_chunked
    from ndgpa.attention.far_merge import merge_far

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    selected, cell = torch.tensor([[[[0, 2], [1, -1]]]]).int(), torch.tensor([0, 1, 1])
    keys = normal(1, 1, 4, 3), normal(1, 1, 4, 2), normal(1, 1, 4)
    times = torch.tensor([0, 0, 1, 2])
    tables = selected, cell, cell, times, None, None
    torch.library.opcheck(far_chunked, (normal(1, 2, 3, 3), *keys, *tables, 0.5))
    torch.library.opcheck(bundle_blocks, (torch.randn(1, 1, 4, 3), keys[2] > 0, times, None, 2))
    fields = normal(1, 2, 5, 2), normal(1, 2, 5), normal(1, 2, 5, 2), normal(1, 2, 5)
    for contain in (False, True):
        torch.library.opcheck(merge_far, (*fields, contain))


def test_it_maps() -> None:
    """Over samples that are no batch."""
    x, space = torch.randn(3, 1, 2, 24, 4), ndgpa.Image((4, 6), 2)
    for kind in KINDS:

        def call(y: Tensor, kind: Any = kind) -> Tensor:
            return ndgpa.gpa(y, y, y, space, ndgpa.Refine(ndgpa.TopK(3), 2), far=kind)

        torch.testing.assert_close(torch.func.vmap(call)(x), torch.stack([call(y) for y in x]))


def test_a_case_by_hand() -> None:
    """Four sites in two blocks; each cell reads its own block. Logits are 0, so weights count."""
    space = ndgpa.Sequence(4, 2)
    query, key = torch.zeros(1, 1, 4, 1), torch.randn(1, 1, 4, 1)
    value = torch.tensor([1.0, 3.0, 10.0, 20.0])[None, None, :, None]
    selection = ndgpa.Selection(torch.tensor([[[[0], [1]]]]).int())
    for kind in KINDS:
        out, lse = ndgpa.attend(query, key, value, selection, space, far=kind, return_lse=True)
        assert out.flatten().tolist() == pytest.approx(4 * [34 / 4])
        assert lse.flatten().tolist() == pytest.approx(4 * [math.log(4)])


def test_backward_holds_no_matrix_of_sites_and_blocks() -> None:
    image = ndgpa.Image((64, 64), 2, 2)
    inputs = [torch.randn(1, 1, 4096, 16, requires_grad=True) for _ in range(3)]
    for kind in ("block", "site"):
        saved: list[int] = []

        def count(x: Tensor, saved: list[int] = saved) -> Tensor:
            saved.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            ndgpa.gpa(*inputs, image, 4, far=kind)
        assert sum(saved) < 5 * sum(x.numel() for x in inputs)


# The literal construction


def dense(
    problem: draw.Problem,
    selection: ndgpa.Selection,
    kind: Any,
    causal: bool,
    read: Sampling | None,
) -> Tensor:
    """Loops over batches, heads and sites; plain torch within, so that it has its gradients."""
    space, keys = problem.structure, problem.key_structure
    blocks = rows(keys.blocks if read is None else read.sites(keys))
    of_cell = space.cell_of_site.tolist()
    scale, affinity = problem.logit_scale, problem.affinity
    heads, outs = problem.query.shape[1], []
    for b in range(len(problem.query)):
        seen = [True] * keys.num_sites
        if problem.key_mask is not None:
            seen = problem.key_mask[b].tolist()
        sites = [[y for y in block if seen[y]] for block in blocks]
        for h in range(heads):
            g, s = (h * x.shape[1] // heads for x in (problem.key, selection.blocks))
            key, value = problem.key[b, g], problem.value[b, g]
            latest = [max(int(keys.time[y]) for y in block) for block in blocks] if causal else None
            bundled = as_bundles(kind)
            count = 1 if bundled is None else bundled.count
            bundle = bundles(key, sites, latest, None, count)
            for x in range(space.num_sites):
                slots = selection.blocks[b, s, of_cell[x]].tolist()
                near, far_blocks = (
                    [],
                    [j for j in range(len(blocks)) if j not in slots and sites[j]],
                )
                for slot, j in enumerate(slots):
                    for y in sites[j] if j >= 0 else []:
                        if causal and keys.time[y] > space.time[x]:
                            continue
                        added = (
                            0 if selection.bias is None else selection.bias[b, s, of_cell[x], slot]
                        )
                        near.append(
                            (
                                _logit(problem.query[b, h, x], key[y], scale, affinity) + added,
                                value[y],
                            )
                        )
                if causal:
                    members = [y for y in range(space.num_sites) if of_cell[y] == of_cell[x]]
                    begin = min(int(space.time[y]) for y in members)
                    now = int(space.time[x]) if kind == "site" else begin
                    far_blocks = [j for j in far_blocks if latest[j] <= now]
                outs.append(
                    _softmax_of(
                        near,
                        _far(
                            problem.query[b, h, x],
                            [[j] for j in far_blocks]
                            if kind == "site"
                            else _by_bundle(far_blocks, bundle),
                            sites,
                            key,
                            value,
                            scale,
                            affinity,
                        ),
                    )
                    if near or far_blocks
                    else 0 * value[0]
                )
    return torch.stack(outs).view(*problem.query.shape[:3], -1)


def _by_bundle(far_blocks, bundle):
    parts = [[j for j in far_blocks if bundle[j] == g] for g in sorted(set(bundle))]
    return [part for part in parts if part]


def _far(q, parts, sites, key, value, scale, affinity):
    """Logits and values of the far field: each part is one key."""
    found = []
    for part in parts:
        members = [y for j in part for y in sites[j]]
        logit = _logit(q, key[members].mean(dim=0), scale, affinity) + math.log(len(members))
        found.append((logit, value[members].mean(dim=0)))
    return found


def bundles(
    key: Tensor,
    sites: list[list[int]],
    latest: list[int] | None,
    group: list[int] | None,
    count: int,
) -> list[int]:
    """The bundle of each block, by k-means from evenly spaced landmarks of its space.

    If causal, of landmarks that are past, which do not move.
    """
    means = [key[members].mean(dim=0).detach() if members else None for members in sites]
    spaces = [0] * len(sites) if group is None else group
    marks: dict[int, list[tuple[int, Tensor] | None]] = {}
    for space in set(spaces):
        own = [i for i in range(len(sites)) if spaces[i] == space]
        own = own if latest is not None else [i for i in own if sites[i]]
        places = [own[(2 * g + 1) * len(own) // (2 * count)] for g in range(count) if own]
        marks[space] = [
            (i, means[i]) if sites[i] and i not in places[:g] else None
            for g, i in enumerate(places)
        ]
    found = [0] * len(sites)
    for _ in range(1 if latest is not None else 3):
        for j, mean in enumerate(means):
            nearest = math.inf
            for g, mark in enumerate(marks[spaces[j]]):
                if mark is None or mean is None:
                    continue
                if latest is not None and latest[mark[0]] > latest[j]:
                    continue
                distance = float((mark[1] - mean).square().sum())
                if distance < nearest - 1e-9:
                    found[j], nearest = g, distance
        for space, own_marks in marks.items():
            for g, mark in enumerate(own_marks):
                own = [
                    means[j]
                    for j in range(len(sites))
                    if spaces[j] == space and found[j] == g and sites[j]
                ]
                if mark is not None and own:
                    own_marks[g] = mark[0], torch.stack(own).mean(dim=0)
    return found


def _logit(q: Tensor, k: Tensor, scale: float, affinity: str) -> Tensor:
    return scale * (q @ k) if affinity == "dot" else -scale * (q - k).square().sum()


def _softmax_of(*parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    logits, values = zip(*(pair for part in parts for pair in part))
    return torch.stack(logits).softmax(dim=0) @ torch.stack(values)


# What the tests share


def _drawn(
    data: Any, bias: bool | None = None, masked: bool | None = None
) -> tuple[draw.Problem, ndgpa.Selection, Any]:
    problem = data.draw(draw.problems(masked=masked))
    return problem, data.draw(draw.selections(problem, bias=bias)), data.draw(kinds)


def _has_time(problem: draw.Problem) -> bool:
    return problem.structure.time is not None and problem.key_structure.time is not None


def assume_once(ascending: Tensor) -> None:
    again = (ascending[..., 1:] == ascending[..., :-1]) & (ascending[..., 1:] >= 0)
    assume(not bool(again.any()))


def _leaves(
    problem: draw.Problem, selection: ndgpa.Selection
) -> tuple[list[Tensor], ndgpa.Selection]:
    leaves = [x.clone().requires_grad_() for x in problem.inputs]
    if selection.bias is None:
        return leaves, selection
    leaves.append(selection.bias.clone().requires_grad_())
    return leaves, ndgpa.Selection(selection.blocks, leaves[3])


def _gradients(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    if not out.requires_grad:
        return [torch.zeros_like(x) for x in leaves]
    grads = torch.autograd.grad((out * _ramp(out)).sum(), leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves)]

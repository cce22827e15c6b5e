"""The coarse branch and the sampling of selected blocks."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import ndgpa
from ndgpa.operators.coarse import add_by_block
from ndgpa.testing import draw
from ndgpa.testing.oracle import logit, rows, softmax, voters_of


def branch_of(problem: draw.Problem, b: int, h: int) -> np.ndarray:
    """Attention between block means, by loops; one row for each site."""
    g = h * problem.key.shape[1] // problem.query.shape[1]
    query, key, value = problem.query[b, h], problem.key[b, g], problem.value[b, g]
    seen = [True] * len(key) if problem.key_mask is None else problem.key_mask[b].tolist()
    key_blocks = [[y for y in ys if seen[y]] for ys in rows(problem.key_structure.blocks)]
    zero = np.zeros(value.shape[1])
    out = np.zeros((len(query), value.shape[1]))
    means = [key[ys].numpy().mean(0) if ys else np.zeros(key.shape[1]) for ys in key_blocks]
    values = [value[ys].numpy().mean(0) if ys else zero for ys in key_blocks]
    mask = None if problem.key_mask is None else problem.key_mask[b]
    voters = voters_of(problem.structure, problem.key_structure, mask)
    for sites in rows(problem.structure.blocks):
        asking = [x for x in sites if voters[x]]
        mean = query[asking].numpy().mean(axis=0) if asking else np.zeros(query.shape[1])
        logits = [logit(mean, k, problem.logit_scale, problem.affinity) for k in means]
        weights = softmax(logits, [len(ys) for ys in key_blocks])
        out[sites] = sum((w * v for w, v in zip(weights, values)), zero)
    return out


@given(st.data())
def test_the_branch_is_attention_between_block_means(data: Any) -> None:
    problem = data.draw(draw.problems())
    options = {"scale": problem.scale, "affinity": problem.affinity}
    call = (*problem.inputs, problem.structure, problem.key_structure)
    fine = ndgpa.GPA(2, **options)(*call, key_mask=problem.key_mask)
    added = ndgpa.GPA(2, coarse="add", **options)(*call, key_mask=problem.key_mask)
    shape = (*fine.shape[:3], data.draw(st.sampled_from([1, fine.shape[3]])))
    gate = torch.randn(shape, generator=draw.seeded(3), dtype=torch.float64)
    gated = ndgpa.GPA(2, coarse="gate", **options)(*call, key_mask=problem.key_mask, gate=gate)
    for b in range(fine.shape[0]):
        for h in range(fine.shape[1]):
            branch = torch.from_numpy(branch_of(problem, b, h))
            torch.testing.assert_close(added[b, h], fine[b, h] + branch)
            torch.testing.assert_close(gated[b, h], fine[b, h] + gate[b, h] * branch)


def test_it_has_the_right_derivatives() -> None:
    image = ndgpa.Image((3, 2), 2)
    inputs = [
        torch.randn(1, 1, 6, 2, dtype=torch.float64, generator=draw.seeded(i), requires_grad=True)
        for i in range(4)
    ]

    def call(q: Any, k: Any, v: Any, g: Any) -> torch.Tensor:
        return ndgpa.GPA(99, coarse="gate")(q, k, v, image, gate=g)

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)

    def spread(out: Any, branch: Any, gate: Any) -> torch.Tensor:
        return add_by_block(out * 1.0, branch, image, gate)

    branch = torch.randn(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(spread, [inputs[0], branch, inputs[1]])


@pytest.mark.parametrize("coarse", ["add", "gate"])
def test_it_can_be_mapped(coarse: str) -> None:
    space, operator = ndgpa.Sequence(32, 4), ndgpa.GPA(2, coarse=coarse)
    x = torch.randn(3, 1, 2, 32, 4, dtype=torch.float64, generator=draw.seeded(0))

    def call(q: Any, k: Any, v: Any) -> torch.Tensor:
        return operator(q, k, v, space, gate=v if coarse == "gate" else None)

    ours = torch.vmap(call, in_dims=(0, None, 0))(x, x[0], x)
    for some, own in zip(ours, x):
        torch.testing.assert_close(some, call(own, x[0], own))


def test_adding_makes_no_copy_of_the_output() -> None:
    """The largest tensor that appears while a branch is added is one chunk."""

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            for x in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in known:
                    self.numbers = max(self.numbers, x.numel())
            return result

    image = ndgpa.Image((512, 512), 4)
    out, gate = torch.randn(2, 1, 4, 1 << 18, 4)
    out, gate = out[:1].clone(), gate[:1]
    branch = torch.randn(1, 4, image.num_blocks, 4)
    _ = image.block_of_site
    known = {out.untyped_storage().data_ptr(), gate.untyped_storage().data_ptr()}
    known.add(image.block_of_site.untyped_storage().data_ptr())
    with Largest() as seen:
        result = add_by_block(out, branch, image, gate)
    assert result.data_ptr() == out.data_ptr()
    assert 0 < seen.numbers <= 1 << 20 < out.numel()


def test_a_causal_branch_sees_wholly_past_blocks() -> None:
    video = ndgpa.Video((3, 4, 4), (1, 2, 2))
    x = torch.randn(1, 2, 48, 4, dtype=torch.float64)
    operator = ndgpa.GPA(2, causal=True, coarse="add")
    changed = x.clone()
    changed[:, :, 32:] = 7.0
    before, after = (operator(y, y, y, video)[:, :, :32] for y in (x, changed))
    assert torch.equal(before, after)
    with pytest.raises(ValueError, match="query blocks within one time"):
        operator(x, x, x, ndgpa.Sequence(48, 4))


@pytest.mark.bad_input
def test_gates_are_checked() -> None:
    x, image = torch.randn(1, 1, 16, 2), ndgpa.Image((4, 4), 2)
    with pytest.raises(TypeError, match="needs a gate tensor"):
        ndgpa.GPA(2, coarse="gate")(x, x, x, image)
    with pytest.raises(ValueError, match="a gate needs coarse='gate'"):
        ndgpa.GPA(2)(x, x, x, image, gate=x)
    with pytest.raises((ValueError, TypeError), match="gate must have shape"):
        ndgpa.GPA(2, coarse="gate")(x, x, x, image, gate=x[:, :, :3])
    with pytest.raises(ValueError, match="unknown coarse 'mean'"):
        ndgpa.GPA(2, coarse="mean")


@given(draw.structures(), st.integers(1, 3))
def test_strided_blocks_are_part_of_the_blocks(structure: Any, step: int) -> None:
    for some, whole in zip(
        rows(ndgpa.structures.Strided(step).sites(structure)), rows(structure.blocks)
    ):
        assert some
        assert set(some) <= set(whole)


def test_strides_count_along_every_axis() -> None:
    sites = ndgpa.structures.Strided(2).sites(ndgpa.Image((4, 8), 4))
    assert sites.tolist() == [[0, 2, 16, 18], [4, 6, 20, 22]]


@given(draw.structures(), st.integers(1, 4))
def test_jittered_blocks_have_so_many_sites(structure: Any, count: int) -> None:
    tables = [rows(ndgpa.structures.Jittered(count, seed).sites(structure)) for seed in (0, 0, 1)]
    assert tables[0] == tables[1]
    for some, whole in zip(tables[2], rows(structure.blocks)):
        assert len(set(some)) == min(count, len(whole))
        assert set(some) <= set(whole)


@given(draw.grids(), st.integers(0, 2))
def test_a_halo_is_the_sites_near_a_block(grid: ndgpa.Grid, reach: int) -> None:
    at = np.stack(np.unravel_index(range(grid.num_sites), grid.shape), -1)
    for halo, own in zip(rows(ndgpa.structures.Halo(reach).sites(grid)), rows(grid.blocks)):
        apart = np.abs(at[:, None] - at[own]).min(axis=1)
        assert sorted(halo) == (apart <= reach).all(axis=1).nonzero()[0].tolist()


@given(st.data())
def test_sampled_blocks_are_attended_to(data: Any) -> None:
    """Every block selected, strided: full attention to every other site."""
    problem = data.draw(draw.problems(masked=False))
    read = data.draw(st.sampled_from([ndgpa.structures.Strided(2), ndgpa.structures.Jittered(2)]))
    out = ndgpa.GPA(999, problem.scale, problem.affinity, read=read)(
        *problem.inputs, problem.structure, problem.key_structure
    )
    sites = read.sites(problem.key_structure)
    some = torch.zeros(problem.key.shape[2], dtype=torch.bool)
    some[sites[sites >= 0]] = True
    full = ndgpa.Full(problem.scale, problem.affinity)
    expected = full(
        *problem.inputs,
        problem.structure,
        problem.key_structure,
        key_mask=some.expand(len(problem.key), -1),
    )
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.bad_input
@pytest.mark.parametrize("place", ["structure", "key_structure"])
def test_a_sampling_is_no_structure(place: str) -> None:
    x, read = torch.randn(1, 1, 16, 2), ndgpa.structures.Strided(2)
    given: dict[str, Any] = {"structure": ndgpa.Image((4, 4), 2), place: read}
    with pytest.raises(
        TypeError, match=rf"^{place} must be .*; got the sampling .*, and read=Strided\(step=2\)$"
    ):
        ndgpa.gpa(x, x, x, rule=1, **given)


@pytest.mark.bad_input
def test_a_structure_is_no_sampling() -> None:
    x, image = torch.randn(1, 1, 16, 2), ndgpa.Image((4, 4), 2)
    read: Any = image
    with pytest.raises(TypeError, match=r"read must be a sampling, .*; got Grid\("):
        ndgpa.gpa(x, x, x, image, 1, read=read)


def test_what_is_read_does_not_change_what_is_selected() -> None:
    x, image, read = torch.randn(1, 2, 64, 4), ndgpa.Image((8, 8), 4), ndgpa.structures.Strided(2)
    selection = ndgpa.select(x, x, image, 2)
    expected = ndgpa.attend(x, x, x, selection, image, read=read)
    assert torch.equal(ndgpa.gpa(x, x, x, image, 2, read=read), expected)
    assert torch.equal(ndgpa.GPA(2, read=read)(x, x, x, image), expected)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_a_sampling_by_hand(backend: str) -> None:
    """Two blocks of two sites, every second site read: the first of each."""
    sequence, value = ndgpa.Sequence(4, 2), torch.tensor([1.0, 10.0, 3.0, 100.0]).view(1, 1, 4, 1)
    zeros, both = torch.zeros(1, 1, 4, 1), ndgpa.Fixed((0, 1))
    read = ndgpa.structures.Strided(2)
    out = ndgpa.gpa(zeros, zeros, value, sequence, both, read=read, backend=backend)
    assert out.flatten().tolist() == [2.0] * 4


def test_a_halo_needs_a_grid() -> None:
    x = torch.randn(1, 1, 4, 1)
    clusters = ndgpa.Clusters(torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0]))
    with pytest.raises(NotImplementedError, match="does not know which blocks are near"):
        ndgpa.GPA(1, read=ndgpa.structures.Halo(1))(x, x, x, clusters)

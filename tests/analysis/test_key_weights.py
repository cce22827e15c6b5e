"""The keys of chosen queries and their weights."""

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

import ndgpa
from ndgpa.analysis import key_weights
from ndgpa.testing.draw import Problem, problems, selections


def weights_of(
    problem: Problem, selection: ndgpa.Selection, sites: Tensor, causal: bool = False
) -> tuple[Tensor, Tensor]:
    return key_weights(
        problem.query,
        problem.key,
        selection,
        problem.structure,
        sites,
        causal=causal,
        **problem.options,
    )


@pytest.mark.parametrize("causal", [False, True])
@given(data=st.data())
def test_the_weighted_values_are_the_output_of_attend(causal: bool, data: st.DataObject) -> None:
    problem = data.draw(problems(time=True if causal else None))
    selection = data.draw(selections(problem))
    sites = torch.arange(problem.structure.num_sites)
    keys, weights = weights_of(problem, selection, sites, causal)
    groups = problem.query.shape[1] // problem.key.shape[1]
    value = problem.value.repeat_interleave(groups, dim=1)
    index = keys.clamp(min=0)[..., None].expand(-1, -1, -1, -1, value.shape[-1])
    taken = value[:, :, None].expand(-1, -1, len(sites), -1, -1).gather(3, index)
    out = (weights[..., None] * taken).sum(dim=3)
    expected = ndgpa.attend(
        *problem.inputs, selection, problem.structure, causal=causal, **problem.options
    )
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)


@given(problems(), st.data())
def test_weights_sum_to_one_and_sites_are_valid(problem: Problem, data: st.DataObject) -> None:
    selection = data.draw(selections(problem))
    sites = torch.randint(0, problem.structure.num_sites, (3,))
    keys, weights = weights_of(problem, selection, sites)
    assert (keys >= -1).all()
    assert (keys < problem.key_structure.num_sites).all()
    assert (weights[keys < 0] == 0).all()
    sees = (keys >= 0).any(dim=-1)
    torch.testing.assert_close(weights.sum(dim=-1), sees.to(weights.dtype))
    if problem.key_mask is not None:
        for b, mask in enumerate(problem.key_mask):
            assert mask[keys[b][keys[b] >= 0]].all()


def test_a_query_that_equals_one_key_reads_that_key() -> None:
    structure = ndgpa.Image((8, 8), 2)
    query = 9 * torch.eye(64)[None, None]
    selection = ndgpa.select(query, query, structure, 3, scale=1.0)
    sites = torch.tensor([0, 27, 63])
    keys, weights = key_weights(query, query, selection, structure, sites, scale=1.0)
    strongest = keys.gather(-1, weights.argmax(dim=-1, keepdim=True))[0, 0, :, 0]
    assert strongest.tolist() == [0, 27, 63]
    assert weights.amax(dim=-1).min() > 0.99


@pytest.mark.bad_input
def test_bad_sites_are_refused() -> None:
    structure = ndgpa.Sequence(8, 2)
    query = torch.zeros(1, 1, 8, 2)
    selection = ndgpa.select(query, query, structure, 2)
    with pytest.raises(ValueError, match="sites must be between 0 and 7; got 0 to 8"):
        key_weights(query, query, selection, structure, torch.tensor([0, 8]))
    with pytest.raises(TypeError, match="sites must have an integer dtype"):
        key_weights(query, query, selection, structure, query[0, 0, :, 0].bool())

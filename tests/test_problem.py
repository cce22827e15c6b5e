"""A call or a selection that does not fit is refused in one sentence, before any work."""

from typing import Any

import pytest
import torch

import ndgpa

pytestmark = pytest.mark.bad_input

SEQUENCE = ndgpa.Sequence(12, 3)


def features(*shape: int, **options: Any) -> torch.Tensor:
    return torch.randn(shape or (1, 2, 12, 4), **options)


CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"query": features(1, 2, 11, 4)}, ValueError, "query has 11 sites but structure has 12"),
    (
        {"key": features(1, 2, 9, 4), "value": features(1, 2, 9, 4)},
        ValueError,
        "key has 9 sites but key_structure has 12",
    ),
    (
        {"query": features(2, 12, 4)},
        ValueError,
        r"query must have shape \(batch, heads, sites, features\); got \(2, 12, 4\)$",
    ),
    (
        {"query": features(1, 12, 2, 4)},
        ValueError,
        r"query has 2 sites but structure has 12; if its axes are \(batch, sites, heads, features"
        r"\), use query.transpose\(1, 2\)",
    ),
    (
        {"key": features(1, 12, 2, 4)},
        ValueError,
        r"key has 2 sites but key_structure has 12; .* use key.transpose\(1, 2\)",
    ),
    (
        {"query": features(1, 2, 3, 4, 4)},
        ValueError,
        r"got \(1, 2, 3, 4, 4\); flatten the grid with query.flatten\(2, -2\)",
    ),
    (
        {"query": features().to(torch.float8_e4m3fn)},
        TypeError,
        r"query is torch.float8_e4m3fn, but attention needs at least 16 bits: use query.to\(torch",
    ),
    ({"query": None}, TypeError, "query must be a tensor; got NoneType"),
    (
        {"key": torch.ones(1, 2, 12, 4, dtype=torch.int64)},
        TypeError,
        "key must have a floating-point dtype; got torch.int64",
    ),
    (
        {"query": features(1, 3, 12, 4)},
        ValueError,
        "query has 3 heads, which is not a multiple of key's 2",
    ),
    ({"key": features(1, 2, 12, 3)}, ValueError, "query has 4 features per head but key has 3"),
    ({"value": features(1, 1, 12, 4)}, ValueError, "value has 1 heads and 12 sites but key has 2"),
    ({"query": features(2, 2, 12, 4)}, ValueError, "query has a batch of 2 but key has 1"),
    (
        {"query": features(dtype=torch.float64)},
        ValueError,
        "query is torch.float64 but key is torch.float32",
    ),
    (
        {"value": features(dtype=torch.float64)},
        ValueError,
        "key is torch.float32 but value is torch.float64",
    ),
    ({"query": features(device="meta")}, ValueError, "query is on meta but key is on cpu"),
    ({"structure": (12,)}, TypeError, "structure must be a SpatialStructure; got tuple"),
    (
        {"structure": ndgpa.structures.Strided(2)},
        TypeError,
        r"structure must be a SpatialStructure; got the sampling Strided\(step=2\): pass",
    ),
    ({"rule": 0}, ValueError, "k must be at least 1; got 0"),
    ({"rule": "top"}, TypeError, "rule must be a Rule or an int; got str"),
    ({"scale": float("nan")}, ValueError, "scale must be finite; got nan"),
    ({"scale": torch.tensor(0.5)}, TypeError, "scale must be a number; got Tensor"),
    ({"scale": "x"}, TypeError, "scale must be a number; got str"),
    (
        {"affinity": "cosine"},
        ValueError,
        "unknown affinity 'cosine'; expected one of 'dot', 'euclidean'",
    ),
    (
        {"backend": "cuda"},
        ValueError,
        "unknown backend 'cuda'; expected one of 'reference', 'torch'",
    ),
    (
        {"key_mask": torch.ones(1, 11, dtype=torch.bool)},
        ValueError,
        r"key_mask must have shape \(batch, sites\) = \(1, 12\); got \(1, 11\)",
    ),
    (
        {"key_mask": torch.ones(1, 12)},
        TypeError,
        "key_mask must be a bool tensor, True where a key is seen; got torch.float32",
    ),
    (
        {"key_mask": torch.ones(1, 12, dtype=torch.bool, device="meta")},
        ValueError,
        "key_mask is on meta but key is on cpu",
    ),
    (
        {"structure": ndgpa.Image((3, 4), 2), "causal": True},
        ValueError,
        "causal=True needs structures with time; structure has none",
    ),
]


class Untouched(ndgpa.TopK):
    """A rule that must not be asked."""

    def select(self, problem: Any) -> Any:
        raise AssertionError("Phase 1 ran before the arguments were checked")


@pytest.mark.parametrize(("wrong", "error", "words"), CALLS)
def test_arguments_that_do_not_fit_are_refused(
    wrong: dict[str, Any], error: type[Exception], words: str
) -> None:
    arguments = {
        "query": features(),
        "key": features(),
        "value": features(),
        "structure": SEQUENCE,
        "rule": Untouched(2),
    }
    with pytest.raises(error, match=words):
        ndgpa.gpa(**{**arguments, **wrong})


SELECTIONS: list[tuple[Any, type[Exception], str]] = [
    (
        lambda: ndgpa.Selection(torch.zeros(1, 1, 4, 2)),
        TypeError,
        "blocks must be an int32 or int64 tensor; got torch.float32",
    ),
    (
        lambda: ndgpa.Selection(torch.zeros(4, 2, dtype=torch.int32)),
        ValueError,
        r"blocks must have shape \(batch, heads, cells, width\); got \(4, 2\)",
    ),
    (
        lambda: ndgpa.Selection(torch.zeros(1, 1, 4, 2, dtype=torch.int32), torch.zeros(1)),
        ValueError,
        r"bias has shape \(1,\) but blocks has \(1, 1, 4, 2\)",
    ),
    (
        lambda: ndgpa.Selection(
            torch.zeros(1, 1, 4, 2, dtype=torch.int32), torch.zeros(1, 1, 4, 2).long()
        ),
        TypeError,
        "bias must be a floating tensor",
    ),
]


@pytest.mark.parametrize(("build", "error", "words"), SELECTIONS)
def test_what_is_no_selection_is_refused(build: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        build()


OTHERS: list[tuple[tuple[int, ...], str]] = [
    ((2, 1, 4, 1), "selection has a batch of 2 but query has 1"),
    ((1, 3, 4, 1), r"selection has 3 heads; expected 1, 1 \(key\) or 2 \(query\)"),
    ((1, 1, 5, 1), "selection has 5 cells but structure has 4"),
]


@pytest.mark.parametrize(("shape", "words"), OTHERS)
def test_a_selection_for_another_problem_is_refused(shape: tuple[int, ...], words: str) -> None:
    selection = ndgpa.Selection(torch.zeros(shape, dtype=torch.int32))
    key = features(1, 1, 12, 4)
    with pytest.raises(ValueError, match=words):
        ndgpa.attend(features(), key, key, selection, SEQUENCE)


def test_a_table_of_blocks_is_no_selection() -> None:
    blocks = torch.zeros(1, 1, 4, 1, dtype=torch.int32)
    with pytest.raises(TypeError, match="selection must be a Selection; got Tensor"):
        ndgpa.attend(features(), features(), features(), blocks, SEQUENCE)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_a_block_that_does_not_exist_is_refused(backend: str) -> None:
    selection = ndgpa.Selection(torch.full((1, 1, 4, 1), 4, dtype=torch.int32))
    with pytest.raises(ValueError, match="selection names block 4 but key_structure has 4 blocks"):
        ndgpa.attend(features(), features(), features(), selection, SEQUENCE, backend=backend)

"""Bad input: one clear sentence, before any work. Each is tested by its words."""

import functools
import re
from typing import Any

import pytest
import torch

import ndgpa

pytestmark = pytest.mark.bad_input

SEQUENCE = ndgpa.Sequence(12, 3)


def features(*shape: int, **options: Any) -> torch.Tensor:
    return torch.randn(shape or (1, 2, 12, 4), **options)


GRIDS: list[tuple[Any, type[Exception], str]] = [
    (lambda: ndgpa.Grid((), 1), ValueError, "shape has no axes; a grid needs at least one"),
    (lambda: ndgpa.Grid((4, 0), 1), ValueError, "shape .4, 0. has an empty axis"),
    (lambda: ndgpa.Image((4, 4), 0), ValueError, "block must be at least 1; got 0 for axis 0"),
    (
        lambda: ndgpa.Image((4, 4), (2, 5)),
        ValueError,
        "block 5 is larger than axis 1, which has 4 sites",
    ),
    (lambda: ndgpa.Image((4, 4), 2, -1), ValueError, "cell must be at least 1; got -1 for axis 0"),
    (
        lambda: ndgpa.Image((8, 4), 2, 3),
        ValueError,
        "cell 3 is larger than axis 1, which has 2 blocks",
    ),
    (
        lambda: ndgpa.Video((4, 4, 4), (2, 2)),
        ValueError,
        "block has 2 entries but the grid has 3 axes",
    ),
    (
        lambda: ndgpa.Image((4, 4, 4), 2),
        ValueError,
        r"Image expects a shape \(height, width\); got \(4, 4, 4\)",
    ),
    (
        lambda: ndgpa.Grid((4,), 2, time_axis=1),
        ValueError,
        "time_axis 1 is not an axis of a grid of rank 1",
    ),
    (
        lambda: ndgpa.Image((4.0, 4), 2),
        TypeError,
        r"shape must be an int or a tuple of ints; got \(4.0, 4\)",
    ),
    (lambda: ndgpa.Sequence(4, True), TypeError, "block must be an int or a tuple of ints"),
    (
        lambda: ndgpa.Image((8, 8), 2.0),
        TypeError,
        r"block must be an int or a tuple of ints; got 2\.0",
    ),
    (
        lambda: ndgpa.Sequence((100,), 4),
        TypeError,
        r"length of a Sequence must be an int; got \(100,\): for several axes, use Grid",
    ),
    (lambda: ndgpa.Sequence(0, 1), ValueError, r"shape \(0,\) has an empty axis"),
    (lambda: ndgpa.Grid(8.0, 2), TypeError, r"shape must be an int or a tuple of ints; got 8\.0"),
    (
        lambda: ndgpa.operators.Neighborhood(7.0),
        TypeError,
        r"kernel must be an int or a tuple of ints; got 7\.0",
    ),
    (
        lambda: ndgpa.operators.MultiAxis(2.5),
        TypeError,
        r"block must be an int or a tuple of ints; got 2\.5",
    ),
    (
        lambda: ndgpa.Clusters(torch.arange(4), torch.arange(4)).coarsen([2, 2]),
        ValueError,
        r"factor must be one int of at least 1 for a structure that is not a Grid; got \[2, 2\]",
    ),
    (
        lambda: ndgpa.Clusters(torch.tensor([]).long(), torch.tensor([0])),
        ValueError,
        "block_of_site is empty; a structure needs at least one site",
    ),
    (
        lambda: ndgpa.Clusters(torch.tensor([0, 2]), torch.tensor([0, 0, 0])),
        ValueError,
        "block_of_site must use the numbers 0, 1, 2, ... without gaps",
    ),
    (
        lambda: ndgpa.Clusters(torch.tensor([0, 1]), torch.tensor([0])),
        ValueError,
        "cell_of_block has 1 entries but block_of_site names 2 blocks",
    ),
    (
        lambda: ndgpa.Clusters(torch.tensor([0.0, 1.0]), torch.tensor([0, 0])),
        TypeError,
        "block_of_site must have an integer dtype; got torch.float32",
    ),
    (
        lambda: ndgpa.Clusters([0, 1], torch.tensor([0, 0])),
        TypeError,
        "block_of_site must be a tensor; got list",
    ),
    (
        lambda: ndgpa.Clusters(torch.zeros(1, 2).long(), torch.tensor([0])),
        ValueError,
        r"block_of_site must have one axis; got shape \(1, 2\)",
    ),
    (
        lambda: ndgpa.Clusters(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([1])),
        ValueError,
        "time has 1 entries but there are 2 sites",
    ),
    (
        lambda: ndgpa.Clusters(
            torch.tensor([0, 1]), torch.tensor([0, 0]), group=torch.tensor([0, 1])
        ),
        ValueError,
        "a cell has blocks of different groups; it must lie within one group",
    ),
    (
        lambda: ndgpa.Clusters(
            torch.tensor([0, 1]), torch.tensor([0, 0]), torch.zeros(2, dtype=torch.int64).to("meta")
        ),
        ValueError,
        "time and group must be on one device; got cpu, cpu, meta",
    ),
    (
        lambda: ndgpa.Clusters(torch.tensor([0, 1]), torch.tensor([0, 0])).coarsen(0),
        ValueError,
        "factor must be one int of at least 1 for a structure that is not a Grid; got 0",
    ),
]


@pytest.mark.parametrize(("build", "error", "words"), GRIDS)
def test_a_space_that_is_none_is_refused(build: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        build()


RULES: list[tuple[Any, type[Exception], str]] = [
    (lambda: ndgpa.TopK(0), ValueError, "k must be at least 1; got 0"),
    (lambda: ndgpa.TopK(2.5), TypeError, "k must be an int; got 2.5"),
    (
        lambda: ndgpa.TopK(2, relevance="best"),
        ValueError,
        "unknown relevance 'best'; expected one of 'mass', 'logit'",
    ),
    (
        lambda: ndgpa.TopK(2, share="none"),
        ValueError,
        "unknown share 'none'; expected one of 'head', 'group', 'all'",
    ),
    (
        lambda: ndgpa.MultiLevel((2, 2), factor=[2, 2]),
        TypeError,
        r"factor must be an int or a tuple of ints; got \[2, 2\]",
    ),
    (lambda: ndgpa.MultiLevel((2, 2), (2, 0)), ValueError, "factor must be at least 1"),
    *(
        (
            lambda force=force, rule=rule: rule(force=force),
            TypeError,
            r"force must be a rule, such as Own\(\) or Fixed\(\(0,\)\) \| Window\(1\); got "
            + re.escape(repr(force)),
        )
        for force in ("own", 0, (0, "own"), ())
        for rule in (
            functools.partial(ndgpa.TopK, 2),
            functools.partial(ndgpa.TopP, 0.5),
            functools.partial(ndgpa.TopRatio, 0.5),
            functools.partial(ndgpa.MultiLevel, (2, 2)),
        )
    ),
    (
        lambda: ndgpa.select(
            features(), features(), SEQUENCE, ndgpa.TopK(2, force=ndgpa.Fixed((4,)))
        ),
        ValueError,
        "Fixed names block 4 but key_structure has 4 blocks",
    ),
    (
        lambda: ndgpa.select(
            features(),
            features(1, 2, 10, 4),
            SEQUENCE,
            ndgpa.TopK(2, force=ndgpa.Own()),
            key_structure=ndgpa.Sequence(10, 2),
        ),
        ValueError,
        "own blocks need queries and keys on the same sites; structure has 12 sites but key_str",
    ),
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


@pytest.mark.parametrize(("build", "error", "words"), RULES)
def test_a_rule_or_selection_that_is_none_is_refused(
    build: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        build()


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
        {"structure": ndgpa.structures.Strided(2)(SEQUENCE)},
        TypeError,
        "a sampled structure can only be passed as key_structure",
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


SELECTIONS: list[tuple[tuple[int, ...], str]] = [
    ((2, 1, 4, 1), "selection has a batch of 2 but query has 1"),
    ((1, 3, 4, 1), r"selection has 3 heads; expected 1, 1 \(key\) or 2 \(query\)"),
    ((1, 1, 5, 1), "selection has 5 cells but structure has 4"),
]


@pytest.mark.parametrize(("shape", "words"), SELECTIONS)
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

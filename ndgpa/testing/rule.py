"""What every rule must satisfy."""

from typing import Any

import torch
from hypothesis import strategies as st

import ndgpa
from ndgpa.selection import Rule
from ndgpa.testing import draw
from ndgpa.testing.oracle import rows


class RuleContract:
    """Tests of a `Rule`: which selections it may answer with, and what they may depend on.

    Inherit it and override `rules`. A rule that can be called with `causal=True` keeps
    `CausalContract` too.
    """

    def rules(self, problem: draw.Problem) -> st.SearchStrategy[Rule]:
        """Draw rules that can answer this problem: with numbers of blocks that exist, say."""
        raise NotImplementedError

    def problems(self, **options: Any) -> st.SearchStrategy[draw.Problem]:
        """Draw problems; override it for a rule that cannot answer all that `draw.problems` has.

        For example `return draw.problems(same=True, **options)` where queries and keys have to be
        on one structure.
        """
        return draw.problems(**options)

    @draw.data
    def test_slots_hold_existing_blocks_once_each(self, data: Any) -> None:
        problem, selection = _answer(self, data)
        batch, heads, cells, _ = selection.blocks.shape
        assert selection.blocks.dtype == torch.int32
        if selection.full:
            assert (selection.blocks >= 0).all()
        assert batch == problem.query.shape[0]
        assert heads in (1, problem.key.shape[1], problem.query.shape[1])
        assert cells == problem.structure.num_cells
        for row in rows(selection.blocks.flatten(0, 2)):
            assert len(set(row)) == len(row)
            assert all(0 <= block < problem.key_structure.num_blocks for block in row)

    @draw.data
    def test_batches_do_not_see_each_other(self, data: Any) -> None:
        problem = data.draw(self.problems())
        rule = data.draw(self.rules(problem))
        whole = _select(problem, rule).blocks
        for b in range(problem.query.shape[0]):
            alone = ndgpa.select(
                problem.query[b, None],
                problem.key[b, None],
                problem.structure,
                rule,
                **{
                    **problem.options,
                    "key_mask": None if problem.key_mask is None else problem.key_mask[b, None],
                },
            )
            assert torch.equal(alone.blocks[0], whole[b])

    @draw.data
    def test_a_batch_of_none_has_a_selection_of_none(self, data: Any) -> None:
        problem = data.draw(self.problems())
        rule = data.draw(self.rules(problem))
        mask = None if problem.key_mask is None else problem.key_mask[:0]
        options = {**problem.options, "key_mask": mask}
        given = (problem.query[:0], problem.key[:0], problem.structure)
        blocks = ndgpa.select(*given, rule, **options).blocks
        assert blocks.shape == (0, *_select(problem, rule).blocks.shape[1:])

    @draw.data
    def test_masked_keys_do_not_exist(self, data: Any) -> None:
        problem = data.draw(self.problems(masked=True))
        rule = data.draw(self.rules(problem))
        assert problem.key_mask is not None
        poisoned = problem.key.masked_fill(~problem.key_mask[:, None, :, None], torch.nan)
        clean, dirty = (
            _select(problem.with_inputs(problem.query, key, problem.value), rule)
            for key in (problem.key, poisoned)
        )
        assert torch.equal(clean.blocks, dirty.blocks)

    @draw.data
    def test_the_same_question_has_the_same_answer(self, data: Any) -> None:
        problem = data.draw(self.problems(dtype=torch.float32))
        rule = data.draw(self.rules(problem))
        assert torch.equal(_select(problem, rule).blocks, _select(problem, rule).blocks)

    def asked_by(self, problem: draw.Problem, cell: int) -> list[int]:
        """List the cells whose selection may depend on the queries of a cell: itself alone.

        Override it for a rule in which cells ask one another.
        """
        return [cell]

    @draw.data
    def test_a_query_with_nan_changes_its_own_cell_only(self, data: Any) -> None:
        problem = data.draw(self.problems())
        rule = data.draw(self.rules(problem))
        site = data.draw(st.integers(0, problem.structure.num_sites - 1))
        query = problem.query.clone()
        query[0, :, site] = data.draw(st.sampled_from([torch.nan, torch.inf]))
        before = _select(problem, rule).blocks
        after = _select(problem.with_inputs(query, problem.key, problem.value), rule).blocks
        others = torch.ones(problem.structure.num_cells, dtype=torch.bool)
        others[self.asked_by(problem, int(problem.structure.cell_of_site[site]))] = False
        assert torch.equal(before[:, :, others], after[:, :, others])


def _answer(contract: RuleContract, data: Any) -> tuple[draw.Problem, ndgpa.Selection]:
    problem = data.draw(contract.problems())
    return problem, _select(problem, data.draw(contract.rules(problem)))


def _select(problem: draw.Problem, rule: Rule) -> ndgpa.Selection:
    return ndgpa.select(problem.query, problem.key, problem.structure, rule, **problem.options)

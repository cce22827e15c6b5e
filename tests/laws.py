"""What holds for every problem of `tests/problems`, whatever the backend."""

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import ndgpa
from tests.literal import phase_2
from tests.literal.answers import Answer
from tests.literal.phase_1 import Phase1
from tests.problems import Given, Problem

NAMES = ("output", "log-sum-exp", "query", "key", "value", "slot bias")
# Second derivatives by loops are slow; these suffice, and are of every kind.
FEW_SITES = 24


Law = Callable[[Problem, Sequence[str]], None]


def check(problem: Problem, backends: Sequence[str], laws: Sequence[Law] | None = None) -> None:
    """Every law that applies; an AssertionError of one line that says how to meet it again."""
    for law in LAWS if laws is None else laws:
        try:
            law(problem, backends)
        except Exception as error:
            what = " ".join(str(error).split())[:300]
            raise AssertionError(
                f"PROBLEMS_SEED={problem.seed} PROBLEMS=1: {law.__name__}: "
                f"{type(error).__name__}: {what} [{problem}]"
            ) from error


def select(problem: Problem, rule: ndgpa.selection.Rule | None = None) -> ndgpa.Selection:
    query, key, _ = problem.inputs
    rule = problem.rule if rule is None else rule
    return ndgpa.select(query, key, problem.structure, rule, **problem.options)


def gpa(problem: Problem, backend: str) -> Tensor:
    return ndgpa.gpa(
        *problem.inputs, problem.structure, problem.rule, backend=backend, **problem.reading
    )


# Phase 1


def selects_what_the_loops_select(problem: Problem, backends: Sequence[str]) -> None:
    if isinstance(problem.rule, ndgpa.PerHead):
        _selects_by_head(problem)
    elif isinstance(problem.rule, ndgpa.selection.Union):
        _selects_the_union(problem)
    else:
        _selects(problem, problem.rule, select(problem))


def _selects(problem: Problem, rule: ndgpa.selection.Rule, selection: ndgpa.Selection) -> None:
    if not isinstance(rule, Given):
        Answer(problem, Phase1(problem), selection).check(rule)


def _selects_by_head(problem: Problem) -> None:
    """Row h is what the h-th rule selects for all heads, of which it is the h-th row."""
    blocks = select(problem).blocks
    for h, rule in enumerate(problem.rule.rules):
        alone = select(problem, rule).blocks
        _selects(problem, rule, ndgpa.Selection(alone))
        for mine, theirs in zip(_sets(blocks[:, h]), _sets(alone[:, h]), strict=True):
            assert mine == theirs, f"head {h} reads {mine} instead of {theirs}"


def _selects_the_union(problem: Problem) -> None:
    """Each block that a part names, once, with the bias of the first part that names it."""
    whole, parts = select(problem), [select(problem, rule) for rule in problem.rule.rules]
    for rule, part in zip(problem.rule.rules, parts):
        _selects(problem, rule, part)
    for b, t, cell in torch.cartesian_prod(*(torch.arange(n) for n in whole.blocks.shape[:3])):
        wanted: dict[int, float] = {}
        for part in parts:
            own = t * part.blocks.shape[1] // whole.blocks.shape[1]
            for j, bias in _slots(part, b, own, cell):
                wanted.setdefault(j, bias)
        found = list(_slots(whole, b, t, cell))
        assert len(dict(found)) == len(found), f"a block twice: {found}"
        assert dict(found) == wanted, f"reads {dict(found)} instead of {wanted}"


def _slots(selection: ndgpa.Selection, b: int, t: int, cell: int) -> list[tuple[int, float]]:
    blocks = selection.blocks[b, t, cell].tolist()
    bias = [0.0] * len(blocks)
    if selection.bias is not None:
        bias = selection.bias[b, t, cell].tolist()
    return [(j, x) for j, x in zip(blocks, bias) if j >= 0]


def _sets(blocks: Tensor) -> list[set[int]]:
    return [{j for j in row if j >= 0} for row in blocks.flatten(0, 1).tolist()]


# Phase 2


Attend = Callable[..., tuple[Tensor, Tensor]]


def attends_as_the_loops_do(problem: Problem, backends: Sequence[str]) -> None:
    """Output, log-sum-exp and gradients, at most twice and three times as wrong as plain torch."""
    twice = problem.structure.num_sites <= FEW_SITES
    twice = twice and problem.query.dtype in (torch.float64, torch.float32)
    selection = _detached(select(problem))
    exact = _derivatives(problem, selection, _loops, torch.float64, twice)
    plain = _derivatives(problem, selection, _loops, problem.query.dtype, twice)
    for backend in backends:
        ours = _derivatives(problem, selection, _library(backend), problem.query.dtype, twice)
        for name, x, truth, other in zip(_names(selection, twice), ours, exact, plain, strict=True):
            _within_budget(problem, f"{backend}, {name}", x, truth, other)


def _names(selection: ndgpa.Selection, twice: bool) -> list[str]:
    leaves = NAMES[2:] if selection.bias is not None else NAMES[2:5]
    names = [*NAMES[:2], *(f"gradient of {x}" for x in leaves)]
    return [*names, *(f"second derivative of {x}" for x in leaves)] if twice else names


def _detached(selection: ndgpa.Selection) -> ndgpa.Selection:
    bias = None if selection.bias is None else selection.bias.detach()
    return ndgpa.Selection(selection.blocks, bias)


def _loops(problem: Problem, selection: ndgpa.Selection, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    return phase_2.attend(*inputs, selection.blocks, selection.bias, problem)


def _library(backend: str) -> Attend:
    def attend(
        problem: Problem, selection: ndgpa.Selection, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        options = problem.reading | {"backend": backend, "return_lse": True}
        return ndgpa.attend(*inputs, selection, problem.structure, **options)

    return attend


def _derivatives(
    problem: Problem,
    selection: ndgpa.Selection,
    attend: Attend,
    dtype: torch.dtype,
    twice: bool,
) -> list[Tensor]:
    """Output, log-sum-exp, gradients of a fixed functional of both, and gradients of those."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in problem.inputs]
    if selection.bias is not None:
        wide = torch.promote_types(dtype, torch.float32)
        leaves.append(selection.bias.detach().to(wide).requires_grad_())
    selection = ndgpa.Selection(selection.blocks, leaves[3] if len(leaves) > 3 else None)
    out, lse = attend(problem, selection, *leaves[:3])
    sees = lse.masked_fill(lse.detach() == -torch.inf, 0)
    total = (out * _ramp(out)).sum() + (sees * _ramp(sees)).sum()
    if not total.requires_grad:  # nobody sees anything
        total = total + sum(0 * x.sum() for x in leaves)
    grads = torch.autograd.grad(total, leaves, create_graph=twice, **_ZEROS)
    found = [out, lse, *grads]
    if twice:
        bend = sum((g * _ramp(g)).sum() for g in grads) + 0 * sum(x.sum() for x in leaves)
        found += torch.autograd.grad(bend, leaves, **_ZEROS)
    return [x.detach() for x in found]


_ZEROS = {"allow_unused": True, "materialize_grads": True}


def _ramp(x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, max(1, x.numel()), dtype=x.dtype)[: x.numel()].view(x.shape)


def _within_budget(problem: Problem, what: str, x: Tensor, exact: Tensor, plain: Tensor) -> None:
    """STYLE.md: twice the error of the plain computation in that dtype, thrice for gradients.

    A problem of few rows may meet a plain computation that happens to be exact: one rounding of the
    result, and of the largest logit and the terms that cancel in a gradient, is allowed besides.
    """
    visible = exact.isfinite()
    assert torch.equal(x.isfinite(), visible), f"{what}: not finite where it should be"
    found, allowed = (_norm((y.double() - exact)[visible]) for y in (x, plain))
    order = 2 if "second" in what else int("gradient" in what)
    least = _rounding(problem) * (_norm(exact[visible]) + _size(problem) ** (2 * order))
    allowed = (3 if order else 2) * allowed + least
    assert not found > allowed, f"{what}: off by {found:.2g}, allowed {allowed:.2g}"


def _norm(x: Tensor) -> float:
    return float(x.norm())


def _rounding(problem: Problem) -> float:
    """One rounding of the result, and what rounding the largest logit does to it."""
    dtype = problem.query.dtype
    wide = torch.promote_types(dtype, torch.float32)
    many = 32 if dtype == wide else 1  # plain torch in float64 has no error to be measured by
    q, k = (x.double().norm(dim=-1).amax() for x in problem.inputs[:2])
    logit = abs(problem.logit_scale) * (q * k if problem.affinity == "dot" else (q + k) ** 2)
    logit = 1 + float(logit) + _largest_bias(problem)
    return torch.finfo(dtype).eps + many * logit * torch.finfo(wide).eps


def _largest_bias(problem: Problem) -> float:
    bias = select(problem).bias
    return 0.0 if bias is None or not bias.numel() else float(bias.detach().abs().max())


def _size(problem: Problem) -> float:
    """How large the terms of a derivative are."""
    return 1 + max(float(x.double().abs().max()) for x in problem.inputs)


# The same bits


def repeats_to_the_last_bit(problem: Problem, backends: Sequence[str]) -> None:
    for backend in backends:
        first, again = (_output_and_gradients(problem, backend) for _ in range(2))
        for name, a, b in zip(("output", *NAMES[2:]), first, again):
            assert torch.equal(a, b), f"{backend}, {name}: not the same bits again"


def _output_and_gradients(problem: Problem, backend: str) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in problem.inputs]
    out = gpa(problem.with_inputs(*leaves), backend)
    grads = torch.autograd.grad((out * _ramp(out)).sum(), leaves, **_ZEROS)
    return [out.detach(), *grads]


def never_reads_what_the_mask_hides(problem: Problem, backends: Sequence[str]) -> None:
    """Padding of NaN in keys and values, and in queries where they are the same sites."""
    if problem.key_mask is None:
        return
    hidden = ~problem.key_mask[:, None, :, None]
    query, key, value = problem.inputs
    key, value = key.masked_fill(hidden, torch.nan), value.masked_fill(hidden, torch.nan)
    real = torch.ones_like(query[:, :, :, 0], dtype=torch.bool)
    if problem.hides_queries:
        query = query.masked_fill(hidden, torch.nan)
        real = problem.key_mask[:, None].expand_as(real)
    for backend in backends:
        before = gpa(problem, backend)
        after = gpa(problem.with_inputs(query, key, value), backend)
        assert torch.equal(before[real], after[real]), f"{backend}: padding is read"


def never_looks_ahead(problem: Problem, backends: Sequence[str]) -> None:
    """Whatever stands in the future, finite or not, the past is the same to the last bit."""
    if not problem.causal:
        return
    draw = random.Random(problem.seed)
    now = draw.choice(sorted(set(problem.structure.time.tolist())))
    bad = draw.choice([torch.nan, torch.inf, -torch.inf, 1e3])
    later, key_later = problem.structure.time > now, problem.key_structure.time > now
    spoilt = problem.with_inputs(
        *(
            x.masked_fill(mask[:, None], bad)
            for x, mask in zip(problem.inputs, (later, key_later, key_later))
        )
    )
    for backend in backends:
        leaves = [x.clone().requires_grad_() for x in problem.inputs]
        before = gpa(problem.with_inputs(*leaves), backend)[:, :, ~later]
        after = gpa(spoilt, backend)[:, :, ~later]
        assert torch.equal(before, after), f"{backend}: {bad} after time {now} is seen before"
        grads = torch.autograd.grad(before.sum(), leaves, **_ZEROS)
        for name, grad, mask in zip(NAMES[2:], grads, (later, key_later, key_later)):
            assert not grad[:, :, mask].any(), f"{backend}: {name} after time {now} has a gradient"


OF_BACKENDS = (
    attends_as_the_loops_do,
    repeats_to_the_last_bit,
    never_reads_what_the_mask_hides,
    never_looks_ahead,
)
LAWS = (selects_what_the_loops_select, *OF_BACKENDS)

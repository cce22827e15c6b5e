"""Attention problems of every form that the kernels take, and two plain ways to solve them."""

import os
from dataclasses import dataclass, replace

import torch
from einops import repeat
from hypothesis import strategies as st
from torch import Tensor

from ndgpa import Clusters, Grid, Selection, SpatialStructure
from ndgpa.attention import BACKENDS

NAMES = ("out", "lse", "query", "key", "value", "slot bias", "key bias")


@dataclass(frozen=True, repr=False)
class Attention:
    """A problem in float64; `solve` rounds it to a dtype."""

    query: Tensor
    key: Tensor
    value: Tensor
    blocks: Tensor
    slot_bias: Tensor | None
    key_bias: Tensor | None
    structure: SpatialStructure
    key_structure: SpatialStructure
    causal: bool
    grad_out: Tensor
    grad_lse: Tensor
    key_sites: Tensor | None = None

    @property
    def full(self) -> bool:
        return not self.blocks.is_meta and bool((self.blocks >= 0).all())

    @property
    def scale(self) -> float:
        return self.query.shape[-1] ** -0.5

    def to(self, device: str) -> "Attention":
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, (Tensor, SpatialStructure))}
        return replace(self, **{k: v.to(device) for k, v in tensors.items()})

    def reading(self, key_sites: Tensor) -> "Attention":
        """The same with other sites read where a block is selected."""
        return replace(self, key_sites=key_sites)

    def rounded(self, dtype: torch.dtype) -> "Attention":
        """The same with features that the dtype holds exactly, and biases that float32 does."""
        features = {
            name: getattr(self, name).to(dtype).double()
            for name in ("query", "key", "value", "grad_out")
        }
        biases = {
            name: None if getattr(self, name) is None else getattr(self, name).float().double()
            for name in ("slot_bias", "key_bias", "grad_lse")
        }
        return replace(self, **features, **biases)

    def solve(self, backend, dtype: torch.dtype) -> dict[str, Tensor]:
        """Output, log-sum-exp and all gradients, by a backend's function."""
        wide = torch.promote_types(dtype, torch.float32)
        features = [x.to(dtype).requires_grad_() for x in (self.query, self.key, self.value)]
        biases = [
            None if x is None else x.to(wide).requires_grad_()
            for x in (self.slot_bias, self.key_bias)
        ]
        out, lse = backend(
            *features,
            Selection(self.blocks, biases[0], full=self.full),
            self.structure,
            self.key_structure,
            scale=self.scale,
            key_bias=biases[1],
            key_sites=self.key_sites,
            causal=self.causal,
        )
        wanted = [x for x in (*features, *biases) if x is not None]
        cotangents = self.grad_out.to(dtype), self.grad_lse.to(lse.dtype)
        grads = torch.autograd.grad((out, lse), wanted, cotangents)
        names = [n for n, x in zip(NAMES[2:], (*features, *biases)) if x is not None]
        return {"out": out.detach(), "lse": lse.detach(), **dict(zip(names, grads))}


def triton(*args, **options):
    return BACKENDS["triton"](*args, **options)


def reference(*args, **options):
    return BACKENDS["reference"](*args, **options)


def plain(
    query, key, value, selection, structure, key_structure, *, scale, key_bias, key_sites, causal
):
    """What one writes without a library: every product and every softmax in the dtype given."""
    heads = query.shape[1]

    def of_head(x):
        return x.repeat_interleave(heads // x.shape[1], dim=1)

    read = key_structure.blocks if key_sites is None else key_sites
    ids = of_head(selection.blocks)
    sites = read[ids.clamp(min=0).long()].masked_fill((ids < 0)[..., None], -1).flatten(3)
    batch = torch.arange(len(query), device=query.device)[:, None, None, None]
    head = torch.arange(heads, device=query.device)[:, None, None]

    def of_cell(x):
        return of_head(x)[batch, head, sites.clamp(min=0)]

    logits = structure.partition(query) @ of_cell(key).mT * scale
    bias = logits.new_zeros(sites.shape)
    if key_bias is not None:
        bias = bias + of_cell(key_bias)
    if selection.bias is not None:
        slot = of_head(selection.bias)
        bias = bias + repeat(slot, "b h c k -> b h c (k r)", r=read.shape[1])
    hidden = (sites < 0)[:, :, :, None]
    if causal:
        now = structure.time[structure.cell_sites.clamp(min=0)][:, :, None]
        hidden = hidden | (key_structure.time[sites.clamp(min=0)][:, :, :, None] > now)
    logits = (logits + bias[:, :, :, None].to(logits.dtype)).masked_fill(hidden, -torch.inf)
    masked = (logits == -torch.inf).all(dim=-1, keepdim=True)
    logits = logits.masked_fill(masked, 0)
    out = logits.softmax(dim=-1).masked_fill(masked, 0) @ of_cell(value)
    lse = logits.logsumexp(dim=-1, keepdim=True).masked_fill(masked, -torch.inf)
    return structure.compose(out), structure.compose(lse)[..., 0]


def error(x, exact):
    finite = exact.isfinite()
    assert torch.equal(x.isfinite(), finite)
    return (x.double() - exact)[finite].norm()


def within_budget(problem, dtype):
    """STYLE.md: twice the error of the plain computation in that dtype, thrice for gradients.

    A problem of few rows may meet a plain computation that happens to be exact (one key, one-hot
    weights): one rounding of the largest logit, or of the terms that cancel in a gradient, is
    allowed here. The test after this one pools many rows and allows nothing.
    """
    problem = problem.rounded(dtype)
    exact, ours = problem.solve(reference, torch.float64), problem.solve(triton, dtype)
    other = problem.solve(plain, dtype)
    finite = exact["lse"][exact["lse"].isfinite()].abs()
    logit = 1 + (finite.max() if len(finite) else 0)
    terms = (problem.grad_out.norm() + problem.grad_lse.norm()) * problem.value.abs().max()
    terms = terms * max(1.0, problem.query.abs().max() * problem.scale, problem.key.abs().max())
    for name, x in exact.items():
        times = 2 if name in ("out", "lse") else 3
        eps = torch.finfo(torch.float32 if name == "lse" else dtype).eps
        rounding = eps + logit * torch.finfo(torch.float32).eps
        least = rounding * (x[x.isfinite()].norm() if times == 2 else terms)
        budget = times * error(other[name], x) + least
        assert error(ours[name], x) <= budget, (name, error(ours[name], x), budget)


# A sweep draws problems of several tiles too.
SWEEP = os.environ.get("HYPOTHESIS_PROFILE") == "sweep"
MOST_SITES = 60 if SWEEP else 24
SHAPES = [(11,), (23,), (5, 4), (4, 4), (3, 2, 3), (1, 9)]
SHAPES += [(50,), (8, 9)] if SWEEP else []
LENGTHS = [1, 2, 3, 4, 12, 24] if SWEEP else [1, 2, 3, 4, 12]


@st.composite
def structures(draw, most: int = MOST_SITES) -> SpatialStructure:
    """Ragged grids of one to three axes, or random clusters; all with time."""
    if draw(st.booleans()):
        shape = draw(st.sampled_from(SHAPES))
        factors = [draw(st.integers(1, min(40 if SWEEP else 4, n))) for n in shape]
        blocks = [-(-n // d) for n, d in zip(shape, factors)]
        cells = [draw(st.integers(1, min(3, n))) for n in blocks]
        return Grid(shape, tuple(factors), tuple(cells), time_axis=0)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sites = draw(st.integers(1, most))
    block_of_site = _numbering(sites, draw(st.integers(1, sites)), generator)
    count = int(block_of_site.max()) + 1
    cell_of_block = _numbering(count, draw(st.integers(1, count)), generator)
    time = torch.randint(0, 5, (sites,), generator=generator)
    return Clusters(block_of_site, cell_of_block, time)


def _numbering(members: int, rows: int, generator: torch.Generator) -> Tensor:
    """Every row has a member, the rest fall anywhere."""
    rest = torch.randint(0, rows, (members - rows,), generator=generator)
    order = torch.randperm(members, generator=generator)
    return torch.cat([torch.arange(rows), rest])[order]


@st.composite
def problems(draw, scale: float = 1.0) -> Attention:
    structure = draw(structures())
    key_structure = structure if draw(st.booleans()) else draw(structures())
    heads, key_heads = draw(st.sampled_from([(1, 1), (2, 1), (2, 2)]))
    return attention(
        structure,
        key_structure,
        batch=draw(st.integers(1, 2)),
        heads=heads,
        key_heads=key_heads,
        selection_heads=draw(st.sampled_from([1, key_heads, heads])),
        width=draw(st.integers(1, 40)),
        value_width=draw(st.integers(1, 40)),
        slots=draw(st.sampled_from(LENGTHS)),
        biased=draw(st.booleans()),
        keyed=draw(st.booleans()),
        causal=draw(st.booleans()),
        scale=scale,
        bias=draw(st.sampled_from([1.0, 100.0])),
        full=draw(st.booleans()),
        seed=draw(st.integers(0, 2**31)),
    )


def attention(
    structure,
    key_structure=None,
    batch=1,
    heads=2,
    key_heads=1,
    selection_heads=1,
    width=16,
    value_width=16,
    slots=3,
    biased=False,
    keyed=False,
    causal=False,
    scale=1.0,
    bias=1.0,
    full=False,
    seed=0,
) -> Attention:
    key_structure = structure if key_structure is None else key_structure
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    n, n_k, count = structure.num_sites, key_structure.num_sites, key_structure.num_blocks
    shape = (batch, selection_heads, structure.num_cells)
    order = torch.rand((*shape, count), generator=g).argsort(dim=-1)
    blocks = order[..., : min(slots, count)].int()
    empty = torch.rand(blocks.shape, generator=g) < (0 if full else 0.15)
    key_bias = None
    if keyed:
        hidden = torch.rand((batch, key_heads, n_k), generator=g) < 0.2
        key_bias = (bias * normal(batch, key_heads, n_k)).masked_fill(hidden, -torch.inf)
    return Attention(
        scale * normal(batch, heads, n, width),
        scale * normal(batch, key_heads, n_k, width),
        scale * normal(batch, key_heads, n_k, value_width),
        blocks.masked_fill(empty, -1),
        bias * normal(*blocks.shape) if biased else None,
        key_bias,
        structure,
        key_structure,
        causal,
        normal(batch, heads, n, value_width),
        normal(batch, heads, n),
    )

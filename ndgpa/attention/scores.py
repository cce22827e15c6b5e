"""What happens to scores besides the scale: a soft cap, a bias per key, one per relative position.

A bias per key is a feature of the keys that every query has a 1 for; so rules see it without
knowing of it, and backends take it as they take that of a euclidean affinity. A bias per relative
position is one entry of a table for each pair: the number of the entry is that of the key plus
that of the query, so a chunk of cells finds it by one sum and one look-up.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa import arguments
from ndgpa._ops import wide
from ndgpa.problem import Problem
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.grid import check_same_rank, grid_shape


@dataclass(frozen=True)
class Scores:
    """Change the scores before the softmax: logit = cap(scale q.k) + key_bias + offset_bias.

    Gradients flow through both biases. `ndgpa.select` sees the bias of keys, by its mean over each
    block, but neither the cap nor the bias of relative positions: where such a bias favours near
    keys, force them (`TopK(k, force=Own())`, or a union with `Window`). There are no kernels for
    `offset_bias` and `softcap`: such a call runs on the `torch` or the `reference` backend.

    Args:
        key_bias: Added to all scores of a key.
        offset_bias: Added to the scores of a query at grid position x and a key at y: the entry
            y - x + (size of the query grid - 1), along each axis, of the table of its head. Along
            an axis with n queries and m keys the table has n + m - 1 entries. One table may serve
            all heads. Special tokens have no position, and no such bias.
        softcap: A cap c bends scores to c tanh(score / c), before biases. None means no cap.

    Raises:
        ValueError, TypeError: An argument is of a wrong type, or the cap is not positive.
    """

    key_bias: Float[Tensor, "#b #hk n_k"] | None = None
    offset_bias: Float[Tensor, "#h *offsets"] | None = None
    softcap: float | None = None

    def __post_init__(self) -> None:
        _check_floating("key_bias", self.key_bias)
        _check_floating("offset_bias", self.offset_bias)
        if self.softcap is not None:
            arguments.positive("softcap", self.softcap)


class Offsets(NamedTuple):
    """A bias per relative position, as a backend of `attend` takes it.

    The pair of query x and key y has the entry `of_query[x] + of_key[y]` of the table of its head.
    """

    table: Float[Tensor, "b h entries"]
    of_query: Int[Tensor, " n"]
    of_key: Int[Tensor, " n_k"]


def offsets_of(
    table: Float[Tensor, "#h *offsets"],
    structure: SpatialStructure,
    key_structure: SpatialStructure,
    like: Float[Tensor, "b h n d"],
) -> Offsets:
    """Number the offsets of a grid of queries from a grid of keys; tokens beside them have none."""
    shape, key_shape = _shapes(structure, key_structure)
    _check_table(table, shape, key_shape, like)
    sizes = [n + m - 1 for n, m in zip(shape, key_shape)]
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    last = sum(stride * (n - 1) for stride, n in zip(strides, shape))
    of_query, of_key = last - _numbered(shape, strides), _numbered(key_shape, strides)
    entries = table.flatten(1).to(wide(like)).expand(like.shape[0], like.shape[1], -1)
    return Offsets(entries, of_query.to(like.device), of_key.to(like.device))


def _numbered(shape: tuple[int, ...], strides: list[int]) -> Int[Tensor, " sites"]:
    """Add up the coordinates of each site, each times its stride."""
    parts = [stride * torch.arange(size) for size, stride in zip(shape, strides)]
    return torch.cartesian_prod(*parts).view(-1, len(shape)).sum(dim=1)


def dense_offsets(
    table: Float[Tensor, "#h *offsets"], problem: Problem
) -> Float[Tensor, "b h n n_k"]:
    """Spread a bias per relative position over all pairs; 0 where one of them is a token."""
    own, keys = problem.structure, problem.key_structure
    offsets = offsets_of(table, own, keys, problem.query)
    pairs = offsets.table[:, :, offsets.of_query[:, None] + offsets.of_key]
    return F.pad(pairs, (keys.prefix, keys.suffix, own.prefix, own.suffix))


def with_key_bias(problem: Problem, key_bias: Float[Tensor, "#b #hk n_k"] | None) -> Problem:
    """Make the bias a feature of the keys, for what compares means: the mean of a block has it."""
    if key_bias is None:
        return problem
    dtype = torch.promote_types(wide(problem.query), key_bias.dtype)
    query = F.pad(problem.query.to(dtype) * problem.scale, (0, 1), value=1.0)
    bias = key_bias.to(dtype).expand(problem.key.shape[:3])
    key = torch.cat([problem.key.to(dtype), bias[..., None]], dim=-1)
    return replace(problem, query=query, key=key, scale=1.0)


def check_scores(scores: Any, problem: Problem, far: Any, backend: str | None) -> None:
    """Refuse what does not fit the call, before any work is done."""
    if scores is None:
        return
    if not isinstance(scores, Scores):
        raise TypeError(f"scores must be ndgpa.Scores; got {type(scores).__name__}")
    if problem.affinity != "dot":
        raise NotImplementedError("scores need affinity='dot'")
    if far is not None:
        raise NotImplementedError("scores do not reach the far field: pass scores or far")
    if backend == "triton" and needs_pairs(scores):
        raise NotImplementedError(
            "backend 'triton' has no softcap and no offset_bias; use backend='torch', or None"
        )
    has_tokens = any(x.inner is not x for x in (problem.structure, problem.key_structure))
    if scores.softcap is not None and has_tokens:
        raise NotImplementedError("softcap does not reach special tokens; leave it or them out")
    if scores.key_bias is not None:
        _check_key_bias(scores.key_bias, problem.key)
    if scores.offset_bias is not None:
        shapes = _shapes(problem.structure, problem.key_structure)
        _check_table(scores.offset_bias, *shapes, problem.query)


def needs_pairs(scores: Scores | None) -> bool:
    """Whether something is done to the score of each pair, which kernels do not know."""
    return scores is not None and (scores.softcap is not None or scores.offset_bias is not None)


def _shapes(
    structure: SpatialStructure, key_structure: SpatialStructure
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    shape = grid_shape("offset_bias", "structure", structure.inner)
    key_shape = grid_shape("offset_bias", "key_structure", key_structure.inner)
    check_same_rank(shape, key_shape)
    return shape, key_shape


def _check_floating(name: str, x: Any) -> None:
    if x is not None and not (isinstance(x, Tensor) and x.dtype.is_floating_point):
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a floating tensor; got {got}")


def _check_key_bias(bias: Tensor, key: Tensor) -> None:
    _check_device("key_bias", bias, key)
    wanted = tuple(key.shape[:3])
    fits = bias.ndim == 3 and all(n in (1, m) for n, m in zip(bias.shape[:2], wanted))
    if not fits or bias.shape[2] != wanted[2]:
        raise ValueError(
            f"key_bias must have shape (batch, key heads, keys) = {wanted}, or 1 for the batch or "
            f"the heads; got {tuple(bias.shape)}"
        )


def _check_table(
    table: Tensor, shape: tuple[int, ...], key_shape: tuple[int, ...], query: Tensor
) -> None:
    _check_device("offset_bias", table, query)
    offsets = tuple(n + m - 1 for n, m in zip(shape, key_shape))
    heads = query.shape[1]
    if tuple(table.shape) not in ((heads, *offsets), (1, *offsets)):
        raise ValueError(
            f"offset_bias must have shape (heads, *offsets) = {(heads, *offsets)}, or 1 for the "
            f"heads; got {tuple(table.shape)}"
        )


def _check_device(name: str, x: Tensor, other: Tensor) -> None:
    if x.device != other.device:
        raise ValueError(f"{name} is on {x.device} but the features are on {other.device}")

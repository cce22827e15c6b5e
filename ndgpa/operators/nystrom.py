"""Nystromformer: attention through a few landmarks."""

from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ndgpa import arguments
from ndgpa._ops import cast_for_autocast, without_autocast
from ndgpa.attention.dense import attend_to_all
from ndgpa.operators.base import check_as_many_blocks, check_one_space, checked_call
from ndgpa.operators.full import Full
from ndgpa.problem import Problem, check_scale
from ndgpa.structures import SpatialStructure


class Nystrom(nn.Module):
    """Approximate softmax attention through m landmarks, which are means of queries and of keys.

    out = softmax(s Q K~^T) pinv(softmax(s Q~ K~^T)) softmax(s Q~ K^T) V

    Q~ and K~ are means over m runs of sites in their natural order, or over the blocks of the
    structure. The pseudo-inverse is iterated from A^T / (max row sum x max column sum) of each
    matrix by itself, so that no sample depends on its batch. With at least as many landmarks as
    queries or as keys it is full attention. A masked key is in no landmark; in self-attention
    neither is the query at its site.

    Source: Xiong et al. 2021, "Nystromformer: A Nystrom-based Algorithm for Approximating
    Self-Attention".

    Args:
        landmarks: The number m of runs; of n sites, the first m - n % m runs have n // m, the
            others one more. "blocks" means the blocks of the structures, which must be as many for
            queries as for keys.
        iterations: Steps of the pseudo-inverse. More steps come closer to it, though not
            necessarily to full attention.
        conv_kernel: Width, odd, of a depthwise convolution of the values in their natural order,
            which is added to the output. Needs `heads`, and queries and keys on one structure.
        heads: Query heads, for `conv_kernel`.
        scale: Factor of the dot products; None means 1/sqrt(d).

    Raises:
        ValueError: There is no landmark, the kernel is even, or "blocks" differ in number.
        NotImplementedError: A structure has groups.
    """

    def __init__(
        self,
        landmarks: int | Literal["blocks"],
        iterations: int = 6,
        conv_kernel: int | None = None,
        heads: int | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        _check_options(landmarks, iterations, conv_kernel, heads)
        check_scale(scale)
        self.landmarks, self.iterations, self.scale = landmarks, iterations, scale
        self.conv: nn.Conv1d | None = None
        if conv_kernel is not None:
            assert heads is not None
            self.conv = nn.Conv1d(
                heads, heads, conv_kernel, padding=conv_kernel // 2, groups=heads, bias=False
            )

    def forward(
        self,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b hk n_k d"],
        value: Float[Tensor, "b hk n_k dv"],
        structure: SpatialStructure,
        key_structure: SpatialStructure | None = None,
        *,
        key_mask: Bool[Tensor, "b n_k"] | None = None,
        query_mask: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b h n dv"]:
        """Attend, in float32 or wider; see `Operator`."""
        problem = checked_call(
            query,
            key,
            value,
            structure,
            key_structure,
            scale=self.scale,
            key_mask=key_mask,
            query_mask=query_mask,
        )
        check_one_space("Nystrom", problem.structure, problem.key_structure)
        if self.conv is not None:
            _check_conv(self.conv.weight, problem)
        dtype = cast_for_autocast(value)[0].dtype
        wide = torch.promote_types(value.dtype, torch.float32)
        query, key, value = (x.to(wide).contiguous() for x in (query, key, value))
        with without_autocast(query):
            if key_mask is not None:
                unseen = ~key_mask[:, None, :, None]
                key, value = key.masked_fill(unseen, 0), value.masked_fill(unseen, 0)
            out = self._attend(replace(problem, query=query, key=key), value)
            if self.conv is not None:
                out = out + self._convolve(value, query.shape[1])
        return out.to(dtype)

    def mask(
        self,
        structure: SpatialStructure,
        key_structure: SpatialStructure | None = None,
        query: Tensor | None = None,
        key: Tensor | None = None,
    ) -> Bool[Tensor, "1 n n_k"]:
        """Return all True: every site reads every key; see `SaysMask.mask`."""
        return Full().mask(structure, key_structure)

    def extra_repr(self) -> str:
        return f"landmarks={self.landmarks!r}, iterations={self.iterations}"

    def _attend(self, problem: Problem, value: Tensor) -> Tensor:
        query, key, scale, key_mask = problem.query, problem.key, problem.scale, problem.key_mask
        count = self._count(problem.structure, problem.key_structure)
        if count >= min(query.shape[2], key.shape[2]):
            return attend_to_all(query, key, value, scale=scale, key_mask=key_mask)
        means, asked = self._means(query, problem.structure, count, problem.query_mask)
        key_means, seen = self._means(key, problem.key_structure, count, key_mask)
        between = _softmax(means, key_means, scale, seen)
        if asked is not None:
            between = between.masked_fill(~asked[:, None, :, None], 0)
        read = attend_to_all(means, key, value, scale=scale, key_mask=key_mask)
        read = pseudo_inverse(between, self.iterations) @ read
        return _per_head_values(query, key_means, read, scale, seen)

    def _count(self, structure: SpatialStructure, key_structure: SpatialStructure) -> int:
        if isinstance(self.landmarks, int):
            return self.landmarks
        check_as_many_blocks("Nystrom", structure, key_structure)
        return structure.num_blocks

    def _means(
        self, x: Tensor, structure: SpatialStructure, count: int, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Average over the seen sites of each landmark; also return which landmarks have any."""

        def sums(y: Tensor) -> Tensor:
            return structure.block_sums(y) if self.landmarks == "blocks" else run_sums(y, count)

        if mask is None:
            return sums(x) / sums(torch.ones_like(x[:1, :1, :, :1])), None
        sizes = sums(mask[:, None, :, None].to(x.dtype))
        x = x.masked_fill(~mask[:, None, :, None], 0)
        return sums(x) / sizes.clamp(min=1), sizes[:, 0, :, 0] > 0

    def _convolve(self, value: Tensor, heads: int) -> Tensor:
        assert self.conv is not None
        value = value.repeat_interleave(heads // value.shape[1], dim=1)
        weight = self.conv.weight.to(value.dtype)[..., None]
        return F.conv2d(value, weight, padding=(weight.shape[2] // 2, 0), groups=heads)


def run_sums(x: Float[Tensor, "*batch n d"], count: int) -> Float[Tensor, "*batch {count} d"]:
    """Sum over `count` runs of n // count sites; the last n % count runs have one more.

    Source: the rule of Nystromformer's image models for counts that do not divide n.
    """
    length, longer = divmod(x.shape[-2], count)
    shorter = count - longer
    early, late = x.tensor_split((shorter * length,), dim=-2)
    early = early.unflatten(-2, (shorter, length)).sum(dim=-2)
    return torch.cat([early, late.unflatten(-2, (longer, length + 1)).sum(dim=-2)], dim=-2)


def pseudo_inverse(a: Float[Tensor, "*batch m m"], iterations: int) -> Float[Tensor, "*batch m m"]:
    """Approximate the Moore-Penrose inverse of each matrix, by iteration.

    Source: Section 3.2 of Xiong et al. 2021, after Razavi et al. 2014, but started from each
    matrix's own norms.
    """
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    rows, columns = (a.abs().sum(dim=dim).amax(dim=-1)[..., None, None] for dim in (-1, -2))
    norms = rows * columns
    inverse = a.mT / norms.masked_fill(norms == 0, 1)
    for _ in range(iterations):
        product = a @ inverse
        inner = 15 * eye - product @ (7 * eye - product)
        inverse = inverse @ (13 * eye - product @ inner) / 4
    return inverse


def _softmax(
    query: Tensor, key: Tensor, scale: float, seen: Tensor | None
) -> Tensor:  # (b, h, m, m)
    logits = scale * query @ key.repeat_interleave(query.shape[1] // key.shape[1], dim=1).mT
    if seen is None:
        return logits.softmax(dim=-1)
    hidden = ~seen[:, None, None]
    all_hidden = hidden.all(dim=-1, keepdim=True)
    logits = logits.masked_fill(hidden & ~all_hidden, -torch.inf)
    return logits.softmax(dim=-1).masked_fill(hidden, 0)


def _per_head_values(
    query: Tensor, key: Tensor, value: Tensor, scale: float, seen: Tensor | None
) -> Tensor:
    """Attend with separate values for every query head."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    return attend_to_all(query, key, value, scale=scale, key_mask=seen)


def _check_options(landmarks: Any, iterations: Any, conv_kernel: Any, heads: Any) -> None:
    if landmarks != "blocks":
        if isinstance(landmarks, str):
            raise ValueError(f"unknown landmarks {landmarks!r}; expected a number or 'blocks'")
        arguments.positive_count("landmarks", landmarks)
    arguments.positive_count("iterations", iterations)
    if conv_kernel is None:
        return
    arguments.positive_count("conv_kernel", conv_kernel)
    if conv_kernel % 2 == 0:
        raise ValueError(f"conv_kernel must be odd; got {conv_kernel}")
    if heads is None:
        raise ValueError("conv_kernel needs heads, the number of query heads")
    arguments.positive_count("heads", heads)


def _check_conv(weight: Tensor, problem: Problem) -> None:
    if problem.key_structure is not problem.structure:
        raise ValueError("conv_kernel needs queries and keys on one structure")
    heads = problem.query.shape[1]
    if weight.shape[0] != heads:
        raise ValueError(f"query has {heads} heads but the convolution has {weight.shape[0]}")

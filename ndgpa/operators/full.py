"""Full attention: every query reads every key that it can see."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ndgpa._ops import cast_for_autocast, wide, without_autocast
from ndgpa.attention.scores import Scores, check_scores, dense_offsets
from ndgpa.problem import Affinity, Problem, dot_form, hide_keys
from ndgpa.structures import SpatialStructure, visible


@dataclass(frozen=True)
class Full:
    """Attend to all keys, by `torch.nn.functional.scaled_dot_product_attention`.

    Source: Equation 1 of Jetchev et al. 2021. GPA equals it when every block is kept.

    torch's fused kernels have no second derivative; use the MATH backend of
    `torch.nn.attention.sdpa_kernel` where one is needed.

    Args:
        scale, affinity, causal: As for `ndgpa.gpa`.

    Raises:
        ValueError, TypeError: As for `ndgpa.gpa`.
    """

    scale: float | None = None
    affinity: Affinity = "dot"
    causal: bool = False

    def __call__(
        self,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b hk n_k d"],
        value: Float[Tensor, "b hk n_k dv"],
        structure: SpatialStructure,
        key_structure: SpatialStructure | None = None,
        *,
        key_mask: Bool[Tensor, "b n_k"] | None = None,
        query_mask: Bool[Tensor, "b n"] | None = None,
        scores: Scores | None = None,
    ) -> Float[Tensor, "b h n dv"]:
        problem = Problem.of(
            query,
            key,
            structure,
            key_structure=key_structure,
            scale=self.scale,
            affinity=self.affinity,
            causal=self.causal,
            key_mask=key_mask,
            query_mask=query_mask,
            value=value,
        )
        check_scores(scores, problem, None, None)
        if scores is not None and scores.softcap is not None:
            raise NotImplementedError("Full has no softcap, as torch's kernels have none")
        query, key, value = cast_for_autocast(query, key, value)
        if key_mask is not None:
            unseen = ~key_mask[:, None, :, None]
            key, value = key.masked_fill(unseen, 0), value.masked_fill(unseen, 0)
        bias, scale = dot_form(key, self.affinity, problem.scale)
        if scores is not None and scores.key_bias is not None:
            bias = scores.key_bias.to(wide(key)).expand(key.shape[:3])
        bias = hide_keys(bias, key, key_mask)
        seen = visible(problem.structure, problem.key_structure, self.causal)
        with without_autocast(query):
            mask = _mask(query, bias, seen)
            if scores is not None and scores.offset_bias is not None:
                by_offset = dense_offsets(scores.offset_bias, problem)
                mask = by_offset if mask is None else by_offset + mask
            return _attend(query, key, value, mask, scale).to(query.dtype)

    def mask(
        self,
        structure: SpatialStructure,
        key_structure: SpatialStructure | None = None,
        query: Tensor | None = None,
        key: Tensor | None = None,
    ) -> Bool[Tensor, "1 n n_k"]:
        """Return which keys are visible; see `SaysMask.mask`."""
        key_structure = structure if key_structure is None else key_structure
        seen = visible(structure, key_structure, self.causal)
        if seen is None:
            shape = (structure.num_sites, key_structure.num_sites)
            seen = torch.ones(shape, dtype=torch.bool, device=structure.device)
        return seen[None]


def _attend(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b hk n_k d"],
    value: Float[Tensor, "b hk n_k dv"],
    mask: Float[Tensor, "#b #h #n n_k"] | None,
    scale: float,
) -> Float[Tensor, "b h n dv"]:
    grouped = key.shape[1] != query.shape[1]
    width = value.shape[3]
    wide = query.dtype if mask is None else mask.dtype  # a bias needs more than 16 bits
    query, key, value = _fit_for_fused_kernels(*(x.to(wide) for x in (query, key, value)))
    out = F.scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=grouped)
    if mask is not None:
        out = out.masked_fill(mask.amax(dim=-1, keepdim=True) == -torch.inf, 0)
    return out[..., :width]


def _fit_for_fused_kernels(*xs: Tensor) -> list[Tensor]:
    """Lay tensors out as torch's fused kernels need them: equal widths, contiguous features."""
    width = max(x.shape[3] for x in xs)
    xs = tuple(F.pad(x, (0, width - x.shape[3])) if x.shape[3] < width else x for x in xs)
    return [x if x.stride(3) == 1 else x.contiguous() for x in xs]


def _mask(
    query: Float[Tensor, "b h n d"],
    bias: Float[Tensor, "b hk n_k"] | None,
    seen: Bool[Tensor, "n n_k"] | None,
) -> Float[Tensor, "#b #h #n n_k"] | None:
    """Return what is added to the logits, in float32 or wider; None for nothing."""
    if bias is None:
        if seen is None:
            return None
        wide = torch.promote_types(query.dtype, torch.float32)
        zeros = torch.zeros((), dtype=wide, device=query.device)
        return zeros.where(seen, -torch.inf)[None, None]
    if bias.shape[1] != query.shape[1]:
        bias = bias.repeat_interleave(query.shape[1] // bias.shape[1], dim=1)
    added = bias[:, :, None]
    return added if seen is None else added.masked_fill(~seen, -torch.inf)

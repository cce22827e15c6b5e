"""Performer: attention by random features, linear in the number of sites."""

import math
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ndgpa import arguments
from ndgpa._ops import call, cast_for_autocast
from ndgpa.attention.features import KERNELS, attend_by_features
from ndgpa.operators.base import check_one_space, checked_call
from ndgpa.operators.full import Full
from ndgpa.structures import SpatialStructure

ROW_NORMS = ("gaussian", "constant")


class Performer(nn.Module):
    """Approximate softmax attention by positive orthogonal random features (FAVOR+).

    out = phi(Q) (phi(K)^T V) / (phi(Q) sum phi(K)),    phi(x) = exp(W y - |y|^2 / 2 - c) + eps,

    with y = sqrt(scale) x, rows of W orthogonal in groups of d, and c the largest exponent: for a
    query over its own features, for the keys over all seen keys. The computation is in float32 or
    wider, also under autocast, a chunk of sites at a time. The kernel "relu" is
    phi(x) = relu(W y) + 0.001.

    Source: Choromanski et al. 2021, "Rethinking Attention with Performers". The released code
    subtracts the largest W y from the queries, not the largest exponent, so that eps swamps the
    features of a query of large norm.

    The projection W is a buffer; `state_dict` saves it and the number of calls.

    Args:
        head_dim: Features of a query head.
        features: Rows of W; None means int(d log d).
        redraw_every: In training mode, calls between two draws of W; None never draws again.
        kernel: "softmax" approximates softmax attention; "relu" does not.
        row_norm: Norms of the rows of W: "gaussian" as of Gaussian vectors, "constant" sqrt(d).
        seed: Seed of all draws of W.
        scale: Factor of the dot products, above 0; None means 1/sqrt(d).
        eps: Added to every feature, so that no sum is 0.

    Raises:
        ValueError: A count is below 1, a word is unknown, or queries do not have `head_dim`
            features.
        NotImplementedError: A structure has groups.
    """

    projection: Tensor

    def __init__(
        self,
        head_dim: int,
        features: int | None = None,
        redraw_every: int | None = 1000,
        kernel: Literal["softmax", "relu"] = "softmax",
        row_norm: Literal["gaussian", "constant"] = "gaussian",
        seed: int = 0,
        scale: float | None = None,
        eps: float = 1e-4,
    ) -> None:
        super().__init__()
        arguments.positive_count("head_dim", head_dim)
        features = max(1, int(head_dim * math.log(head_dim))) if features is None else features
        _check_options(features, redraw_every, scale, eps)
        arguments.one_of("kernel", kernel, KERNELS)
        arguments.one_of("row_norm", row_norm, ROW_NORMS)
        self.redraw_every, self.kernel, self.row_norm = redraw_every, kernel, row_norm
        self.seed, self.scale, self.eps = seed, scale, eps
        self.register_buffer("projection", draw_projection(features, head_dim, row_norm, seed))
        self._calls = torch.zeros((), dtype=torch.int64, device="cpu")  # where reading is free

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
        check_one_space("Performer", problem.structure, problem.key_structure)
        _check_input(query, self.projection)
        projection = self.projection
        if self.training and self.redraw_every is not None and not _is_recomputing():
            redraw(projection, self._calls, self.redraw_every, self.row_norm, self.seed)
            projection = projection.clone()  # a later draw must not change what backward reads
        if key_mask is not None:
            unseen = ~key_mask[:, None, :, None]
            key, value = key.masked_fill(unseen, 0), value.masked_fill(unseen, 0)
        options = problem.scale, self.eps, self.kernel
        out = call(attend_by_features, query, key, value, key_mask, projection, *options)
        return out.to(cast_for_autocast(value)[0].dtype)

    def mask(
        self,
        structure: SpatialStructure,
        key_structure: SpatialStructure | None = None,
        query: Tensor | None = None,
        key: Tensor | None = None,
    ) -> Bool[Tensor, "1 n n_k"]:
        """Return all True: every site reads every key; see `SaysMask.mask`."""
        return Full().mask(structure, key_structure)

    def get_extra_state(self) -> Tensor:  # a tensor, as safetensors keeps nothing else
        return self._calls.clone()

    def set_extra_state(self, state: Tensor) -> None:
        self._calls.copy_(state)

    def extra_repr(self) -> str:
        features, head_dim = self.projection.shape
        return f"head_dim={head_dim}, features={features}, kernel={self.kernel!r}"


def _is_recomputing() -> bool:
    """Tell whether a backward pass is running, in which checkpointing repeats the forward.

    torch has no public function for it; `torch.utils.checkpoint` asks the same way.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def draw_projection(
    features: int, head_dim: int, row_norm: str = "gaussian", seed: int = 0
) -> Float[Tensor, "{features} {head_dim}"]:
    """Draw rows that are orthogonal in groups of `head_dim`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    groups = math.ceil(features / head_dim)
    rows, triangle = torch.linalg.qr(normal(groups, head_dim, head_dim))
    rows = rows * triangle.diagonal(dim1=1, dim2=2).sign()[:, None]  # uniform over rotations
    rows = rows.mT.flatten(0, 1)[:features]
    norms = normal(features, head_dim).norm(dim=1)
    if row_norm == "constant":
        norms = torch.full_like(norms, head_dim**0.5)
    return (norms[:, None] * rows).float()


@torch.library.custom_op("ndgpa::performer_redraw", mutates_args=("projection", "calls"))
def redraw(projection: Tensor, calls: Tensor, every: int, row_norm: str, seed: int) -> None:
    """Count a call, and after `every` calls draw the projection again; the seed fixes all draws."""
    calls += 1
    if int(calls) % every == 0:
        seed = seed + 1_000_003 * (int(calls) // every)
        features, head_dim = projection.shape
        projection.copy_(draw_projection(features, head_dim, row_norm, seed))


@redraw.register_fake
def _(projection: Tensor, calls: Tensor, every: int, row_norm: str, seed: int) -> None:
    return None


def _check_options(features: Any, redraw_every: Any, scale: Any, eps: Any) -> None:
    arguments.positive_count("features", features)
    if redraw_every is not None:
        arguments.positive_count("redraw_every", redraw_every)
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale of a Performer must be positive and finite; got {scale}")
    if not eps >= 0:
        raise ValueError(f"eps must be at least 0; got {eps}")


def _check_input(query: Tensor, projection: Tensor) -> None:
    if query.shape[-1] != projection.shape[1]:
        raise ValueError(
            f"query has {query.shape[-1]} features per head but the Performer has head_dim="
            f"{projection.shape[1]}"
        )
    if query.device != projection.device:
        raise ValueError(f"the projection is on {projection.device} but query is on {query.device}")

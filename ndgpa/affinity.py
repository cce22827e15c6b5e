"""The two affinities, brought to one form: scale q.k plus a bias for each key."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

AFFINITIES = ("dot", "euclidean")


def dot_form(
    key: Float[Tensor, "*batch n_k d"], affinity: str, scale: float
) -> tuple[Float[Tensor, "*batch n_k"] | None, float]:
    """The bias of each key and the scale that turn an affinity into a dot product.

    -scale |q-k|^2 = 2 scale q.k - scale |k|^2 - scale |q|^2, and the last term, being the same for
    all keys, cancels in a softmax.

    Returns:
        The bias in float32 or wider, None where it is zero, and the scale of the dot product.
    """
    if affinity == "dot":
        return None, scale
    wide = torch.promote_types(key.dtype, torch.float32)
    return -scale * key.to(wide).square().sum(dim=-1), 2 * scale


def hide_keys(
    bias: Float[Tensor, "b hk n_k"] | None,
    key: Float[Tensor, "b hk n_k d"],
    key_mask: Bool[Tensor, "b n_k"] | None,
) -> Float[Tensor, "b hk n_k"] | None:
    """The bias with -inf at the keys that are not seen."""
    if key_mask is None:
        return bias
    if bias is None:
        bias = key.new_zeros(key.shape[:3], dtype=torch.promote_types(key.dtype, torch.float32))
    return bias.masked_fill(~key_mask[:, None], -torch.inf)

"""Dealing heads to several operators."""

from itertools import accumulate

from jaxtyping import Float
from torch import Tensor


def head_counts(who: str, heads: int, parts: int) -> tuple[int, ...]:
    """Count the heads of each part: heads // parts, one more for each of the last heads % parts.

    Raises:
        ValueError: There are fewer heads than parts.
    """
    _check_enough_heads(who, heads, parts)
    share, left = divmod(heads, parts)
    return (share,) * (parts - left) + (share + 1,) * left


def heads_of_part(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b hk n_k d"],
    value: Float[Tensor, "b hk n_k dv"],
    counts: tuple[int, ...],
    part: int,
) -> tuple[Float[Tensor, "b hp n d"], Float[Tensor, "b hkp n_k d"], Float[Tensor, "b hkp n_k dv"]]:
    """Take the query heads of one part, and the key heads that they read.

    Key heads are repeated only where a part ends between query heads that share one.
    """
    ends = list(accumulate(counts))
    end, start = ends[part], ends[part] - counts[part]
    group = query.shape[1] // key.shape[1]
    query = query[:, start:end]
    first, last = start // group, (end - 1) // group
    whole = first == last or (start % group == 0 and end % group == 0)
    key, value = key[:, first : last + 1], value[:, first : last + 1]
    if not whole:
        taken = slice(start - first * group, end - first * group)
        key, value = (x.repeat_interleave(group, dim=1)[:, taken] for x in (key, value))
    return query, key, value


def _check_enough_heads(who: str, heads: int, count: int) -> None:
    if heads < count:
        raise ValueError(
            f"{who} has {count} parts but query has {heads} heads; each part needs one"
        )

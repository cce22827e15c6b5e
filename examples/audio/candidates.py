"""Which frames each frame of a gap copies from: the attention laid open.

Shapes: h heads, t frames, s frames that are asked about, y keys that one of them may read.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from examples.audio.model import Question
from ndgpa import GPA, Full, Sequence, attend, select
from ndgpa.analysis import key_weights
from ndgpa.operators import Neighborhood, Operator

CHUNK = 256  # frames asked about at a time: each needs a row of logits

Read = Callable[[Tensor], tuple[Tensor, Tensor]]  # (s,) -> (h, s, y) key frames and weights


@torch.no_grad()
def strongest_keys(
    question: Question,
    operator: Operator,
    structure: Sequence,
    frames: Int[Tensor, " s"],
    count: int,
) -> tuple[Int[Tensor, "h s k"], Float[Tensor, "h s k"]]:
    """Return the keys of most weight of each head, -1 where there are fewer, and their weights.

    Args:
        question: Of one recording.
    """
    read = _reader(question, operator, structure)
    parts = [_strongest(*read(part), count) for part in frames.split(CHUNK)]
    return torch.cat([p[0] for p in parts], dim=1), torch.cat([p[1] for p in parts], dim=1)


def _strongest(sites: Tensor, weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    top = weights.topk(min(count, weights.shape[2]), dim=2)
    return sites.gather(2, top.indices).masked_fill(top.values == 0, -1), top.values


def _reader(question: Question, operator: Operator, structure: Sequence) -> Read:
    """Choose how the weights of this kind of attention are found."""
    if isinstance(operator, GPA):
        return _gpa(question, operator, structure)
    if isinstance(operator, Full):
        return _dense(question, operator.causal, None)
    if isinstance(operator, Neighborhood):
        assert isinstance(operator.kernel, int)
        return _dense(question, False, operator.kernel)
    heads = question.query.shape[1]
    return lambda frames: (
        torch.full((heads, len(frames), 1), -1),
        torch.zeros(heads, len(frames), 1),
    )


def _gpa(question: Question, operator: GPA, structure: Sequence) -> Read:
    """Read the selected blocks; what remains of the weight is the far field's."""
    options = {"scale": operator.scale, "causal": operator.causal, "key_mask": question.known}
    asking = torch.ones_like(question.known)  # gaps too
    asked = (question.query, question.key)
    selection = select(*asked, structure, operator.rule, query_mask=asking, **options)
    near, total = (
        attend(*asked, question.key, selection, structure, far=far, return_lse=True, **options)[1]
        for far in (None, operator.far)
    )
    share = (near - total).exp().nan_to_num(0)[0, ..., None]  # h t 1

    def read(frames: Tensor) -> tuple[Tensor, Tensor]:
        sites, weights = key_weights(*asked, selection, structure, frames, **options)
        return sites[0], weights[0] * share[:, frames]

    return read


def _dense(question: Question, causal: bool, window: int | None) -> Read:
    total = question.query.shape[2]

    def read(frames: Tensor) -> tuple[Tensor, Tensor]:
        logits = question.query[0, :, frames] @ question.key[0].mT
        keys = torch.arange(total)
        seen = question.known[0].expand(len(frames), -1)
        if causal:
            seen = seen & (keys <= frames[:, None])
        if window is not None:
            first = (frames - window // 2).clamp(0, total - window)[:, None]
            seen = seen & (keys >= first) & (keys < first + window)
        weights = logits.masked_fill(~seen, -torch.inf).softmax(dim=-1).nan_to_num(0)
        return keys.expand_as(weights), weights

    return read

"""The network: describe each frame by its surroundings, look for the like, repair.

Shapes: b recordings, n samples, t frames, c bands, h heads, d features of a query.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from examples.audio.operators import space
from examples.audio.spectrum import BANDS, confidence, known_frames, log_bands, spectrum
from ndgpa.operators import Operator


@dataclass(frozen=True)
class Question:
    """What the attention is asked."""

    query: Float[Tensor, "b h t d"]
    key: Float[Tensor, "b h t d"]
    value: Float[Tensor, "b h t v"]
    known: Bool[Tensor, "b t"]  # keys that can be copied from


@dataclass(frozen=True)
class Repair:
    """What comes out."""

    bands: Float[Tensor, "b c t"]  # the restored logarithms
    copied: Float[Tensor, "b h c t"]  # what each head brought
    found: Float[Tensor, "b h t"]  # 1 where a head could read anything
    question: Question


class Conv(nn.Module):
    """A convolution in time that keeps the length; causal, it looks back only."""

    def __init__(self, into: int, out: int, kernel: int, dilation: int, causal: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(into, out, kernel, dilation=dilation)
        reach = (kernel - 1) * dilation
        self.pad = (reach, 0) if causal else (reach // 2, reach - reach // 2)

    def forward(self, x: Float[Tensor, "b w t"]) -> Float[Tensor, "b v t"]:
        return self.conv(F.pad(x, self.pad))


class Stack(nn.Module):
    """Residual convolutions of growing reach."""

    def __init__(
        self,
        into: int,
        width: int,
        kernel: int,
        dilations: tuple[int, ...],
        causal: bool,
        first: int = 3,
    ) -> None:
        super().__init__()
        self.first = Conv(into, width, first, 1, causal)
        self.blocks = nn.ModuleList(Conv(width, width, kernel, d, causal) for d in dilations)

    def forward(self, x: Float[Tensor, "b w t"]) -> Float[Tensor, "b v t"]:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(F.leaky_relu(x, 0.2))
        return x


class Restorer(nn.Module):
    """From the damaged log spectrum to a whole one.

    Queries and keys are unit vectors made from one description of the second before and after a
    frame, so that a frame in a gap resembles the frames whose surroundings sound as its own; both
    projections begin as the same. Values are the bands themselves: what is read is a copy.

    Args:
        causal: No frame looks at a later one.
    """

    def __init__(
        self, width: int = 64, heads: int = 2, features: int = 24, causal: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.context = Stack(BANDS + 1, width, 5, (1, 2, 4, 8, 16, 32), causal)
        self.to_query = nn.Conv1d(width, heads * features, 1, bias=False)
        self.to_key = nn.Conv1d(width, heads * features, 1, bias=False)
        self.to_key.load_state_dict(self.to_query.state_dict())
        self.log_sharpness = nn.Parameter(torch.full((heads,), 2.7))
        into = 2 * BANDS + 1 + width + heads * (BANDS + 2)
        self.repair = Stack(into, 96, 3, (1, 2, 4, 8), causal, first=1)
        self.to_bands = nn.Conv1d(96, 2 * BANDS, 1)

    def forward(
        self, wave: Float[Tensor, "b n"], known: Bool[Tensor, "b n"], operator: Operator
    ) -> Repair:
        question, features, own, share = self.ask(wave, known)
        structure = space(own.shape[2])
        answer = operator(
            question.query,
            question.key,
            question.value,
            structure,
            key_mask=question.known,
            query_mask=torch.ones_like(question.known),  # gaps ask too
        )
        return self.answer(question, answer, features, own, share)

    def ask(
        self, wave: Float[Tensor, "b n"], known: Bool[Tensor, "b n"]
    ) -> tuple[Question, Tensor, Tensor, Tensor]:
        """Return the question, the frames' features and bands, and how much of each is known."""
        own, share = log_bands(spectrum(wave)), confidence(known)
        features = self.context(torch.cat([scaled(own) * share[:, None], share[:, None]], dim=1))
        query, key = (
            F.normalize(rearrange(to(features), "b (h d) t -> b h t d", h=self.heads), dim=-1)
            for to in (self.to_query, self.to_key)
        )
        bands = rearrange(own, "b c t -> b 1 t c").expand(-1, self.heads, -1, -1)
        value = torch.cat([bands, torch.ones_like(bands[..., :1]), key], dim=-1)
        query = query * self.log_sharpness.exp()[:, None, None]
        return Question(query, key, value, known_frames(share)), features, own, share

    def answer(
        self,
        question: Question,
        answer: Float[Tensor, "b h t v"],
        features: Float[Tensor, "b w t"],
        own: Float[Tensor, "b c t"],
        share: Float[Tensor, "b t"],
    ) -> Repair:
        """Mix what was copied with what can be guessed from beside the gap."""
        copied, found, keys = answer.split([BANDS, 1, answer.shape[3] - BANDS - 1], dim=-1)
        likeness = (F.normalize(question.query, dim=-1) * keys).sum(dim=-1)
        guess = across_gaps(own, known_frames(share), self.causal)
        copied, found = rearrange(copied, "b h t c -> b h c t"), found[..., 0]
        inputs = [scaled(guess), scaled(own) * share[:, None], share[:, None], features]
        inputs += [scaled(copied).flatten(1, 2) * found.repeat_interleave(BANDS, 1)]
        x = self.repair(torch.cat([*inputs, found, likeness], dim=1))
        share_copied, change = self.to_bands(F.leaky_relu(x, 0.2)).chunk(2, dim=1)
        seen = found.amax(dim=1, keepdim=True)
        weight = (likeness * 8).softmax(dim=1)[:, :, None]
        best = (copied * weight).sum(dim=1)
        bands = guess + torch.sigmoid(share_copied) * seen * (best - guess) + change
        return Repair(bands, copied, found, question)


def scaled(bands: Float[Tensor, "*b t"]) -> Float[Tensor, "*b t"]:
    """Bring logarithms to about -1 to 1."""
    return (bands + 3) / 4


def across_gaps(
    bands: Float[Tensor, "b c t"], known: Bool[Tensor, "b t"], causal: bool
) -> Float[Tensor, "b c t"]:
    """Draw a line from the last known frame to the next; causal, hold the last one.

    Before the first known frame and after the last, the nearest one; where none is, `bands`.
    """
    frames = bands.shape[2]
    at = torch.arange(frames).expand_as(known)
    before = at.masked_fill(~known, -1).cummax(dim=1).values
    after = at.masked_fill(~known, frames).flip(1).cummin(dim=1).values.flip(1)
    if causal:
        after = before
    first = torch.where(before >= 0, before, after)
    last = torch.where(after < frames, after, before)
    none = (first < 0) | (first >= frames) | (last < 0)
    first, last = first.masked_fill(none, 0), last.masked_fill(none, 0)
    part = ((at - first) / (last - first).clamp(min=1)).clamp(0, 1)[:, None]
    start, end = (bands.gather(2, i[:, None].expand_as(bands)) for i in (first, last))
    return torch.where(none[:, None], bands, start + part * (end - start))

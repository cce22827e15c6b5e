"""Who asks and who answers: the sites in holes ask all sites of the clip, by any attention.

Shapes: t frames, h w pixels, n sites of the clip, m sites in holes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

import ndgpa
from examples.common.attention import operator_of
from examples.common.untrusted import BadInput
from ndgpa import Clusters, Fixed, Full, Grid, TopK
from ndgpa.operators import NoAttention, Operator

BLOCK = (1, 8, 8)  # frames, rows, columns
KAPPA = 16  # blocks that each block of a hole reads
WINDOW = (1, 1, 1)  # blocks on each side of a block's own


@dataclass(frozen=True)
class Spaces:
    """The clip, whose sites are the keys, and its holes, whose sites are the queries.

    The blocks of the holes are those of the clip, without what is known; so nothing is computed
    for pixels that need no filling.
    """

    clip: Grid
    holes: Clusters
    sites: Int[Tensor, " m"]  # of the clip, one for each site of the holes
    blocks: Int[Tensor, " B"]  # of the clip, one for each block of the holes

    @classmethod
    def of(cls, known: Bool[Tensor, "t 1 h w"]) -> "Spaces":
        clip = ndgpa.Video((known.shape[0], *known.shape[2:]), block=BLOCK)
        sites = (~known).flatten().nonzero()[:, 0]
        blocks, block_of_site = clip.block_of_site[sites].unique(return_inverse=True)
        return cls(clip, Clusters(block_of_site, torch.arange(len(blocks))), sites, blocks)


def rule(kappa: int) -> TopK:
    """Rank by logits: they do not underflow, and a cell of one block ranks them as softmax does."""
    return TopK(kappa, relevance="logit")


def gpa(spaces: Spaces, kappa: int = KAPPA) -> Operator:
    """Read the most relevant blocks, of any time and place."""
    return ndgpa.GPA(rule(kappa), scale=1.0, affinity="euclidean")


def window(spaces: Spaces) -> Operator:
    """Read the blocks around each block, in time and place."""
    near = spaces.clip.near_cells(WINDOW)[spaces.blocks]  # a cell of the clip is one block
    return ndgpa.GPA(Fixed(near), scale=1.0, affinity="euclidean")


def full(spaces: Spaces) -> Operator:
    return Full(scale=1.0, affinity="euclidean")


def nothing(spaces: Spaces) -> Operator:
    return NoAttention()


Attention = Callable[[Spaces], Operator]
ATTENTIONS: dict[str, Attention] = {"gpa": gpa, "window": window, "full": full, "nothing": nothing}


def attention_of(name: str) -> Attention:
    """Return one of `ATTENTIONS`, or a call such as `GPA(TopK(4, relevance=logit), far=block)`.

    Raises:
        BadInput: It is neither, or the attention does not go by distances.
    """
    if name in ATTENTIONS:
        return ATTENTIONS[name]
    made = operator_of(name, dict.fromkeys(ATTENTIONS, ""), scale=1.0, affinity="euclidean")
    if not isinstance(made, (ndgpa.GPA, Full)):
        raise BadInput(f"attention {name!r} does not go by distances of addresses; expected a GPA")
    return lambda spaces: made

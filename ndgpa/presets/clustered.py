"""Sparse VideoGen 2: attention between clusters of tokens."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa import arguments
from ndgpa.operators import GPA
from ndgpa.presets.base import Preset
from ndgpa.problem import Problem, Selection
from ndgpa.selection import Rule
from ndgpa.selection.coarse import coarse_level
from ndgpa.selection.slots import ascending
from ndgpa.structures import Clusters


def svg2(
    query: Float[Tensor, "n d"],
    key: Float[Tensor, "n_k d"],
    query_clusters: int,
    key_clusters: int,
    p: float = 0.9,
    min_ratio: float = 0.0,
    iterations: int = 10,
    seed: int = 0,
) -> Preset:
    """Build the attention of Sparse VideoGen 2, between k-means clusters of the tokens.

    Each cluster of queries is a cell. It reads the most relevant clusters of keys until they exceed
    a share p of its relevance; clusters are weighted by size. One clustering serves all heads.

    Source: Yang et al. 2025, "Sparse VideoGen2".

    Args:
        query, key: The tokens to cluster.
        query_clusters, key_clusters: How many clusters.
        p: The share of the relevance to exceed.
        min_ratio: The least share of `key_clusters` that is read, rounded down. Clusters that
            remain empty count, as in the released code.
        iterations: Steps of k-means.
        seed: Seed of the initial centres.
    """
    spaces = []
    for x, count in ((query, query_clusters), (key, key_clusters)):
        arguments.at_most("clusters", count, len(x), "tokens")
        block = k_means(x.detach(), count, iterations, seed)
        spaces.append(Clusters(block, torch.arange(int(block.max()) + 1, device=x.device)))
    return Preset(GPA(_MoreThanP(p, int(min_ratio * key_clusters))), *spaces)


@dataclass(frozen=True)
class _MoreThanP(Rule):
    """Read the most relevant blocks until their share exceeds `p`, where `TopP` stops at p."""

    p: float
    at_least: int

    def __post_init__(self) -> None:
        arguments.share_of("p", self.p)

    def select(self, problem: Problem) -> Selection:
        """Select for cells of one block each."""
        coarse = coarse_level(problem)
        key = coarse.key.repeat_interleave(problem.query.shape[1] // problem.key.shape[1], dim=1)
        logits = coarse.scale * coarse.query @ key.mT
        if coarse.log_size is not None:
            logits = logits + coarse.log_size[:, None, None]
        logits, ids = logits.detach().sort(dim=-1, descending=True, stable=True)
        reached = logits.softmax(dim=-1).cumsum(dim=-1).clamp(max=1)
        enough = F.pad(reached[..., :-1] > self.p, (1, 0))
        enough[..., : self.at_least] = False
        ids = ids.masked_fill(enough | (logits == -torch.inf), -1)
        return Selection(ascending(ids, problem.key_structure.num_blocks).int())


def k_means(
    x: Float[Tensor, "n d"], count: int, iterations: int, seed: int = 0
) -> Int[Tensor, " n"]:
    """Assign each point to a cluster, by Lloyd's iteration from random points; none is empty."""
    generator = torch.Generator().manual_seed(seed)
    centre = x[torch.randperm(len(x), generator=generator)[:count].to(x.device)]
    own = torch.cdist(x, centre).argmin(dim=1)
    for _ in range(iterations):
        size = own.bincount(minlength=count)
        sums = torch.zeros_like(centre).index_add_(0, own, x)
        centre = torch.where(size[:, None] > 0, sums / size.clamp(min=1)[:, None], centre)
        own = torch.cdist(x, centre).argmin(dim=1)
    return own.unique(return_inverse=True)[1]

"""Which pixels of the source a level reads for chosen pixels of the output."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

import ndgpa
from examples.images.pose_morphing.model import Level
from ndgpa.analysis import key_weights
from ndgpa.selection import Rule

CHUNK = 256  # queries at a time


def keys_and_weights(
    level: Level, picture: int, sites: Int[Tensor, " s"]
) -> tuple[Int[Tensor, "s y"], Float[Tensor, "s y"]]:
    """Key sites that queries read, -1 for none, and their weights, which sum to 1.

    Source: Figure 9 of Jetchev et al. 2021. For an operator other than GPA it is what full
    attention to these features would read.

    Args:
        level: Of a morph.
        picture: Its place in the batch.
        sites: The queries, in raster order of the level.
    """
    query, key = features_of(level, picture)
    selection = ndgpa.select(query, key, level.structure, rule_of(level), **form_of(level))
    keys, weights = key_weights(query, key, selection, level.structure, sites, **form_of(level))
    return keys[0, 0], weights[0, 0]


def best_keys(level: Level, picture: int, sites: Int[Tensor, " s"]) -> Int[Tensor, " s"]:
    """The key of the largest weight for each query, for many queries at once."""
    query, key = features_of(level, picture)
    structure = level.structure.to(query.device)
    blocks = ndgpa.select(query, key, structure, rule_of(level), **form_of(level)).blocks[0, 0]
    found = [sites.new_empty(0)]
    for chunk in sites.split(CHUNK):
        read = structure.upsample(blocks[structure.cell_of_site[chunk]]).flatten(1)  # (s, y)
        here, there = query[0, 0, chunk, None], key[0, 0][read.clamp(min=0)]
        logits = (here * there).sum(dim=-1)
        if form_of(level)["affinity"] == "euclidean":
            logits = -(here - there).square().sum(dim=-1)
        best = logits.masked_fill(read < 0, -torch.inf).argmax(dim=1, keepdim=True)
        found.append(read.gather(1, best)[:, 0])
    return torch.cat(found)


def features_of(level: Level, picture: int) -> tuple[Tensor, Tensor]:
    """Queries and keys of one picture, (1, 1, n, c)."""
    query, key = (x[picture : picture + 1].detach().float() for x in (level.query, level.key))
    return query, key


def rule_of(level: Level) -> Rule | int:
    """What GPA reads; all blocks for other attentions."""
    gpa = isinstance(level.operator, ndgpa.GPA)
    return level.operator.rule if gpa else level.structure.num_blocks


def form_of(level: Level) -> dict[str, Any]:
    """How queries and keys make logits; the low-rank attentions know dot products only."""
    operator = level.operator
    knows_both = isinstance(operator, (ndgpa.GPA, ndgpa.Full))
    return {"scale": 1.0, "affinity": operator.affinity if knows_both else "dot"}


def sites_of(
    places: Float[Tensor, "s 2"], size: tuple[int, int], level_size: tuple[int, int]
) -> Int[Tensor, " s"]:
    """The sites of a level that hold places of the picture, (row, column) in pixels."""
    scale = places.new_tensor(level_size) / places.new_tensor(size)
    row, column = ((places + 0.5) * scale).floor().long().unbind(dim=1)
    row, column = row.clamp(0, level_size[0] - 1), column.clamp(0, level_size[1] - 1)
    return row * level_size[1] + column


def places_of(
    sites: Int[Tensor, " s"], size: tuple[int, int], level_size: tuple[int, int]
) -> Float[Tensor, "s 2"]:
    """Where the middles of a level's sites are in the picture, (row, column) in pixels."""
    row, column = sites // level_size[1], sites % level_size[1]
    places = torch.stack([row, column], dim=1).float()
    scale = places.new_tensor(size) / places.new_tensor(level_size)
    return (places + 0.5) * scale - 0.5

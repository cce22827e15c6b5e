"""Which pixels of the source a level reads for chosen pixels of the output."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

import ndgpa
from examples.images.pose_morphing.model import Level
from ndgpa.analysis import key_weights

CHUNK = 1024  # queries at a time


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
    query, key = (x[picture : picture + 1].detach().float() for x in (level.query, level.key))
    operator, structure = level.operator, level.structure
    rule = operator.rule if isinstance(operator, ndgpa.GPA) else structure.num_blocks
    affinity = operator.affinity if isinstance(operator, (ndgpa.GPA, ndgpa.Full)) else "dot"
    selection = ndgpa.select(query, key, structure, rule, scale=1.0, affinity=affinity)
    keys, weights = key_weights(
        query, key, selection, structure, sites, scale=1.0, affinity=affinity
    )
    return keys[0, 0], weights[0, 0]


def best_keys(level: Level, picture: int, sites: Int[Tensor, " s"]) -> Int[Tensor, " s"]:
    """The key of the largest weight for each query."""
    found = [sites.new_empty(0)]
    for chunk in sites.split(CHUNK):
        keys, weights = keys_and_weights(level, picture, chunk)
        found.append(keys.gather(1, weights.argmax(dim=1, keepdim=True))[:, 0])
    return torch.cat(found)


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

"""How good a picture is, and how exactly the attention found what it copied.

Pictures are in 0 to 1; every measure gives one number for each picture of the batch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

import ndgpa
from examples.common.measures import ssim_map
from examples.images.pose_morphing.euclidean import EuclideanByDot
from examples.images.pose_morphing.levels import Level
from ndgpa.analysis import key_weights

SSIM_BORDER = 5  # pixels, half of the Gaussian window of 11
PROTOCOLS = ("plain", "patn")
ROWS = 128  # key distances are given as in a picture of so many rows
NEAR_PX = (3, 6)
CHUNK = 256  # queries at a time


def l1(
    images: Float[Tensor, "b 3 h w"],
    truths: Float[Tensor, "b 3 h w"],
    where: Bool[Tensor, "b h w"] | None = None,
) -> Float[Tensor, " b"]:
    """Mean absolute error, NaN where `where` has no pixel."""
    return mean_over((images - truths).abs().mean(dim=1), where)


def psnr(
    images: Float[Tensor, "b 3 h w"],
    truths: Float[Tensor, "b 3 h w"],
    where: Bool[Tensor, "b h w"] | None = None,
) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio in dB, of the pixels `where` alone if given."""
    return -10 * mean_over((images - truths).square().mean(dim=1), where).log10()


def ssim(
    images: Float[Tensor, "b 3 h w"],
    truths: Float[Tensor, "b 3 h w"],
    protocol: str = "plain",
    where: Bool[Tensor, "b h w"] | None = None,
) -> Float[Tensor, " b"]:
    """Structural similarity, by scikit-image with the Gaussian window of the paper.

    Source: Wang et al. 2004, with the options of the script of PATN (Zhu et al. 2019).

    Args:
        images: What was made; the PATN protocol takes the data range from it.
        truths: What should have been made.
        protocol: "plain" has the data range 1. "patn" first pads both pictures to squares with
            white columns left and right, and has as data range that of the padded `images`, each
            on its own: published figures are padded so, which raises them.
        where: Average the map over these pixels; without it over all but the border of 5 pixels.

    Raises:
        ValueError: An unknown protocol, or pictures smaller than the window.
    """
    if protocol not in PROTOCOLS:
        wanted = ", ".join(map(repr, PROTOCOLS))
        raise ValueError(f"unknown SSIM protocol {protocol!r}; expected one of {wanted}")
    if protocol == "patn":
        images, truths = padded_to_square(images), padded_to_square(truths)
        where = None if where is None else padded_to_square(where[:, None], value=0)[:, 0]
    own = protocol == "patn"
    ranges = [float(x.max() - x.min()) if own else 1.0 for x in images]
    maps = torch.stack(
        [
            torch.from_numpy(ssim_map(image, truth, data_range))
            for image, truth, data_range in zip(images.double(), truths.double(), ranges)
        ]
    )
    if where is None:
        maps = maps[:, SSIM_BORDER:-SSIM_BORDER, SSIM_BORDER:-SSIM_BORDER]
    return mean_over(maps, where)


def padded_to_square(x: Tensor, value: float = 1.0) -> Tensor:  # (b, c, h, w) -> (b, c, h, side)
    """Add columns left and right until the picture is square; 40 each for 256x176.

    A picture that is square or wide stays as it is.
    """
    missing = max(0, x.shape[2] - x.shape[3])
    return F.pad(x, (missing // 2, missing - missing // 2), value=value)


def mean_over(
    x: Float[Tensor, "b h w"], where: Bool[Tensor, "b h w"] | None
) -> Float[Tensor, " b"]:
    """Average each map over its chosen pixels; NaN where there are none."""
    weight = torch.ones_like(x) if where is None else where.to(x.dtype)
    x, weight = (rearrange(y, "b h w -> b (h w)") for y in (x, weight))
    return (x * weight).sum(dim=1) / weight.sum(dim=1)


def copy_accuracy(distances: Float[Tensor, " s"]) -> dict[str, float]:
    """Compute the median of key distances, and the shares within 3 and 6 pixels; NaN of none."""
    shares = {f"acc{near}": (distances <= near).float().mean().item() for near in NEAR_PX}
    middle = distances.median().item() if len(distances) else torch.nan
    return {"key_px": middle, **shares}


def key_distances(
    level: Level,
    picture: int,
    source_places: Float[Tensor, "h w 2"],
    copyable: Bool[Tensor, "h w"],
) -> Float[Tensor, " s"]:
    """Measure how far the best key of each copyable pixel lies from its true source.

    In pixels of a picture of 128 rows. A level coarser than the picture reads sites: their middles
    count.

    Args:
        level: Of a morph, its finest attention for the measure of the report.
        picture: Its place in the batch.
        source_places: Row and column in the source of what each pixel of the target shows.
        copyable: Where that is seen in the source at all.
    """
    size = tuple(copyable.shape)
    here, truth = copyable.nonzero().float(), source_places[copyable].float()
    sites = sites_of(here, size, level.size).to(level.query.device)
    found = places_of(best_keys(level, picture, sites).cpu(), size, level.size)
    return (found - truth).norm(dim=1) * ROWS / size[0]


def best_keys(level: Level, picture: int, sites: Int[Tensor, " s"]) -> Int[Tensor, " s"]:
    """Return the key of the largest weight for each query."""
    found = [sites.new_empty(0)]
    for chunk in sites.split(CHUNK):
        keys, weights = keys_and_weights(level, picture, chunk)
        found.append(keys.gather(1, weights.argmax(dim=1, keepdim=True))[:, 0])
    return torch.cat(found)


def keys_and_weights(
    level: Level, picture: int, sites: Int[Tensor, " s"]
) -> tuple[Int[Tensor, "s y"], Float[Tensor, "s y"]]:
    """Return the key sites that queries read, -1 for none, and their weights, which sum to 1.

    Those of all heads, one after the other; a far field is left out.

    Source: Figure 9 of Jetchev et al. 2021. For an operator other than GPA it is what full
    attention to these features would read.

    Args:
        level: Of a morph.
        picture: Its place in the batch.
        sites: The queries, in raster order of the level.
    """
    query, key = (x[picture : picture + 1].detach().float() for x in (level.query, level.key))
    structure, form = level.structure.to(query.device), form_of(level)
    gpa = isinstance(level.operator, ndgpa.GPA)
    rule = level.operator.rule if gpa else structure.num_blocks
    selection = ndgpa.select(query, key, structure, rule, **form)
    keys, weights = key_weights(query, key, selection, structure, sites, **form)
    heads = keys.shape[1]
    keys, weights = (rearrange(x[0], "k s y -> s (k y)") for x in (keys, weights))
    return keys, weights / heads


def form_of(level: Level) -> dict[str, Any]:
    """Say how queries and keys make logits."""
    operator = level.operator
    if isinstance(operator, (ndgpa.GPA, ndgpa.Full)):
        return {"scale": 1.0, "affinity": operator.affinity}
    by_dot = isinstance(operator, EuclideanByDot)
    return {"scale": 1.0, "affinity": "euclidean" if by_dot else "dot"}


def sites_of(
    places: Float[Tensor, "s 2"], size: tuple[int, int], level_size: tuple[int, int]
) -> Int[Tensor, " s"]:
    """Return the sites of a level that hold places of the picture, (row, column) in pixels."""
    scale = places.new_tensor(level_size) / places.new_tensor(size)
    row, column = ((places + 0.5) * scale).floor().long().unbind(dim=1)
    row, column = row.clamp(0, level_size[0] - 1), column.clamp(0, level_size[1] - 1)
    return row * level_size[1] + column


def places_of(
    sites: Int[Tensor, " s"], size: tuple[int, int], level_size: tuple[int, int]
) -> Float[Tensor, "s 2"]:
    """Return the middles of a level's sites in the picture, (row, column) in pixels."""
    row, column = sites // level_size[1], sites % level_size[1]
    places = torch.stack([row, column], dim=1).float()
    scale = places.new_tensor(size) / places.new_tensor(level_size)
    return (places + 0.5) * scale - 0.5

"""How far the attention's keys lie from the places that are truly to be copied."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from examples.images.pose_morphing.measures.keys import best_keys, places_of, sites_of
from examples.images.pose_morphing.model import Level

ROWS = 128  # distances are given as in a picture of so many rows
NEAR_PX = (3, 6)


def key_distances(
    level: Level,
    picture: int,
    source_places: Float[Tensor, "h w 2"],
    copyable: Bool[Tensor, "h w"],
) -> Float[Tensor, " s"]:
    """Pixels, of a picture of 128 rows, from the best key of each copyable pixel to its source.

    A level coarser than the picture reads sites: their middles count.

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


def copy_accuracy(distances: Float[Tensor, " s"]) -> dict[str, float]:
    """Their median, and the shares within 3 and within 6 pixels; NaN if there are none."""
    shares = {f"acc{near}": (distances <= near).float().mean().item() for near in NEAR_PX}
    middle = distances.median().item() if len(distances) else torch.nan
    return {"key_px": middle, **shares}

"""The problems of the GPU benchmark, and inputs for them that are drawn where they are used.

Lists of selected blocks come from features of photographs or of a pan over them (neighbouring cells
read neighbouring blocks, a few blocks are read by many), or from random features (no locality).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import ndgpa

# Four photographs of scikit-image, 96x96 (astronaut, coffee, chelsea, rocket; all without rights).
PHOTOGRAPHS = Path(__file__).parent / "data" / "photographs.pt"


@dataclass(frozen=True)
class Case:
    """A structure, how many heads of what width attend on it, and what the features are of."""

    name: str
    space: Callable[[], ndgpa.SpatialStructure]
    batch: int
    heads: int
    width: int
    kept: int
    dtype: torch.dtype = torch.bfloat16
    lists: tuple[str, ...] = ("photographs", "random")


def graph(nodes: int, per_block: int, per_cell: int) -> ndgpa.Clusters:
    """A partition of a graph as a clustering program would give it: nodes in no order."""
    order = torch.randperm(nodes, generator=torch.Generator().manual_seed(0))
    block_of_node = torch.empty_like(order)
    block_of_node[order] = torch.arange(nodes) // per_block
    blocks = -(-nodes // per_block)
    return ndgpa.Clusters(block_of_node, torch.arange(blocks) // per_cell)


def _pivot() -> ndgpa.Image:
    return ndgpa.Image((256, 256), 4, 2)


def _chal() -> ndgpa.Image:
    return ndgpa.Image((512, 256), 8, 1)


NO_PICTURE = ("random",)
CASES = (
    Case("pivot 64", _pivot, 8, 8, 64, 12),
    Case("video 49,152", lambda: ndgpa.Video((48, 32, 32), 4, 1), 1, 12, 128, 77),
    Case("ChaL 4", _chal, 4, 8, 64, 4),
    Case("video 16x96x96", lambda: ndgpa.Video((16, 96, 96), (1, 4, 4), 1), 1, 8, 64, 32),
    Case("pivot 128", _pivot, 8, 8, 128, 12),
    Case("pivot 64 float16", _pivot, 8, 8, 64, 12, torch.float16),
    Case("pivot 64 float32", _pivot, 1, 8, 64, 12, torch.float32),
    Case("graph 100,000", lambda: graph(100_000, 8, 4), 1, 8, 64, 16, lists=NO_PICTURE),
    Case(
        "sequence 262,144",
        lambda: ndgpa.Sequence(262_144, 64, 1),
        1,
        8,
        64,
        32,
        lists=NO_PICTURE,
    ),
    Case("small cells", lambda: ndgpa.Image((256, 256), 2, 1), 1, 8, 64, 12),
    Case("pivot 160", _pivot, 8, 8, 160, 12),
    *(Case(f"ChaL {k}", _chal, 4, 8, 64, k) for k in (1, 2)),
)
DRY = (
    Case("tiny image", lambda: ndgpa.Image((4, 4), 2, 1), 1, 1, 4, 2, torch.float32),
    Case("tiny graph", lambda: graph(9, 4, 2), 1, 1, 4, 2, torch.float32, lists=NO_PICTURE),
)


def features(
    case: Case, space: ndgpa.SpatialStructure, lists: str, device: torch.device, seed: int = 0
) -> Tensor:  # (batch, heads, n, width)
    """Features of mean 0 and variance 1, drawn on the device."""
    generator = torch.Generator(device).manual_seed(seed)
    shape = (case.batch, case.heads, space.num_sites, case.width)
    if lists == "random":
        return torch.randn(shape, device=device, dtype=case.dtype, generator=generator)
    pictures = _pictures(case.batch, space.shape, device)  # (batch, frames, 3, h, w)
    filters = torch.randn(
        case.heads, case.width, 3, 5, 5, device=device, generator=generator
    ).flatten(0, 1)
    out = torch.empty(shape, device=device, dtype=case.dtype)
    for sample, frames in zip(out, pictures):
        x = F.conv2d(frames, filters, padding=2).relu()
        x = x - x.mean(dim=(0, 2, 3), keepdim=True)
        x = x / x.square().mean(dim=(0, 2, 3), keepdim=True).sqrt().clamp(min=1e-3)
        x = x.unflatten(1, (case.heads, case.width)).permute(1, 0, 3, 4, 2)
        sample.copy_(x.flatten(1, 3))
    return out


def _pictures(batch: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A mosaic of the photographs, another part of it for each sample; of video a slow pan."""
    photos = torch.load(PHOTOGRAPHS, weights_only=True).to(device).float() / 255
    mosaic = torch.cat([torch.cat([*photos[:2]], dim=2), torch.cat([*photos[2:]], dim=2)], dim=1)
    *time, height, width = shape
    frames = time[0] if time else 1
    large = F.interpolate(mosaic[None], size=(height, width), mode="bilinear")[0]
    return torch.stack(
        [
            torch.stack([large.roll((s * 31, s * 17 + 2 * t), (1, 2)) for t in range(frames)])
            for s in range(batch)
        ]
    )

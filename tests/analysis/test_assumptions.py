"""The paper's assumptions on fields whose smoothness is known: what makes Phase 1 work, and when.

Queries and keys come from independent fields: white noise, or the same noise smoothed.
"""

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

import ndgpa
from ndgpa.analysis import coverage

SIDE, BLOCK, KAPPA, WIDTH = 32, 4, 4, 16
SHARPNESS = 30.0  # of the attention between unit vectors
SMOOTH = 2.0  # pixels, the deviation of the filter
SEEDS = range(4)


def field(seed: int, smooth: float = 0.0) -> Float[Tensor, "1 1 n d"]:
    """Draw unit vectors on a torus, white or smoothed by a Gaussian of so many pixels."""
    x = torch.randn(1, WIDTH, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    if smooth:
        reach = torch.arange(-3 * int(smooth), 3 * int(smooth) + 1)
        kernel = torch.exp(-((reach / smooth) ** 2) / 2)
        x = F.pad(x, (len(reach) // 2,) * 4, mode="circular").transpose(0, 1)
        x = F.conv2d(F.conv2d(x, kernel[None, None, :, None]), kernel[None, None, None])
        x = x.transpose(0, 1)
    return F.normalize(x.flatten(2).mT[:, None], dim=3)


def best_blocks(
    query: Tensor, key: Tensor, structure: ndgpa.Image, seen: Bool[Tensor, " n"]
) -> Int[Tensor, "C k"]:
    """Find the blocks of most full attention for each cell, between the sites that are seen."""
    logits = SHARPNESS * query[0, 0] @ key[0, 0].T
    mass = logits.masked_fill(~seen, -torch.inf).softmax(dim=1) * seen[:, None]
    blocks, cells = structure.num_blocks, structure.num_cells
    by_block = torch.zeros(len(mass), blocks).index_add_(1, structure.block_of_site, mass)
    by_cell = torch.zeros(cells, blocks).index_add_(0, structure.cell_of_site, by_block)
    return by_cell.topk(KAPPA, dim=1).indices


def overlap(a: Int[Tensor, "C k"], b: Int[Tensor, "C k"]) -> float:
    return (a[:, :, None] == b[:, None]).any(dim=2).float().mean().item()


def scale_overlap(seed: int, smooth: float, split: bool = False) -> float:
    """Compare the blocks that means find with those that full attention finds.

    Args:
        split: Means see every other site, full attention the rest; otherwise both see all.
    """
    structure = ndgpa.Image((SIDE, SIDE), BLOCK)
    query, key = field(2 * seed, smooth), field(2 * seed + 1, smooth)
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    half = ((rows + columns) % 2 == 0).flatten() if split else torch.ones(SIDE**2, dtype=torch.bool)
    masks = {"key_mask": half[None], "query_mask": half[None]} if split else {}
    coarse = ndgpa.select(query, key, structure, KAPPA, scale=SHARPNESS, **masks)
    fine = best_blocks(query, key, structure, ~half if split else half)
    return overlap(coarse.blocks[0, 0].long(), fine)


CHANCE = KAPPA / (SIDE // BLOCK) ** 2


def test_coarse_and_fine_find_the_same_blocks_on_smooth_fields_only() -> None:
    """A2 of the paper: affinities of neighbouring scales correlate; where they do not, Phase 1
    finds little more than chance."""
    smooth = [scale_overlap(seed, SMOOTH) for seed in SEEDS]
    noise = [scale_overlap(seed, 0.0) for seed in SEEDS]
    assert min(smooth) > 8 * CHANCE
    assert sum(noise) / len(noise) < 2 * CHANCE
    assert min(smooth) > 4 * max(noise)
    assert scale_overlap(0, 2 * SMOOTH) > max(smooth)


def test_between_disjoint_sites_noise_is_at_chance() -> None:
    """Means of half of the sites tell about the other half if neighbours are alike (A1), not of
    white noise: there the overlap is that of a random draw."""
    noise = torch.tensor([scale_overlap(seed, 0.0, split=True) for seed in SEEDS])
    cells = (SIDE // BLOCK) ** 2
    deviation = (CHANCE * (1 - CHANCE) / (KAPPA * cells * len(SEEDS))) ** 0.5
    assert abs(noise.mean() - CHANCE) < 4 * deviation
    assert min(scale_overlap(seed, SMOOTH, split=True) for seed in SEEDS) > 6 * CHANCE


@pytest.mark.parametrize("smooth", [0.0, SMOOTH])
def test_finer_cells_keep_more_of_the_attention(smooth: float) -> None:
    """Coverage rises with the number of cells; exactly so if each cell reads its best blocks."""
    found, best = [], []
    for cell in (4, 2, 1):
        structure = ndgpa.Image((SIDE, SIDE), BLOCK, cell)
        for seed in SEEDS:
            query, key = field(2 * seed, smooth), field(2 * seed + 1, smooth)
            options = {"scale": SHARPNESS, "samples": None}
            chosen = ndgpa.select(query, key, structure, KAPPA, scale=SHARPNESS)
            found.append(coverage(query, key, chosen, structure, **options).item())
            ideal = best_blocks(query, key, structure, torch.ones(SIDE**2, dtype=torch.bool))
            ideal = ndgpa.Selection(ideal[None, None].int())
            best.append(coverage(query, key, ideal, structure, **options).item())
    found, best = (torch.tensor(x).reshape(3, len(SEEDS)) for x in (found, best))
    assert bool((best.diff(dim=0) >= -1e-6).all())
    assert bool((found <= best + 1e-6).all())
    assert bool((found.mean(dim=1).diff() > 0).all())
    if smooth:
        assert bool((found.diff(dim=0) > 0).all())

"""How much of the best blocks' attention does a selection find at the pivot, in what time?

    python benchmarks/finding.py [--quick]

256x256 sites, blocks of 4x4, cells of 2x2, 12 blocks a cell.

`select_ms` processor time of the selection, one head of 64 random channels, float32: the median of
interleaved rounds; `/plain` over that of `TopK(12)`.
`NAME_K` the attention mass on the selected blocks over that on the best 12 of each cell, on
features of photographs as in materials.py at 256x256 (coffee and cat; nothing was tuned on them),
where K keys share the attention of a query; by 64 random cells.
"""

import argparse
from typing import Any

import torch
from far_field import KEPT, about_shared_by, interleaved
from materials import SEED, photograph
from measure import write
from operators import COMPONENTS, SHARED_BY
from skimage import data
from torch import Tensor
from tqdm import tqdm

import ndgpa
from ndgpa import Codebook, MultiLevel, Refine, TopK

SIDE, CHANNELS, CELLS = 256, 64, 64
PHOTOGRAPHS = {"coffee": data.coffee, "cat": data.chelsea}


def rules() -> dict[str, ndgpa.selection.Rule]:
    found: dict[str, ndgpa.selection.Rule] = {
        "TopK(12)": TopK(KEPT),
        "MultiLevel((96, 12))": MultiLevel((96, KEPT)),
        "Refine(TopK(24), 12, 2)": Refine(TopK(24), KEPT, 2),
        "Refine(TopK(48), 12, 4)": Refine(TopK(48), KEPT, 4),
        "Refine(TopK(48), 12, 16)": Refine(TopK(48), KEPT, 16),
    }
    for codes in (64, 128, 192, 256, 512, 1024):
        found[f"Codebook(12, {codes})"] = Codebook(KEPT, codes)
    for codes in (192, 512):
        found[f"Refine(Codebook(48, {codes}), 12, 16)"] = Refine(Codebook(48, codes), KEPT, 16)
    return found


def main(quick: bool) -> None:
    rows = {name: {"rule": name} | share for name, share in shares(quick).items()}
    image = ndgpa.Image((SIDE, SIDE), 4, 2)
    torch.manual_seed(SEED)
    query, key = (torch.randn(1, 1, SIDE**2, CHANNELS) for _ in range(2))
    calls = {k: lambda r=r: ndgpa.select(query, key, image, r) for k, r in rules().items()}
    seconds = interleaved(calls)
    for name, taken in seconds.items():
        rows[name] |= {"select_ms": 1000 * taken, "/plain": taken / seconds["TopK(12)"]}
    if not quick:
        question = __doc__.splitlines()[0] if __doc__ else ""
        write("finding", question, [*rows.values()], kappa=KEPT, seed=SEED, cells=CELLS)
    for row in rows.values():
        print(row)


def shares(quick: bool) -> dict[str, dict[str, Any]]:
    """By rule: the share that it finds of each photograph at each temperature."""
    found: dict[str, dict[str, Any]] = {name: {} for name in rules()}
    for photo in list(PHOTOGRAPHS)[: 1 if quick else None]:
        material = photograph(PHOTOGRAPHS[photo](), SIDE)
        image = material.space(16, 4)
        cells = torch.randperm(image.num_cells, generator=torch.Generator().manual_seed(SEED))
        cells = cells[:CELLS]
        for k in tqdm(SHARED_BY[:1] if quick else SHARED_BY, desc=photo):
            x = about_shared_by(k, material.features, 512)[:, :1]
            mass = torch.stack([mass_of_cell(x[0, 0], image, cell) for cell in cells.tolist()])
            best = mass.topk(KEPT, dim=1).values.sum()
            for name, rule in rules().items():
                blocks = ndgpa.select(x, x, image, rule).blocks[0, 0, cells].long()
                share = mass.gather(1, blocks.clamp(min=0)).where(blocks >= 0, 0).sum() / best
                found[name][f"{photo}_{k}"] = float(share)
    return found


def mass_of_cell(x: Tensor, image: ndgpa.Grid, cell: int) -> Tensor:  # (B,)
    """The attention mass of the sites of a cell on each block."""
    mass = (x[image.cell_sites[cell]] @ x.mT / COMPONENTS**0.5).softmax(dim=1).sum(dim=0)
    return torch.zeros(image.num_blocks).index_add_(0, image.block_of_site, mass)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one photograph; writes nothing")
    main(parser.parse_args().quick)

"""How much of the best blocks' attention does a selection find at the pivot, in what time?

    python benchmarks/finding.py [--quick]

256x256 sites, blocks of 4x4, cells of 2x2, 12 blocks a cell.

`select_ms` processor time of the selection, one head of 64 random channels, float32: the median of
interleaved rounds; `/plain` over that of `TopK(12)`.
`NAME_K` the attention mass on the selected blocks over that on the best 12 of each cell, on
features of photographs as in materials.py at 256x256 (nothing was tuned on them), where K keys
share the attention of a query; by 64 random cells. On coffee and cat queries and keys are the same
features, so that every site finds itself in its own block; on stereo, queries are of the left
picture and keys of the right one, where nothing stands at the same place of its block. "By site":
`estimate="site"` in every part of the rule; "own forced": the four blocks of the cell are among
the 12.
"""

import argparse
from typing import Any

import torch
from far_field import KEPT, about_shared_by, by_site, interleaved
from materials import SEED, material_of, patches, small_square
from measure import write
from operators import COMPONENTS, SHARED_BY
from skimage import data
from torch import Tensor
from tqdm import tqdm

import ndgpa
from ndgpa import Codebook, MultiLevel, Own, Propagate, Refine, TopK

SIDE, CELL, CHANNELS, CELLS = 256, 2, 64, 64
LEFT, RIGHT, _ = data.stereo_motorcycle()
PICTURES = {  # of queries and of keys
    "coffee": (data.coffee(), data.coffee()),
    "cat": (data.chelsea(), data.chelsea()),
    "stereo": (LEFT, RIGHT),
}


def rules() -> dict[str, ndgpa.selection.Rule]:
    found: dict[str, ndgpa.selection.Rule] = {
        "TopK(12)": TopK(KEPT),
        "Own(), four blocks": Own(),
        "MultiLevel((96, 12))": MultiLevel((96, KEPT)),
        "Refine(TopK(24), 12, 2)": Refine(TopK(24), KEPT, 2),
        "Refine(TopK(48), 12, 4)": Refine(TopK(48), KEPT, 4),
        "Refine(TopK(48), 12, 16)": Refine(TopK(48), KEPT, 16),
    }
    found |= by_site(CELL**2) | by_neighbours()
    for codes in (64, 128, 192, 256, 512, 1024):
        found[f"Codebook(12, {codes})"] = Codebook(KEPT, codes)
    for codes in (192, 512):
        found[f"Refine(Codebook(48, {codes}), 12, 16)"] = Refine(Codebook(48, codes), KEPT, 16)
    return found


def by_neighbours() -> dict[str, ndgpa.selection.Rule]:
    """Rules by site in which cells look at what the next ones have found, once or twice."""
    found: dict[str, ndgpa.selection.Rule] = {}
    for count in (4, 6):
        near = Propagate(TopK(count, estimate="site"))
        name = f"Propagate(TopK({count}))"
        found[f"Refine({name}, 12, 4), by site"] = Refine(near, KEPT, 4, "site")
        for parts in (4, 16):
            twice = Refine(Propagate(Refine(near, count, parts, "site")), KEPT, parts, "site")
            title = f"Refine(Propagate(Refine({name}, {count}, {parts})), 12, {parts}), by site"
            found[title] = twice
    return found


def main(quick: bool) -> None:
    rows = {name: {"rule": name} | share for name, share in shares(quick).items()}
    image = ndgpa.Image((SIDE, SIDE), 4, CELL)
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
    """By rule: the share that it finds of each picture at each temperature."""
    found: dict[str, dict[str, Any]] = {name: {} for name in rules()}
    image = ndgpa.Image((SIDE, SIDE), 4, CELL)
    for pictures_of, pictures in list(PICTURES.items())[: 1 if quick else None]:
        rows = torch.cat([patches(small_square(picture, SIDE)) for picture in pictures])
        features = material_of(rows, lambda *_: image).features
        cells = torch.randperm(image.num_cells, generator=torch.Generator().manual_seed(SEED))
        cells = cells[:CELLS]
        for k in tqdm(SHARED_BY[:1] if quick else SHARED_BY, desc=pictures_of):
            query, key = features[:, :1].chunk(2, dim=2)
            query = about_shared_by(k, query, 512)
            key = key * query[0, 0, 0].norm()  # features are of length 1 before
            mass = torch.stack([mass_of_cell(query, key, image, cell) for cell in cells.tolist()])
            best = mass.topk(KEPT, dim=1).values.sum()
            for name, rule in rules().items():
                blocks = ndgpa.select(query, key, image, rule).blocks[0, 0, cells].long()
                share = mass.gather(1, blocks.clamp(min=0)).where(blocks >= 0, 0).sum() / best
                found[name][f"{pictures_of}_{k}"] = float(share)
    return found


def mass_of_cell(query: Tensor, key: Tensor, image: ndgpa.Grid, cell: int) -> Tensor:  # (B,)
    """The attention mass of the sites of a cell on each block."""
    asks = query[0, 0, image.cell_sites[cell]]
    mass = (asks @ key[0, 0].mT / COMPONENTS**0.5).softmax(dim=1).sum(dim=0)
    return torch.zeros(image.num_blocks).index_add_(0, image.block_of_site, mass)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one photograph; writes nothing")
    main(parser.parse_args().quick)

"""How near does each operator come to full attention, and what does it cost, at equal budget?

    python benchmarks/operators.py [--quick]

Features: 5x5 patches of a photograph (scikit-image's astronaut) at 64x64, their 16 principal
components brought to one length; queries and keys are the same, values are the patches. A
temperature sets how many keys of 4096 share the attention of a query: the exponential of its mean
entropy is 1024, 128 or 16. Every operator that can be is set to about 256 entries of the affinity
matrix a query: for those through landmarks or features that is two factors of 128, for GPA it
includes Phase 1.

Columns: `entries/query` entries of the affinity matrix that are computed, mean of the heads;
`error_K` relative error of the outputs against full attention (root mean square) where K keys share
the attention; the others are at 256x256, 2 heads of 32 channels, float32, blocks 4 times as long:
`*_ms` medians in milliseconds, `fb` forward and backward; `*/tensors` the most that torch's
allocator held, outputs and gradients included, over the bytes of query, key, value and output;
`full/operator` how many times faster than full attention, forward and backward.
"""

import argparse
from typing import Any

import numpy as np
import torch
from measure import median_seconds, write
from skimage import data
from skimage.transform import resize
from torch import Tensor
from tqdm import tqdm

import ndgpa
from ndgpa.analysis import gpa_entries, low_rank_entries, peak_bytes

SEED, COMPONENTS, BUDGET = 0, 16, 256
SHARED_BY = (1024, 128, 16)  # keys
HEADS, CHANNELS = 2, 32  # of the measurement of cost
SMALL, LARGE = 64, 256


def main(quick: bool) -> None:
    torch.manual_seed(SEED)
    features, value = photograph()
    problems = {f"error_{k}": (shared_by(k, features), value) for k in SHARED_BY}
    rows = []
    for name, (operator, block) in tqdm(operators(COMPONENTS).items(), desc="error"):
        image = ndgpa.Image((SMALL, SMALL), block)
        errors = {k: error_of(operator, image, *problem) for k, problem in problems.items()}
        rows.append({"operator": name, "entries/query": entries(operator, image), **errors})
    side = SMALL if quick else LARGE
    for row, (operator, block) in zip(rows, tqdm(operators(CHANNELS).values(), desc="cost")):
        row |= cost(operator, ndgpa.Image((side, side), block * side // SMALL))
        row["full/operator"] = rows[0]["fb_ms"] / row["fb_ms"]
    question = __doc__.splitlines()[0] if __doc__ else ""
    if not quick:
        write("operators", question, rows, heads=HEADS, channels=CHANNELS, seed=SEED)
    for row in rows:
        print(row)


def operators(width: int) -> dict[str, tuple[Any, int]]:
    """The operators at their budget, and the blocks of the image; any even number of heads."""
    return {
        "Full": (ndgpa.Full(), 4),
        "GPA(12), blocks of 4x4": (ndgpa.GPA(12), 4),
        "GPA(12), blocks of 2x2": (ndgpa.GPA(12), 2),
        "Nystrom(128)": (ndgpa.operators.Nystrom(128), 4),
        "Performer(128)": (ndgpa.operators.Performer(width, 128).eval(), 4),
        "Neighborhood(16)": (ndgpa.operators.Neighborhood(16), 4),
        "Hydra, 16, dilations 1 and 4": (ndgpa.operators.Hydra.of([16], [1, 4]), 4),
        "MultiAxis(16)": (ndgpa.operators.MultiAxis(16), 4),
        'LocalSparse("ltr", stride=128)': (ndgpa.operators.LocalSparse("ltr", stride=128), 4),
        'LocalSparse("strided")': (ndgpa.operators.LocalSparse("strided"), 4),
        "NoAttention": (ndgpa.operators.NoAttention(), 4),
    }


def photograph() -> tuple[Tensor, Tensor]:
    """Features (1, 2, sites, COMPONENTS) of length 1 and values (1, 2, sites, 75)."""
    picture = resize(data.astronaut(), (SMALL, SMALL), anti_aliasing=True).astype(np.float32)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None]
    padded = torch.nn.functional.pad(pixels, (2, 2, 2, 2), mode="reflect")
    patches = torch.nn.functional.unfold(padded, 5)[0].mT
    patches = patches - patches.mean(dim=0)
    directions = torch.linalg.svd(patches, full_matrices=False)[2][:COMPONENTS]
    features = torch.nn.functional.normalize(patches @ directions.mT, dim=1)
    return features.expand(1, 2, -1, -1), patches.expand(1, 2, -1, -1)


def shared_by(keys: int, features: Tensor) -> Tensor:
    """The features at the temperature at which that many keys share the attention of a query."""
    low, high = 0.0, 64.0
    products = features[0, 0] @ features[0, 0].mT / COMPONENTS**0.5
    for _ in range(20):
        factor = (low + high) / 2
        logits = (factor**2 * products).log_softmax(dim=1)
        entropy = -(logits.exp() * logits).sum(dim=1).mean()
        low, high = (factor, high) if entropy.exp() > keys else (low, factor)
    return factor * features


def entries(operator: Any, image: ndgpa.Grid) -> float:
    """Entries of the affinity matrix a query."""
    sites = image.num_sites
    if isinstance(operator, ndgpa.GPA):
        assert isinstance(operator.rule, int)
        return gpa_entries(image, operator.rule).total / sites
    if isinstance(operator, (ndgpa.operators.Nystrom, ndgpa.operators.Performer)):
        return low_rank_entries(BUDGET // 2, sites) / sites
    return float(operator.mask(image).double().sum(dim=2).mean())


def error_of(operator: Any, image: ndgpa.Grid, query: Tensor, value: Tensor) -> float:
    exact = ndgpa.Full()(query, query, value, image)
    with torch.no_grad():
        return float((operator(query, query, value, image) - exact).norm() / exact.norm())


def cost(operator: Any, image: ndgpa.Grid) -> dict[str, float]:
    shape = (1, HEADS, image.num_sites, CHANNELS)
    inputs = [torch.randn(shape, requires_grad=True) for _ in range(3)]
    tensors = 4 * inputs[0].nbytes

    def forward() -> Tensor:
        return operator(*inputs, image)

    def both() -> None:
        out = forward()
        if out.requires_grad:
            out.backward(torch.ones_like(out))

    with torch.no_grad():
        forward_s, least = median_seconds(forward, enough_s=6), peak_bytes(forward)
    both_s, most = median_seconds(both, enough_s=6), peak_bytes(both)
    return {
        "forward_ms": 1000 * forward_s,
        "fb_ms": 1000 * both_s,
        "forward/tensors": least / tensors,
        "fb/tensors": most / tensors,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="64x64 only; writes nothing")
    main(parser.parse_args().quick)

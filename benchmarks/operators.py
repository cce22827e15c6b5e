"""How near does each operator come to full attention, and what does it cost, at equal budget?

    python benchmarks/operators.py [--quick] [--folder runs/operators]

Features: 5x5 patches of a photograph (scikit-image's astronaut) at 64x64, their 16 principal
components brought to one length; queries and keys are the same, values are the patches. A
temperature sets how many keys of 4096 share the attention of a query: the exponential of its mean
entropy is 1024, 128 or 16. Every operator that can be is set to about 256 entries of the affinity
matrix a query: for those through landmarks or features that is two factors of 128, for GPA it
includes Phase 1, a second look and a far field, which for "site" has 1,024 means. A row that
has ended is kept in the folder and not measured again.

Columns: `entries/query` entries of the affinity matrix that are computed, mean of the heads;
`error_K` relative error of the outputs against full attention (root mean square) where K keys share
the attention; the others are at 256x256, 2 heads of 32 channels, float32, blocks 4 times as long:
`*_ms` medians of processor time in milliseconds, one thread, `fb` forward and backward;
`*/tensors` the most that torch's allocator held, outputs and gradients included, over the bytes of
query, key, value and output; `full/operator` how many times faster than full attention, forward and
backward. The picture shows the errors over the entries.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from measure import RESULTS, median_cpu_seconds, write
from row_file import RowFile
from skimage import data
from skimage.transform import resize
from torch import Tensor
from tqdm import tqdm

import ndgpa
from ndgpa import Bundles, MultiLevel, Refine, TopK
from ndgpa.analysis import gpa_entries, low_rank_entries, peak_bytes

SEED, COMPONENTS, BUDGET = 0, 16, 256
SHARED_BY = (1024, 128, 16)  # keys
HEADS, CHANNELS = 2, 32  # of the measurement of cost
SMALL, LARGE = 64, 256
MARKS = "sv^<>Dp"  # of the operators that are not GPA


def main(quick: bool, folder: Path) -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    rows = quick_rows() if quick else kept_rows(folder / f"{SEED}.jsonl")
    for row in rows:
        row["full/operator"] = rows[0]["fb_ms"] / row["fb_ms"]
        print(row)
    if not quick:
        question = __doc__.splitlines()[0] if __doc__ else ""
        write("operators", question, rows, heads=HEADS, channels=CHANNELS, seed=SEED)
        draw(rows)


def quick_rows() -> list[dict[str, Any]]:
    measured = errors_of(photograph())
    return [measured(name) | cost_at(SMALL, name) for name in tqdm(entries_of())]


def kept_rows(path: Path) -> list[dict[str, Any]]:
    """Measure what the file does not have yet."""
    file, measured = RowFile(path), errors_of(photograph())
    for name in tqdm(entries_of()):
        if file.wants((name,)):
            file.begin((name,))
            file.end((name,), measured(name) | cost_at(LARGE, name))
    found = {row.pop("key")[0]: row for row in file.rows()}
    return [found[name] for name in entries_of() if name in found]


def operators(width: int) -> dict[str, tuple[Any, int]]:
    """The operators at their budget, and the blocks of the image; any even number of heads."""
    looked = Refine(TopK(48), keep=12)
    return {
        "Full": (ndgpa.Full(), 4),
        "GPA(12), blocks of 4x4": (ndgpa.GPA(12), 4),
        "GPA(12), blocks of 2x2": (ndgpa.GPA(12), 2),
        "GPA(Refine(TopK(48), 12)), blocks of 4x4": (ndgpa.GPA(looked), 4),
        'GPA(12, far="block"), blocks of 2x2': (ndgpa.GPA(12, far="block"), 2),
        'GPA(12, far="site"), blocks of 2x2': (ndgpa.GPA(12, far="site"), 2),
        'GPA(Refine(TopK(48), 12), far="block"), blocks of 4x4': (
            ndgpa.GPA(looked, far="block"),
            4,
        ),
        "GPA(MultiLevel((64, 29), force=Own()), far=Bundles(32)), blocks of 2x2": (
            ndgpa.GPA(MultiLevel((64, 29), 2, force=ndgpa.Own(), estimate="mean"), far=Bundles(32)),
            2,
        ),
        "Nystrom(128)": (ndgpa.operators.Nystrom(128), 4),
        "Performer(128)": (ndgpa.operators.Performer(width, 128).eval(), 4),
        "Neighborhood(16)": (ndgpa.operators.Neighborhood(16), 4),
        "Hydra, 16, dilations 1 and 4": (ndgpa.operators.Hydra.of([16], [1, 4]), 4),
        "MultiAxis(16)": (ndgpa.operators.MultiAxis(16), 4),
        'LocalSparse("ltr", stride=128)': (ndgpa.operators.LocalSparse("ltr", stride=128), 4),
        'LocalSparse("strided")': (ndgpa.operators.LocalSparse("strided"), 4),
        "NoAttention": (ndgpa.operators.NoAttention(), 4),
    }


def entries_of() -> dict[str, float]:
    """Entries of the affinity matrix a query, at 64x64, of every operator.

    `Refine` compares 4 parts of each of 48 candidates with 4 of the query's block: 48 a query of a
    block of 16 sites. `MultiLevel` compares the 256 nodes of 4 blocks, then 64 times 4 blocks, for
    each block of queries.
    """
    fine, coarse = ndgpa.Image((SMALL, SMALL), 2), ndgpa.Image((SMALL, SMALL), 4)
    near = {image: gpa_entries(image, 12).total / SMALL**2 for image in (fine, coarse)}
    low_rank = low_rank_entries(BUDGET // 2, SMALL**2) / SMALL**2
    known = {
        "Full": float(SMALL**2),
        "GPA(12), blocks of 4x4": near[coarse],
        "GPA(12), blocks of 2x2": near[fine],
        "GPA(Refine(TopK(48), 12)), blocks of 4x4": near[coarse] + 48,
        'GPA(12, far="block"), blocks of 2x2': near[fine] + far_entries(16, block=4),
        'GPA(12, far="site"), blocks of 2x2': near[fine] + fine.num_blocks,
        'GPA(Refine(TopK(48), 12), far="block"), blocks of 4x4': near[coarse]
        + 48
        + far_entries(16, block=16),
        "GPA(MultiLevel((64, 29), force=Own()), far=Bundles(32)), blocks of 2x2": 256 / 4
        + 64
        + 30 * 4
        + far_entries(32, block=4),
        "Nystrom(128)": low_rank,
        "Performer(128)": low_rank,
    }
    return {
        name: known[name] if name in known else float(masked(operator, coarse))
        for name, (operator, _) in operators(COMPONENTS).items()
    }


def masked(operator: Any, image: ndgpa.Grid) -> Tensor:
    return operator.mask(image).double().sum(dim=2).mean()


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


def far_entries(bundles: int, block: int) -> float:
    """Entries a query of reading so many bundles, and of asking three times for each block which
    landmark is nearest.

    Args:
        block: Sites of a block.
    """
    return bundles + 3 * bundles / block


def errors_of(photo: tuple[Tensor, Tensor]) -> Callable[[str], dict[str, Any]]:
    """Return what measures the errors of an operator by its name."""
    features, value = photo
    problems = {f"error_{k}": shared_by(k, features) for k in SHARED_BY}
    image = ndgpa.Image((SMALL, SMALL), 4)
    exact = {k: ndgpa.Full()(x, x, value, image) for k, x in problems.items()}
    entries, known = entries_of(), operators(COMPONENTS)

    @torch.no_grad()
    def measured(name: str) -> dict[str, Any]:
        operator, block = known[name]
        space = ndgpa.Image((SMALL, SMALL), block)
        off = {k: operator(x, x, value, space) - exact[k] for k, x in problems.items()}
        errors = {k: float(x.norm() / exact[k].norm()) for k, x in off.items()}
        return {"operator": name, "entries/query": entries[name], **errors}

    return measured


def cost_at(side: int, name: str) -> dict[str, float]:
    operator, block = operators(CHANNELS)[name]
    return cost(operator, ndgpa.Image((side, side), block * side // SMALL))


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
        forward_s, least = median_cpu_seconds(forward), peak_bytes(forward)
    both_s, most = median_cpu_seconds(both), peak_bytes(both)
    return {
        "forward_ms": 1000 * forward_s,
        "fb_ms": 1000 * both_s,
        "forward/tensors": least / tensors,
        "fb/tensors": most / tensors,
    }


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw the errors over the entries, GPA's in colour."""
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    shown = [row for row in rows if row["operator"] not in ("Full", "NoAttention")]
    for axes, keys in zip(figure.subplots(1, 3), SHARED_BY):
        for number, row in enumerate(shown):
            ours = row["operator"].startswith("GPA")
            axes.plot(
                row["entries/query"],
                row[f"error_{keys}"],
                "o" if ours else MARKS[number % len(MARKS)],
                color=f"C{number}" if ours else "grey",
                label=row["operator"],
            )
        axes.set(xscale="log", yscale="log", xlabel="entries of the affinity matrix a query")
        axes.set_title(f"{keys} keys share the attention", fontsize=10)
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].set_ylabel("relative error")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=7.5)
    figure.savefig(RESULTS / "operators.png", dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="64x64 only; writes nothing")
    parser.add_argument("--folder", type=Path, default=Path("runs/operators"))
    arguments = parser.parse_args()
    main(arguments.quick, arguments.folder)

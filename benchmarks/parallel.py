"""What does GPA send when a space is shared by many processes, and how long does it take?

    python benchmarks/parallel.py           # all; writes results/parallel*.json, .md, .png
    python benchmarks/parallel.py --quick   # the real processes only, at 64x64; writes nothing

Features: 5x5 patches of photographs (scikit-image), their 64 principal components brought to one
length, at the temperature 60; one head, values of 64 channels. Space: 256x256, blocks of 4x4, cells
of 2x2 blocks (the paper's pivot).

`parallel_bytes`: bytes that all ranks send in the forward, means and requests included, over those
of gathering K and V on every rank; mean of three photographs. `in order`, `Hilbert`: placements.
`by traffic`: the placement made from the selection itself; `of another layer`: from the selection
of random 5x5 filters of the same photograph, as a layer would use that of the one before it.

`parallel_real`: 1, 2 and 4 processes over gloo on this machine, Hilbert: bytes of keys, values and
means sent in the forward, as counted and as foretold; `both ways` all bytes, backward too; `held`
the most that torch's allocator held on a rank, inputs, outputs and gradients included, over the
bytes of query, key, value and output of the whole.

`parallel_simulated`: seconds of one forward at 512x512, 16 heads of 64 channels in bfloat16, on the
cluster that the file names. Ring attention attends to everything; `gather` is GPA after gathering K
and V; Ulysses is GPA with the heads shared out, so it ends at as many ranks as heads. Where a rank
computes and sends at once the larger counts, and of the ranks the slowest; every head selects as
the one that was measured. `*_bytes`: sent by all ranks.
"""

import argparse
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from measure import RESULTS, write
from skimage import data
from skimage.transform import resize
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from tqdm import tqdm

import ndgpa
import ndgpa.distributed
from ndgpa.analysis import peak_bytes
from ndgpa.distributed import (
    ByTraffic,
    CountBytes,
    Hilbert,
    InOrder,
    Layout,
    foretell,
    lay_out,
    traffic_of,
)

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea")
CHANNELS, TEMPERATURE, KAPPA, SEED = 64, 60.0, 12, 0
REQUEST = 8  # bytes of the number of a block


@dataclass(frozen=True)
class Cluster:
    """What a rank can do: matrix products as attention reaches them, and its link to the others."""

    flops: float = 300e12
    bytes_per_s: float = 50e9
    latency_s: float = 10e-6


def main(quick: bool) -> None:
    torch.manual_seed(SEED)
    if quick:
        print(*real(64), sep="\n")
        return
    write("parallel_real", "GPA over processes on this machine", real(256), kappa=KAPPA)
    rows = bytes_over_ranks()
    write("parallel_bytes", "Bytes sent, over those of gathering K and V", rows, seed=SEED)
    cluster = Cluster()
    simulated = simulate(cluster)
    note = "Seconds of a forward, simulated"
    write("parallel_simulated", note, simulated, cluster=asdict(cluster), kappa=KAPPA)
    plot(rows, simulated)


# Features


def patches(name: str, side: int) -> Tensor:
    """Features (1, 1, sites, CHANNELS) of a photograph, which are queries and keys."""
    seen = _unfolded(name, side)
    directions = torch.linalg.svd(seen[::7], full_matrices=False)[2][:CHANNELS]
    return _brought_to_length(seen @ directions.mT)


def filtered(name: str, side: int) -> Tensor:
    """Other features of it: random filters, rectified."""
    seen = _unfolded(name, side)
    filters = torch.randn(75, CHANNELS, generator=torch.Generator().manual_seed(SEED))
    return _brought_to_length(F.relu(seen @ filters))


def _unfolded(name: str, side: int) -> Tensor:
    picture = resize(getattr(data, name)(), (side, side), anti_aliasing=True).astype(np.float32)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None]
    padded = F.pad(pixels, (2, 2, 2, 2), mode="reflect")
    found = F.unfold(padded, 5)[0].mT
    return found - found.mean(dim=0)


def _brought_to_length(x: Tensor) -> Tensor:
    return (F.normalize(x, dim=1) * TEMPERATURE**0.5)[None, None]


def space(side: int) -> ndgpa.Grid:
    return ndgpa.Image((side, side), block=4, cell=2)


# Bytes


def bytes_over_ranks() -> list[dict[str, Any]]:
    sums: dict[tuple[int, int], dict[str, float]] = {}
    for name in tqdm(PHOTOGRAPHS, desc="bytes"):
        image, x, other = space(256), patches(name, 256), filtered(name, 256)
        for kappa in (4, KAPPA, 32):
            blocks = ndgpa.select(x, x, image, kappa).blocks
            before = ndgpa.select(other, other, image, kappa).blocks
            placements = {
                "in order": InOrder(),
                "Hilbert": Hilbert(),
                "of another layer": ByTraffic(traffic_of(before, image)),
                "by traffic": ByTraffic(traffic_of(blocks, image)),
            }
            for label, placement in placements.items():
                for ranks in (2, 4, 8, 16, 64, 256):
                    share = share_sent(blocks, lay_out(image, ranks, placement))
                    row = sums.setdefault((kappa, ranks), {})
                    row[label] = row.get(label, 0.0) + share / len(PHOTOGRAPHS)
    return [{"kappa": k, "ranks": r, **row} for (k, r), row in sums.items()]


def share_sent(blocks: Tensor, layout: Layout) -> float:
    """Bytes of all ranks over those of gathering K and V."""
    told = foretell(blocks, layout, heads=1, key_heads=1, features=(CHANNELS, CHANNELS))
    gathered = (layout.ranks - 1) * layout.structure.num_sites * 2 * CHANNELS * 4
    return float(told.sent.sum() + told.units.sum() * REQUEST) / gathered


# Real processes


def real(side: int) -> list[dict[str, Any]]:
    rows = []
    for ranks in (1, 2, 4):
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(_work, (ranks, folder, side), ranks)
            found = [torch.load(Path(folder) / f"{rank}") for rank in range(ranks)]
        tensors = 4 * side * side * CHANNELS * 4
        held = max(answer["held"] for answer in found) / tensors
        rows.append(
            {
                "ranks": ranks,
                "sent": sum(answer["sent"] for answer in found),
                "foretold": sum(answer["foretold"] for answer in found),
                "both ways": sum(answer["both"] for answer in found),
                "held": held,
                "held by one/held": rows[0]["held"] / held if rows else 1.0,
            }
        )
    return rows


def _work(rank: int, ranks: int, folder: str, side: int) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("context",))
    image, x = space(side), patches("coffee", side)
    part = ndgpa.distributed.shard(image, mesh, Hilbert())
    own = [part.take(x).clone().requires_grad_() for _ in range(3)]

    def both() -> None:
        out = ndgpa.distributed.gpa(*own, part, KAPPA)
        out.backward(torch.ones_like(out))

    with CountBytes() as forward, torch.no_grad():
        ndgpa.distributed.gpa(*own, part, KAPPA)
    with CountBytes() as whole:
        both()
    blocks = ndgpa.select(x, x, image, KAPPA).blocks
    told = foretell(blocks, part.layout, heads=1, key_heads=1, features=(CHANNELS, CHANNELS))
    for leaf in own:
        leaf.grad = None
    answer = {
        "sent": forward.blocks + forward.means,
        "foretold": int(told.sent[rank]),
        "both": whole.total,
        "held": peak_bytes(both) + sum(leaf.nbytes for leaf in own),
    }
    torch.save(answer, Path(folder) / f"{rank}")
    dist.destroy_process_group()


# A cluster


def simulate(cluster: Cluster, side: int = 512, heads: int = 16) -> list[dict[str, Any]]:
    image, x = space(side), patches("coffee", side)
    blocks = ndgpa.select(x, x, image, KAPPA).blocks
    rows = []
    for ranks in tqdm([2**power for power in range(1, 11)], desc="simulated"):
        layout = lay_out(image, ranks, Hilbert())
        rows.append({"ranks": ranks, **times(blocks, layout, cluster, heads)})
    return rows


def times(blocks: Tensor, layout: Layout, cluster: Cluster, heads: int) -> dict[str, Any]:
    """Seconds of a forward, each head selecting as the one given."""
    image, ranks, number = layout.structure, layout.ranks, 2  # bytes of a number
    told = foretell(
        blocks, layout, heads=1, key_heads=1, features=(CHANNELS, CHANNELS), itemsize=number
    )
    sites = image.num_sites / ranks
    coarse = 2 * heads * CHANNELS * image.num_blocks**2 / ranks / cluster.flops
    read = blocks.shape[3] * image.sites_per_block
    fine = 4 * heads * sites * read * CHANNELS / cluster.flops
    moved = heads * torch.maximum(told.units.sum(dim=0), told.units.sum(dim=1)) * told.unit_bytes
    means = heads * told.means_bytes / cluster.bytes_per_s
    foreign = share_foreign(blocks, layout)
    wire = float(moved.max()) / cluster.bytes_per_s + 2 * cluster.latency_s
    gpa = cluster.latency_s + means + coarse + max(wire, (1 - foreign) * fine) + foreign * fine
    rows = heads * sites * CHANNELS * number / cluster.bytes_per_s  # one tensor of a rank
    gather = cluster.latency_s + 2 * (ranks - 1) * rows + coarse + fine
    dense = 4 * heads * sites * sites * CHANNELS / cluster.flops
    ring = ranks * max(dense, 2 * rows + cluster.latency_s)
    ulysses = None
    if ranks <= heads:
        ulysses = coarse + fine + 2 * cluster.latency_s + 4 * rows * (ranks - 1) / ranks
    return {
        "gpa": gpa,
        "gather": gather,
        "ulysses": ulysses,
        "ring": ring,
        "gpa_bytes": heads * float(told.sent.sum()),
        "gather_bytes": 2.0 * heads * (ranks - 1) * image.num_sites * CHANNELS * number,
        "ulysses_bytes": None
        if ulysses is None
        else 4.0 * heads * image.num_sites * CHANNELS * number * (ranks - 1) / ranks,
        "ring_bytes": 2.0 * heads * (ranks - 1) * image.num_sites * CHANNELS * number,
    }


def share_foreign(blocks: Tensor, layout: Layout) -> float:
    """The share of slots that name a block of another rank, on the rank with the most."""
    shares = []
    for rank in range(layout.ranks):
        own = blocks[:, :, layout.cells_of(rank)]
        own = own[own >= 0].long()
        shares.append(float((layout.rank_of_block[own] != rank).double().mean()))
    return max(shares)


def plot(rows: list[dict[str, Any]], simulated: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    pivot = [row for row in rows if row["kappa"] == KAPPA]
    for label in ("in order", "Hilbert", "of another layer", "by traffic"):
        left.plot([r["ranks"] for r in pivot], [r[label] for r in pivot], "o-", label=label)
    left.axhline(0.2, color="grey", linestyle=":")
    left.set(
        xlabel="ranks", ylabel="bytes / bytes of gathering K and V", xscale="log", ylim=(0, None)
    )
    left.set_title("256x256, kappa 12: bytes sent, by placement", fontsize=10)
    left.legend()
    for label in ("ring", "gather", "ulysses", "gpa"):
        known = [row for row in simulated if row[label] is not None]
        milliseconds = [1000 * r[label] for r in known]
        right.plot([r["ranks"] for r in known], milliseconds, "o-", label=label)
    right.set(xlabel="ranks", ylabel="milliseconds, simulated", xscale="log", yscale="log")
    right.set_title("512x512, 16 heads: one forward", fontsize=10)
    right.legend()
    for axes, ticks in ((left, pivot), (right, simulated)):
        axes.set_xticks([row["ranks"] for row in ticks], [str(row["ranks"]) for row in ticks])
        axes.minorticks_off()
    figure.savefig(RESULTS / "parallel.png", dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    main(parser.parse_args().quick)

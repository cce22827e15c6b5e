"""How long does a training step of a graph transformer's layer take, with GPA and with GPSConv?

    python benchmarks/graph_layers.py [--quick]

One graph of points in a cube, each joined to its 6 nearest; 64 channels, 4 heads, messages passed
by `GCNConv`; a step is a forward and a backward of one layer. "GPSConv" is PyTorch Geometric's,
with its attention of all nodes ("multihead") and its linear one ("performer"); "GPAConv" reads 12
blocks of 16 nodes in cells of 4 blocks, its structure made once before. One thread, seconds of
processor time, on a machine that others use: look at the ratios.

Columns: `nodes`; `layer`; `step_s` seconds of a step, the least of three (of one at the largest);
`times` that of GPSConv's multihead over it; `peak_MB` the most that torch's allocator held in a
step above what it held before; `structure_s` seconds to make the structure.
"""

import argparse
import time
from typing import Any

import torch
from measure import write
from scipy.spatial import KDTree
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv, GPSConv
from tqdm import tqdm

from ndgpa.analysis import peak_bytes
from ndgpa.integrations.pyg import GPACoarsening, GPAConv, structure_of

CHANNELS, HEADS = 64, 4
SIZES = (1_000, 10_000)


def graph(nodes: int) -> Data:
    position = torch.rand(nodes, 3)
    near = torch.from_numpy(KDTree(position.numpy()).query(position.numpy(), 7)[1][:, 1:])
    source = torch.arange(nodes)[:, None].expand_as(near)
    edges = torch.stack([source.flatten(), near.flatten()])
    return Data(x=torch.randn(nodes, CHANNELS), edge_index=edges)


def layers() -> dict[str, nn.Module]:
    def conv() -> nn.Module:
        return GCNConv(CHANNELS, CHANNELS)

    return {
        "GPSConv": GPSConv(CHANNELS, conv(), HEADS),
        "GPSConv, performer": GPSConv(CHANNELS, conv(), HEADS, attn_type="performer"),
        "GPAConv": GPAConv(CHANNELS, HEADS, conv()),
    }


def rows(nodes: int, repeats: int) -> list[dict[str, Any]]:
    data, found = graph(nodes), []
    begin = time.process_time()
    structure = structure_of(GPACoarsening(block=16, cell=4)(data))
    made = time.process_time() - begin
    for name, layer in layers().items():
        ours = name == "GPAConv"
        options = {"structure": structure} if ours else {}

        def step(layer: nn.Module = layer, options: dict[str, Any] = options) -> Tensor:
            loss = layer(data.x, data.edge_index, **options).square().mean()
            loss.backward()
            return loss

        peak = peak_bytes(step)
        times = []
        for _ in range(repeats):
            begin = time.process_time()
            step()
            times.append(time.process_time() - begin)
        row = {"nodes": nodes, "layer": name, "step_s": min(times), "peak_MB": peak / 1e6}
        found.append(row | ({"structure_s": made} if ours else {}))
    return [{**row, "times": found[0]["step_s"] / row["step_s"]} for row in found]


def main(quick: bool) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    found = []
    for nodes in tqdm(SIZES[:1] if quick else SIZES):
        found += rows(nodes, 3 if nodes < SIZES[-1] else 1)
    for row in found:
        print(row)
    if not quick:
        note = "the machine was shared by others; seconds are of the processor"
        question = __doc__.splitlines()[0] if __doc__ else ""
        write("graph_layers", question, found, channels=CHANNELS, heads=HEADS, seed=0, note=note)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="the smallest, no result file")
    main(parser.parse_args().quick)

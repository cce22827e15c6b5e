"""The network of both examples: message passing and an attention side by side, three times."""

import torch
from torch import Tensor, nn
from torch_geometric.nn import SAGEConv

import ndgpa
from ndgpa.integrations.pyg import GPAConv

OPERATORS: dict[str, ndgpa.operators.Operator] = {
    "message passing": ndgpa.Nothing(),
    "gpa": ndgpa.GPA(12),
    "dense": ndgpa.Full(),
}


class GraphNetwork(nn.Module):
    """Features of nodes to predictions for nodes.

    Args:
        inputs, outputs: Features of a node, in and out.
        operator: The attention of every layer. `Nothing()` leaves message passing alone, in a
            network of the same form.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        operator: ndgpa.operators.Operator,
        channels: int = 48,
        heads: int = 4,
        layers: int = 3,
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(inputs, channels)
        self.layers = nn.ModuleList(
            GPAConv(channels, heads, SAGEConv(channels, channels), operator) for _ in range(layers)
        )
        self.leave = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, outputs)
        )

    def forward(
        self, x: Tensor, edge_index: Tensor, structure: ndgpa.SpatialStructure
    ) -> Tensor:  # (n, inputs) -> (n, outputs)
        x = self.enter(x)
        for layer in self.layers:
            x = layer(x, edge_index, structure=structure)
        return self.leave(x)


class Recorder:
    """An operator that keeps the queries and keys of its last call, for pictures."""

    def __init__(self, operator: ndgpa.GPA) -> None:
        self.operator = operator

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *args: object, **more: object
    ) -> Tensor:
        self.query, self.key = query.detach(), key.detach()
        return self.operator(query, key, value, *args, **more)  # type: ignore[arg-type]

    def keys_of(
        self, site: int, structure: ndgpa.SpatialStructure
    ) -> tuple[Tensor, Tensor]:  # (sites,), (sites,)
        """The sites that a site reads, each once, and its largest weight over the heads."""
        selection = ndgpa.select(self.query, self.key, structure, self.operator.rule)
        kept = selection.blocks[0, :, structure.cell_of_site[site]]  # (heads, kept)
        weight = torch.zeros(structure.num_sites)
        for head, blocks in enumerate(kept):
            sites = structure.upsample(blocks).flatten()
            sites = sites[sites >= 0]
            logits = self.key[0, head, sites] @ self.query[0, head, site]
            share = (logits * self.query.shape[-1] ** -0.5).softmax(dim=0)
            weight[sites] = torch.maximum(weight[sites], share)
        read = weight.nonzero()[:, 0]
        return read, weight[read]

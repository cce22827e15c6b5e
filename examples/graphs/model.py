"""The network of both examples: message passing and an attention side by side, three times."""

import copy

import torch
from torch import Tensor, nn
from torch_geometric.nn import SAGEConv

import ndgpa
from examples.common.attention import operator_of
from examples.graphs.sample import Sample
from ndgpa.analysis import key_weights
from ndgpa.integrations.pyg import GPAConv

SCALE = 4.0  # with 1/sqrt(d) attention is nearly uniform at first, and learns late

NAMES = {
    "message passing": "NoAttention()",
    "gpa": "GPA(16, coarse=add)",  # what the whole is like, from block means
    "dense": "Full()",
}


def operator(name: str) -> ndgpa.operators.Operator:
    """Make an attention of one of `NAMES`, or any other that `operator_of` knows."""
    return operator_of(name, NAMES, scale=SCALE)


class GraphNetwork(nn.Module):
    """Features of nodes to predictions for nodes.

    Args:
        inputs, outputs: Features of a node, in and out.
        operator: The attention of every layer. `NoAttention()` leaves message passing alone, in a
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
        self.enter = nn.Sequential(
            nn.Linear(inputs, channels), nn.ReLU(), nn.Linear(channels, channels)
        )
        self.layers = nn.ModuleList(
            GPAConv(channels, heads, SAGEConv(channels, channels), operator) for _ in range(layers)
        )
        self.leave = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, outputs)
        )

    @property
    def operator(self) -> ndgpa.operators.Operator:
        """The attention of every layer."""
        return self.layers[0].attention.operator

    def attending_by(self, operator: ndgpa.operators.Operator) -> "GraphNetwork":
        """Copy the network, with another attention in every layer."""
        copied = copy.deepcopy(self)
        for layer in copied.layers:
            layer.attention.operator = operator
        return copied

    def forward(
        self, x: Tensor, edge_index: Tensor, structure: ndgpa.SpatialStructure
    ) -> Tensor:  # (n, inputs) -> (n, outputs)
        x = self.enter(x)
        for layer in self.layers:
            x = layer(x, edge_index, structure=structure)
        return self.leave(x)


def first_gpa(networks: dict[str, GraphNetwork]) -> str | None:
    """Name the first network that attends by GPA, for pictures of what it reads."""
    return next(
        (name for name, x in networks.items() if isinstance(x.operator, ndgpa.GPA)),
        None,
    )


class Recorder:
    """An operator that keeps the queries and keys of its last call, for pictures."""

    def __init__(self, operator: ndgpa.GPA) -> None:
        self.operator = operator

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *args: object, **more: object
    ) -> Tensor:
        self.query, self.key = query.detach(), key.detach()
        return self.operator(query, key, value, *args, **more)  # type: ignore[arg-type]


@torch.no_grad()
def reads_of(
    network: GraphNetwork, sample: Sample, site: int, layer: int = -1
) -> tuple[Tensor, Tensor]:  # (sites,), (sites,)
    """Find the sites that a site reads in a layer of GPA, each with its largest weight."""
    attention = network.layers[layer].attention
    operator = attention.operator
    attention.operator = recorder = Recorder(operator)
    network(sample.x, sample.edge_index, sample.structure)
    attention.operator = operator
    given = (recorder.query, recorder.key)
    selection = ndgpa.select(*given, sample.structure, operator.rule, scale=operator.scale)
    sites, weights = key_weights(
        *given, selection, sample.structure, torch.tensor([site]), scale=operator.scale
    )
    weight = torch.zeros(sample.structure.num_sites)
    for head in range(sites.shape[1]):
        seen = sites[0, head, 0] >= 0
        at = sites[0, head, 0, seen]
        weight[at] = torch.maximum(weight[at], weights[0, head, 0, seen])
    read = weight.nonzero()[:, 0]
    return read, weight[read]

"""A small transformer over the sites of a video: it gives each site its colour."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

import ndgpa
from examples.video.parallel.data import FEATURES
from ndgpa.operators import Operator


class Layer(nn.Module):
    """Attention and a small network, each added to what was there."""

    def __init__(self, width: int, heads: int, operator: Operator) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention = ndgpa.nn.SpatialAttention(width, heads, operator=operator)
        self.mix = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(
        self, x: Float[Tensor, "b n d"], space: ndgpa.SpatialStructure
    ) -> Float[Tensor, "b n d"]:
        x = x + self.attention(self.norms[0](x), space)
        return x + self.mix(self.norms[1](x))


class Net(nn.Module):
    """Layers between two linear maps; `space` may be a whole or the part of a process."""

    def __init__(
        self, operator: Operator, width: int = 32, heads: int = 2, layers: int = 2
    ) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, width), nn.Linear(width, 3)
        self.layers = nn.ModuleList([Layer(width, heads, operator) for _ in range(layers)])

    def forward(
        self, x: Float[Tensor, "b n f"], space: ndgpa.SpatialStructure
    ) -> Float[Tensor, "b n 3"]:
        x = self.first(x)
        for layer in self.layers:
            x = torch.utils.checkpoint.checkpoint(layer, x, space, use_reentrant=False)
        return self.last(x).clone()  # FSDP2 wants no view

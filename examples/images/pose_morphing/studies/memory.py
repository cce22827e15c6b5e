"""What the attention of each level takes in memory."""

import torch

from examples.images.pose_morphing.model import Level
from ndgpa.analysis import peak_bytes


def attention_bytes(level: Level, value_channels: int) -> int:
    """The most that forward and backward of this level's attention hold at once, one picture.

    Queries, keys and values do not count, their gradients and the output do. Source: footnote 3 of
    Jetchev et al. 2021, who measured a GPU's allocator so.

    Args:
        level: Of a morph; its shapes count, and its device.
        value_channels: Features of the values.
    """
    query, key = (x[:1].detach().float().requires_grad_() for x in (level.query, level.key))
    value = torch.ones(*key.shape[:3], value_channels, device=key.device, requires_grad=True)

    def forward_and_backward() -> None:
        level.operator(query, key, value, level.structure).sum().backward()

    forward_and_backward()  # tables that a structure keeps are not of this call
    for x in (query, key, value):
        x.grad = None
    return peak_bytes(forward_and_backward, key.device)

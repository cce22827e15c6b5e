"""Layers whose weight is divided by its largest singular value; biases begin at 0.

Source: Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks".
"""

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm


def linear(features: int, following: int) -> nn.Module:
    """Make a dense layer."""
    return _normed(nn.Linear(features, following))


def conv(channels: int, following: int, kernel: int = 3, bias: bool = True) -> nn.Module:
    """Make a convolution that keeps the size."""
    return _normed(nn.Conv2d(channels, following, kernel, padding=kernel // 2, bias=bias))


def _normed(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return spectral_norm(layer)

"""The convolutions of StyleGAN2 (Karras et al. 2020) in plain torch, so that any derivative works.

Weights are stored with unit variance and scaled at run time (equalised learning rate).
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

SLOPE = 0.2  # of the leaky ReLU
GAIN = math.sqrt(2 / (1 + SLOPE**2))  # keeps the variance through the leaky ReLU


class Conv(nn.Module):
    """A convolution with equalised learning rate, "same" padding and a bias.

    Args:
        channels_in, channels_out: Widths.
        kernel: Side of the square kernel, odd.
        stride: 1, or 2 to halve the picture.
        lr: Learning-rate multiplier of the weights: they are stored that many times smaller, so a
            step of Adam changes them relatively that many times more. 1 in StyleGAN2; about 12 is
            what convolutions with ordinary initialisation have.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int = 3,
        stride: int = 1,
        lr: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, kernel, kernel) / lr)
        self.bias = nn.Parameter(torch.zeros(channels_out))
        self.scale = lr / math.sqrt(channels_in * kernel**2)
        self.stride = stride

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o k l"]:
        padding = self.weight.shape[-1] // 2
        return F.conv2d(x, self.weight * self.scale, self.bias, self.stride, padding)


class ModulatedConv(nn.Module):
    """A 3x3 convolution whose input channels are scaled by a style; the output is demodulated.

    Source: Karras et al. 2020, equations 1 and 3, in the form that scales activations and not
    weights: one convolution for the whole batch.
    """

    def __init__(self, channels_in: int, channels_out: int, style: int, lr: float = 1.0) -> None:
        super().__init__()
        self.conv = Conv(channels_in, channels_out, lr=lr)
        self.to_scale = Linear(style, channels_in, bias=1.0)

    def forward(
        self, x: Float[Tensor, "b i h w"], style: Float[Tensor, "b s"]
    ) -> Float[Tensor, "b o h w"]:
        scale = self.to_scale(style)
        weight = self.conv.weight * self.conv.scale
        squares = weight.square().sum((2, 3))  # (o, i)
        demodulation = (scale.square() @ squares.T + 1e-8).rsqrt()
        y = F.conv2d(x * rearrange(scale, "b i -> b i 1 1"), weight, padding=1)
        y = y * rearrange(demodulation, "b o -> b o 1 1")
        return y + rearrange(self.conv.bias, "o -> o 1 1")


class Linear(nn.Module):
    """A dense layer with equalised learning rate."""

    def __init__(self, features_in: int, features_out: int, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features_out, features_in))
        self.bias = nn.Parameter(torch.full((features_out,), bias))
        self.scale = features_in**-0.5

    def forward(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        return F.linear(x, self.weight * self.scale, self.bias)


class Noise(nn.Module):
    """One map of noise for all channels, times a learnt strength that begins at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(()))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.strength * torch.randn_like(x[:, :1])


def activate(x: Tensor) -> Tensor:
    """Apply a leaky ReLU that keeps the variance."""
    return F.leaky_relu(x, SLOPE) * GAIN


def merge(x: Tensor, y: Tensor) -> Tensor:
    """Add two branches, and keep the variance of one."""
    return (x + y) * math.sqrt(0.5)


def blur(x: Float[Tensor, "b c h w"], gain: float = 1.0) -> Float[Tensor, "b c h w"]:
    """Smooth by the outer product of (1, 3, 3, 1) / 8 with itself; the picture grows by one."""
    kernel = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype, device=x.device) / 8
    kernel = (gain * kernel.outer(kernel)).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(F.pad(x, (2, 2, 2, 2)), kernel, groups=x.shape[1])


def halve(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h/2 w/2"]:
    """Halve the size by the smoothing of StyleGAN2."""
    return blur(x)[:, :, 1:-1:2, 1:-1:2]


def double(x: Float[Tensor, "b c h w"], smooth: bool) -> Float[Tensor, "b c 2*h 2*w"]:
    """Double the size: by the smoothing of StyleGAN2, or bilinearly."""
    if not smooth:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    spread = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    spread[:, :, ::2, ::2] = x
    return blur(spread, gain=4.0)[:, :, :-1, :-1]

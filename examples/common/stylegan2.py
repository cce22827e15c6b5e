"""The parts of StyleGAN2 (Karras et al. 2020) in plain torch, so that any derivative works.

Weights are stored with unit variance and scaled at run time (equalised learning rate).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
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
    """A dense layer with equalised learning rate.

    Args:
        features_in, features_out: Widths.
        bias: What the biases begin at.
        lr: Learning-rate multiplier: weights are stored that many times larger, biases that many
            times less.
    """

    def __init__(
        self, features_in: int, features_out: int, bias: float = 0.0, lr: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features_out, features_in) / lr)
        self.bias = nn.Parameter(torch.full((features_out,), bias))
        self.scale, self.lr = lr * features_in**-0.5, lr

    def forward(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        return F.linear(x, self.weight * self.scale, self.bias * self.lr)


class Mapping(nn.Module):
    """Dense layers from a latent, brought to unit mean square, to a style of as many features."""

    def __init__(self, features: int, layers: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(features, features, lr=0.01) for _ in range(layers))

    def forward(self, latent: Float[Tensor, "b style"]) -> Float[Tensor, "b style"]:
        x = latent * (latent.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE) * math.sqrt(2)
        return x


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


def halve(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h/2 w/2"]:
    """Halve the size by the smoothing of StyleGAN2: (1, 3, 3, 1) / 8 along each axis."""
    return F.conv2d(x, smoothing(x), stride=2, padding=1, groups=x.shape[1])


def double(x: Float[Tensor, "b c h w"], smooth: bool) -> Float[Tensor, "b c 2*h 2*w"]:
    """Double the size: by the smoothing of StyleGAN2, or bilinearly."""
    if not smooth:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    return F.conv_transpose2d(x, 4 * smoothing(x), stride=2, padding=1, groups=x.shape[1])


def smoothing(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "c 1 4 4"]:
    """Return the kernel for each channel; it sums to 1."""
    line = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype, device=x.device) / 8
    return line.outer(line).expand(x.shape[1], 1, 4, 4)


class ResidualDown(nn.Module):
    """Half the size: the residual block of StyleGAN2's discriminator."""

    def __init__(self, channels_in: int, channels_out: int, lr: float = 1.0) -> None:
        super().__init__()
        self.first = Conv(channels_in, channels_in, lr=lr)
        self.second = Conv(channels_in, channels_out, lr=lr)
        self.skip = Conv(channels_in, channels_out, 1, lr=lr)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h/2 w/2"]:
        y = activate(self.second(halve(activate(self.first(x)))))
        return merge(y, self.skip(halve(x)))


class Discriminator(nn.Module):
    """The residual discriminator of StyleGAN2.

    Source: Karras et al. 2020.

    Args:
        channels_in: Of all that it judges together.
        widths: Channels at each size, the finest first; each size is half of the one before.
        area: Sites at the last size.
    """

    def __init__(self, channels_in: int, widths: Sequence[int], area: int) -> None:
        super().__init__()
        self.stem = Conv(channels_in, widths[0], 1)
        self.blocks = nn.ModuleList(ResidualDown(i, o) for i, o in pairwise(widths))
        self.last = Conv(widths[-1] + 1, widths[-1])
        self.dense = Linear(widths[-1] * area, widths[-1])
        self.out = Linear(widths[-1], 1)

    def forward(self, *judged: Float[Tensor, "b _ h w"]) -> Float[Tensor, " b"]:
        """Return one logit for each sample; higher is more real."""
        x = activate(self.stem(torch.cat(judged, dim=1)))
        for block in self.blocks:
            x = block(x)
        x = activate(self.last(with_deviation(x)))
        return self.out(activate(self.dense(rearrange(x, "b c h w -> b (c h w)")))).squeeze(1)


def with_deviation(x: Float[Tensor, "b c h w"], group: int = 4) -> Float[Tensor, "b c+1 h w"]:
    """Append the standard deviation over a group of samples, averaged over features.

    The group is the largest divisor of the batch up to `group`, so that any batch will do.
    """
    size = max(g for g in range(1, group + 1) if len(x) % g == 0)
    groups = rearrange(x, "(g m) c h w -> g m c h w", g=size)
    deviation = (groups.var(dim=0, correction=0) + 1e-8).sqrt()
    deviation = reduce(deviation, "m c h w -> m", "mean")
    channel = repeat(deviation, "m -> (g m) 1 h w", g=size, h=x.shape[2], w=x.shape[3])
    return torch.cat([x, channel], dim=1)

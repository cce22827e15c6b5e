"""How the camera moved: one shift for each frame, found by correlating frames in pairs.

Shapes: t frames, h w pixels, p pairs. A path holds for each frame where its upper left pixel stands
in the scene, (x, y) in pixels; the first frame's stands at 0.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from examples.video.guess import shifted

LAGS = (1, 2, 4, 8, 16)  # frames between the two of a pair
LEAST_SEEN = 0.25  # share of a frame that must be sure for it to be compared
TOLERANCE_PX = 0.3  # of a pair, against the others
LEAST_OVERLAP = 0.25  # of two frames, against their largest


def camera_path(
    frames: Float[Tensor, "t 3 h w"], known: Bool[Tensor, "t 1 h w"]
) -> Float[Tensor, "t 2"]:
    """Find the path that best explains the shifts of all pairs; missing frames lie between.

    Pairs that do not agree with the others, as across a cut, count little.
    """
    detail, sure = _detail(frames, known)
    pairs = _pairs(sure.float().mean(dim=(1, 2)) >= LEAST_SEEN)
    if len(pairs) == 0:
        return torch.zeros(len(frames), 2)
    shift, likeness = _shifts(detail, sure, pairs)
    return _fit(len(frames), pairs, shift, likeness)


def _detail(
    frames: Float[Tensor, "t 3 h w"], known: Bool[Tensor, "t 1 h w"], width: int = 7
) -> tuple[Float[Tensor, "t h w"], Bool[Tensor, "t h w"]]:
    """Return what differs from its surroundings in brightness, and where all of these are known.

    Elsewhere holes and borders, which do not move with the scene, would show in it.
    """
    grey = F.avg_pool2d(frames.mean(dim=1, keepdim=True), 3, 1, 1)
    around = F.avg_pool2d(grey, width, 1, width // 2)
    sure = F.avg_pool2d(known.float(), width + 2, 1, width // 2 + 1) > 0.999
    return (grey - around)[:, 0], sure[:, 0]


def _pairs(seen: Bool[Tensor, " t"]) -> Int[Tensor, "p 2"]:
    """Pair frames that are seen with those a few places further on among them."""
    frames = seen.nonzero()[:, 0]
    pairs = [torch.stack([frames[:-lag], frames[lag:]], dim=1) for lag in LAGS]
    return torch.cat(pairs)


def _shifts(
    detail: Float[Tensor, "t h w"],
    sure: Bool[Tensor, "t h w"],
    pairs: Int[Tensor, "p 2"],
    at_a_time: int = 64,
) -> tuple[Float[Tensor, "p 2"], Float[Tensor, " p"]]:
    """Find the shift of each pair, to fractions of a pixel, and the correlation there."""
    shifts, heights = [], []
    for one, other in (some.unbind(dim=1) for some in pairs.split(at_a_time)):
        given = detail[one], sure[one], detail[other], sure[other]
        shift, height = _peaks(_correlation(*given))
        shifts.append(_refined(*given, shift))
        heights.append(height)
    return torch.cat(shifts), torch.cat(heights)


def _refined(
    a: Float[Tensor, "p h w"],
    a_sure: Bool[Tensor, "p h w"],
    b: Float[Tensor, "p h w"],
    b_sure: Bool[Tensor, "p h w"],
    shift: Float[Tensor, "p 2"],
    rounds: int = 4,
    tolerance: float = 0.03,
) -> Float[Tensor, "p 2"]:
    """Take Gauss-Newton steps towards the least difference; what moves by itself counts little.

    Source: Lucas and Kanade 1981.
    """
    table = torch.stack([a, *torch.gradient(a, dim=(2, 1)), a_sure.float()], dim=1)
    start = shift
    for _ in range(rounds):
        value, across, down, seen = shifted(table, shift).unbind(dim=1)
        error = value - b
        weight = (seen > 0.99) * b_sure / (1 + (error / tolerance) ** 2)
        slope = torch.stack([across, down], dim=-1).flatten(1, 2)  # (p, hw, 2)
        weighted = slope * weight.flatten(1)[..., None]
        matrix = weighted.mT @ slope + 1e-4 * torch.eye(2)
        step = torch.linalg.solve(matrix, weighted.mT @ error.flatten(1)[..., None])[..., 0]
        shift = shift - step.clamp(-0.5, 0.5)
    near = (shift - start).abs().amax(dim=1, keepdim=True) < 1
    return torch.where(near, shift, start)


def _correlation(
    a: Float[Tensor, "p h w"],
    a_known: Bool[Tensor, "p h w"],
    b: Float[Tensor, "p h w"],
    b_known: Bool[Tensor, "p h w"],
) -> Float[Tensor, "p v u"]:
    """Correlate what both know, for each shift (v, u) of b against a; -1 where that is little.

    Source: Padfield 2012, "Masked Object Registration in the Fourier Domain". Entry (v, u) compares
    a at (y + v, x + u) with b at (y, x); negative shifts are at the far ends.
    """
    size = (2 * a.shape[1], 2 * a.shape[2])
    mean = (a * a_known).sum() / a_known.sum()
    a, b = (a - mean) * a_known, (b - mean) * b_known
    spectra = [torch.fft.rfft2(x.float(), s=size) for x in (a, a_known, a * a, b, b_known, b * b)]
    fa, fma, faa, fb, fmb, fbb = spectra

    def correlate(x: Tensor, y: Tensor) -> Tensor:
        return torch.fft.irfft2(x * y.conj(), s=size)

    count = correlate(fma, fmb).clamp(min=1)
    sum_a, sum_b = correlate(fa, fmb), correlate(fma, fb)
    both = correlate(fa, fb) - sum_a * sum_b / count
    var_a = (correlate(faa, fmb) - sum_a**2 / count).clamp(min=0)
    var_b = (correlate(fma, fbb) - sum_b**2 / count).clamp(min=0)
    likeness = both / ((var_a * var_b).sqrt() + 1e-3 * count.sqrt())
    most = count.amax(dim=(1, 2), keepdim=True)
    likeness = likeness * (count / most) ** 0.25  # of two alike, what overlaps more
    return likeness.masked_fill(count < LEAST_OVERLAP * most, -1)


def _peaks(
    likeness: Float[Tensor, "p v u"],
) -> tuple[Float[Tensor, "p 2"], Float[Tensor, " p"]]:
    """Find the highest place of each, refined by a parabola along each axis, and its height.

    The height is 0 where it may be higher beyond the shifts that were compared.
    """
    _, rows, columns = likeness.shape
    height, place = likeness.flatten(1).max(dim=1)
    v, u = place // columns, place % columns
    each = torch.arange(len(likeness))
    shifts, at_edge = [], height < 0
    for middle, size, at in (
        (u, columns, lambda i: likeness[each, v, i % columns]),
        (v, rows, lambda i: likeness[each, i % rows, u]),
    ):
        before, after = at(middle - 1), at(middle + 1)
        bend = (2 * height - before - after).clamp(min=1e-6)
        at_edge |= torch.minimum(before, after) == -1
        whole = torch.where(middle > size // 2, middle - size, middle)
        shifts.append(whole + ((after - before) / (2 * bend)).clamp(-0.5, 0.5))
    return torch.stack(shifts, dim=1), height.masked_fill(at_edge, 0)


def _fit(
    frames: int,
    pairs: Int[Tensor, "p 2"],
    shift: Float[Tensor, "p 2"],
    likeness: Float[Tensor, " p"],
    rounds: int = 20,
) -> Float[Tensor, "t 2"]:
    """Fit the differences along the path by least squares; a pair that is off loses its weight."""
    rows = F.one_hot(pairs[:, 1], frames) - F.one_hot(pairs[:, 0], frames)
    bends = torch.zeros(frames, frames)  # frames without a pair lie between the others
    for i in range(1, frames - 1):
        bends[i, i - 1 : i + 2] = torch.tensor([1.0, -2.0, 1.0])
    rows, shift = rows.double(), shift.double()
    trust = likeness.clamp(min=0.03).double() ** 4
    weight = trust
    stiff = 1e-4 * bends.double().T @ bends.double() + 1e-8 * torch.eye(frames)
    for _ in range(rounds):
        weighted = rows * weight[:, None]
        path = torch.linalg.solve(weighted.T @ rows + stiff, weighted.T @ shift)
        error = (rows @ path - shift).square().sum(dim=1)
        weight = trust / (1 + error / TOLERANCE_PX**2)
    return (path - path[0]).float()

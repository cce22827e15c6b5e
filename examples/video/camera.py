"""How the camera moved: one shift for each frame, found by correlating frames in pairs.

Shapes: t frames, h w pixels, p pairs. A path holds for each frame where its upper left pixel stands
in the scene, (x, y) in pixels; the first frame's stands at 0.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

LAGS = (1, 2, 4, 8, 16)  # frames between the two of a pair
LEAST_SEEN = 0.3  # share of a frame that must be known for it to be compared
LEAST_OVERLAP = 0.25  # share of the frame that two must have in common


def camera_path(
    frames: Float[Tensor, "t 3 h w"], known: Bool[Tensor, "t 1 h w"]
) -> Float[Tensor, "t 2"]:
    """The path that explains the shifts of all pairs best; frames that are missing lie between.

    Pairs that do not agree with the others, as across a cut, count little.
    """
    seen = known.float().mean(dim=(1, 2, 3)) >= LEAST_SEEN
    pairs = _pairs(seen)
    if len(pairs) == 0:
        return torch.zeros(len(frames), 2)
    shift, likeness = _shifts(_detail(frames, known)[:, 0], known[:, 0], pairs)
    return _fit(len(frames), pairs, shift, likeness)


def _detail(
    frames: Float[Tensor, "t 3 h w"], known: Bool[Tensor, "t 1 h w"], width: int = 7
) -> Float[Tensor, "t 1 h w"]:
    """What is brighter or darker than its surroundings, as far as they are known."""
    grey, weight = frames.mean(dim=1, keepdim=True) * known, known.float()
    grey, weight = (F.avg_pool2d(x, 3, 1, 1) for x in (grey, weight))
    around, seen = (F.avg_pool2d(x, width, 1, width // 2) for x in (grey, weight))
    detail = grey / weight.clamp(min=0.01) - around / seen.clamp(min=0.01)
    return detail * known


def _pairs(seen: Bool[Tensor, " t"]) -> Int[Tensor, "p 2"]:
    """Frames that are seen, with those a few places further on among them."""
    frames = seen.nonzero()[:, 0]
    pairs = [torch.stack([frames[:-lag], frames[lag:]], dim=1) for lag in LAGS]
    return torch.cat(pairs)


def _shifts(
    grey: Float[Tensor, "t h w"],
    known: Bool[Tensor, "t h w"],
    pairs: Int[Tensor, "p 2"],
    at_a_time: int = 64,
) -> tuple[Float[Tensor, "p 2"], Float[Tensor, " p"]]:
    """The shift of each pair, to fractions of a pixel, and the correlation there."""
    parts = [
        _peaks(
            _correlation(grey[some[:, 0]], known[some[:, 0]], grey[some[:, 1]], known[some[:, 1]])
        )
        for some in pairs.split(at_a_time)
    ]
    return torch.cat([shift for shift, _ in parts]), torch.cat([height for _, height in parts])


def _correlation(
    a: Float[Tensor, "p h w"],
    a_known: Bool[Tensor, "p h w"],
    b: Float[Tensor, "p h w"],
    b_known: Bool[Tensor, "p h w"],
) -> Float[Tensor, "p v u"]:
    """Correlation of what both know, for each shift (v, u) of b against a; -1 where that is little.

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
    enough = count >= LEAST_OVERLAP * a.shape[1] * a.shape[2]
    return likeness.masked_fill(~enough, -1)


def _peaks(
    likeness: Float[Tensor, "p v u"],
) -> tuple[Float[Tensor, "p 2"], Float[Tensor, " p"]]:
    """The highest place of each, refined by a parabola along each axis, and its height."""
    _, rows, columns = likeness.shape
    height, place = likeness.flatten(1).max(dim=1)
    v, u = place // columns, place % columns
    each = torch.arange(len(likeness))
    shifts = []
    for middle, size, at in (
        (u, columns, lambda i: likeness[each, v, i % columns]),
        (v, rows, lambda i: likeness[each, i % rows, u]),
    ):
        before, after = at(middle - 1), at(middle + 1)
        bend = (2 * height - before - after).clamp(min=1e-6)
        whole = torch.where(middle > size // 2, middle - size, middle)
        shifts.append(whole + ((after - before) / (2 * bend)).clamp(-0.5, 0.5))
    return torch.stack(shifts, dim=1), height


def _fit(
    frames: int,
    pairs: Int[Tensor, "p 2"],
    shift: Float[Tensor, "p 2"],
    likeness: Float[Tensor, " p"],
    rounds: int = 10,
) -> Float[Tensor, "t 2"]:
    """Least squares for the differences along the path; a pair that is off loses its weight."""
    rows = F.one_hot(pairs[:, 1], frames) - F.one_hot(pairs[:, 0], frames)
    bends = torch.zeros(frames, frames)  # frames without a pair lie between the others
    for i in range(1, frames - 1):
        bends[i, i - 1 : i + 2] = torch.tensor([1.0, -2.0, 1.0])
    rows, shift = rows.double(), shift.double()
    trust = likeness.clamp(min=0.01).double() ** 4
    weight = trust
    stiff = 1e-4 * bends.double().T @ bends.double() + 1e-8 * torch.eye(frames)
    for _ in range(rounds):
        weighted = rows * weight[:, None]
        path = torch.linalg.solve(weighted.T @ rows + stiff, weighted.T @ shift)
        error = (rows @ path - shift).square().sum(dim=1)
        weight = trust / (1 + error)
    return (path - path[0]).float()

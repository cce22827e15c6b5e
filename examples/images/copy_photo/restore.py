"""One photograph, one method: the restored picture, how good it is and what it took."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from examples.common.measures import psnr, ssim
from examples.images.copy_photo.clock import timed
from examples.images.copy_photo.data import Task, distort
from examples.images.copy_photo.model import CopyNet, Question
from ndgpa import GPA, Grid, select
from ndgpa.analysis import coverage, key_weights, peak_bytes
from ndgpa.operators import Operator


@dataclass(frozen=True)
class Method:
    """A network, and where and with what it attends at full resolution."""

    label: str
    net: CopyNet
    structure: Grid
    operator: Operator


@dataclass(frozen=True)
class Lines:
    """Where chosen pixels of the target read in the source; see `ndgpa.analysis.key_weights`."""

    queries: Int[Tensor, " s"]
    keys: Int[Tensor, "s y"]
    weights: Float[Tensor, "s y"]


@dataclass(frozen=True)
class Result:
    method: str
    image: Float[Tensor, "3 h w"]
    psnr_db: float
    ssim: float
    seconds: float | None = None  # from the two inputs to the picture
    attention_s: float | None = None  # of that, in the operator
    attention_bytes: int | None = None  # the most that the operator holds at a time
    coverage: float | None = None  # of GPA
    lines: Lines | None = None  # of GPA


@torch.no_grad()
def restore(method: Method, task: Task) -> Result:
    """Run once for the clock and the attention once more for its memory."""
    net, size = method.net, (task.source.shape[2], task.source.shape[3])
    question, before_s = timed(lambda: net.ask(task.degraded, task.source, method.structure))

    def attend() -> Tensor:
        structure = question.structure
        return method.operator(question.query, question.key, question.value, structure)

    answer, attention_s = timed(attend)
    restored, after_s = timed(lambda: net.finish(question, answer, size))
    image = restored[0].clamp(0, 1)
    share, lines = None, None
    if isinstance(method.operator, GPA):
        share, lines = _look_into(question, method.operator)
    return Result(
        method.label,
        image,
        psnr(image, task.target[0]),
        ssim(image, task.target[0]),
        before_s + attention_s + after_s,
        attention_s,
        peak_bytes(attend),
        share,
        lines,
    )


def enlarged(task: Task) -> Result:
    """Enlarge the degraded target, for comparison."""
    size = tuple(task.source.shape[2:])
    image = F.interpolate(task.degraded, size, mode="bicubic").expand(-1, 3, -1, -1)
    return _judged("degraded, enlarged", image, task)


@torch.no_grad()
def resampled(net: CopyNet, task: Task) -> Result:
    """Resample the source along the matched map, as one can who knows that it is affine."""
    match = net.matcher(task.degraded, task.source, rounds=3)[-1]
    return _judged("resampling along the match", distort(task.source, match.theta), task)


def _judged(label: str, image: Float[Tensor, "1 3 h w"], task: Task) -> Result:
    image = image[0].clamp(0, 1)
    return Result(label, image, psnr(image, task.target[0]), ssim(image, task.target[0]))


def _look_into(question: Question, operator: GPA) -> tuple[float, Lines]:
    """Return the share of full attention that GPA keeps, and the keys of six pixels."""
    query, key, structure = question.query, question.key, question.structure
    selection = select(query, key, structure, operator.rule, scale=operator.scale)
    share = coverage(query, key, selection, structure, scale=operator.scale)
    height, width = structure.shape
    places = [(0.15, 0.35), (0.3, 0.6), (0.45, 0.2), (0.6, 0.7), (0.75, 0.3), (0.9, 0.5)]
    queries = torch.tensor([int(y * height) * width + int(x * width) for y, x in places])
    keys, weights = key_weights(query, key, selection, structure, queries, scale=operator.scale)
    return float(share.mean()), Lines(queries, keys[0, 0], weights[0, 0])

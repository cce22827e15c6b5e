"""What the custom operators of the package share."""

import contextlib
import functools
import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def fold_into_batch(op: Any, batched: int) -> Callable[..., Any]:
    """A vmap rule for an operator whose first `batched` arguments lead with the batch axis.

    The mapped axis becomes part of the batch; the other arguments must not be mapped.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        if any(dim is not None for dim in in_dims[batched:]):
            raise NotImplementedError(f"{op} is not mapped over its tables or options")
        size = info.batch_size
        folded = [
            _fold(x, dim, size) if isinstance(x, Tensor) else x
            for x, dim in zip(args[:batched], in_dims)
        ]
        out = op(*folded, *args[batched:])
        if isinstance(out, Tensor):
            return out.unflatten(0, (size, -1)), 0
        return tuple(x.unflatten(0, (size, -1)) for x in out), (0,) * len(out)

    return rule


def _fold(x: Tensor, dim: int | None, size: int) -> Tensor:
    x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.flatten(0, 1)


def without_autocast(like: Tensor) -> AbstractContextManager[Any]:
    """A context in which the body of an operator computes in the dtypes it was written in."""
    if like.is_meta:  # which has no autocast
        return contextlib.nullcontext()
    return torch.autocast(like.device.type, enabled=False)


def has_triton(like: Tensor) -> bool:
    """Whether kernels run on the device of a tensor without being asked for by name."""
    return like.is_cuda and importlib.util.find_spec("triton") is not None


def on_its_device(launch: Callable[..., T]) -> Callable[..., T]:
    """Make the GPU of the first argument the current one, on which Triton launches."""

    @functools.wraps(launch)
    def run(first: Tensor, *args: Any, **kwargs: Any) -> T:
        with torch.cuda.device_of(first):
            return launch(first, *args, **kwargs)

    return run


def cast_for_autocast(*xs: Tensor) -> list[Tensor]:
    """Cast as autocast casts the inputs of an attention; float64 stays."""
    device = xs[0].device.type
    if xs[0].is_meta or not torch.is_autocast_enabled(device) or xs[0].dtype == torch.float64:
        return list(xs)
    return [x.to(torch.get_autocast_dtype(device)) for x in xs]

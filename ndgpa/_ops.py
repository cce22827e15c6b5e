"""What the custom operators of the package share."""

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes

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


def differentiate_gradient(
    formula: Callable[[Any], Any],
    inputs: Any,
    names: Sequence[str],
    grad_outputs: list[Tensor],
    cotangents: Sequence[Tensor],
) -> tuple[list[Tensor | None], tuple[Tensor | None, ...]]:
    """Differentiate a backward that is an operator, as the gradient of a formula.

    Args:
        formula: Takes `inputs` and returns the outputs; differentiable twice.
        inputs: Those of the forward operator, a named tuple.
        names: What the gradient was taken by, the query first; None among the inputs is left out.
        grad_outputs: One for each output of the formula.
        cotangents: One for the gradient of each name; not looked at where the input is None.

    Returns:
        The gradients of `grad_outputs` and of each of the inputs; None for one of zeros.
    """
    taken = {n: c for n, c in zip(names, cotangents) if getattr(inputs, n) is not None}
    given = {name: getattr(inputs, name).detach().requires_grad_() for name in taken}
    slopes = [g.detach().requires_grad_() for g in grad_outputs]
    leaves = [*given.values(), *slopes]
    if leaves[0].numel() == 0:  # a graph of nothing has nothing to differentiate
        second: Sequence[Tensor | None] = [torch.zeros_like(x) for x in leaves]
    else:
        with torch.enable_grad(), without_autocast(leaves[0]):
            outputs = formula(inputs._replace(**given))
            grads = torch.autograd.grad(outputs, [*given.values()], slopes, create_graph=True)
            weights = [*taken.values()]
            second = torch.autograd.grad(grads, leaves, weights, allow_unused=True)
    return list(second[len(given) :]), gradients(type(inputs), **dict(zip(given, second)))


def call(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operator; in an export to ONNX, which has none of ours, trace its body instead.

    There sizes are symbols: `x.shape[0]` and `math.prod(x.shape)` keep them, while `len(x)` and
    `x.shape.numel()` make numbers of them.
    """
    run = op._init_fn if torch.onnx.is_in_onnx_export() else op
    return run(*args, **kwargs)


@contextlib.contextmanager
def outside_traces() -> Iterator[None]:
    """Compute what follows from structures alone: ordinary tensors, though inputs are traced.

    So `torch.export` finds constants, whatever their making looked at.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        if torch.compiler.is_exporting():
            stack.enter_context(_disable_current_modes())
        yield


def constant(make: Callable[[], T]) -> T:
    """Make what follows from structures alone: a constant of exports; compiled graphs trace it."""
    if torch.compiler.is_dynamo_compiling():
        return make()
    with outside_traces():
        return make()


def has_values(*xs: Tensor) -> bool:
    """Whether looking at the values costs nothing: on the CPU, and of no tensor that is traced."""
    if torch.compiler.is_dynamo_compiling():
        return False
    return all(x.is_cpu and (type(x) is Tensor or not torch.compiler.is_compiling()) for x in xs)


def keep_inputs(ctx: Any, inputs: Sequence[Any], output: Any = None) -> None:
    """Keep the inputs of an operator for its backward, as `kept_inputs` gives them back."""
    ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in inputs))
    ctx.options = [None if isinstance(x, Tensor) else x for x in inputs]


def kept_inputs(ctx: Any) -> list[Any]:
    return [option if x is None else x for x, option in zip(ctx.saved_tensors, ctx.options)]


def gradients(inputs: type[Any], **of: Tensor | None) -> tuple[Tensor | None, ...]:
    """A gradient for each field of the inputs of an operator; None for those not named."""
    fields: tuple[str, ...] = inputs._fields
    assert of.keys() <= set(fields)
    return tuple(of.get(name) for name in fields)


def wide(x: Tensor) -> torch.dtype:
    """The dtype in which sums over x are taken: float32, or wider."""
    return torch.promote_types(x.dtype, torch.float32)


def side_by_side(x: Tensor) -> Tensor:
    """The numbers of each row side by side; a copy only if they are not."""
    return x if x.stride(-1) == 1 else x.contiguous()


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


def no_tangents(backend: str, *xs: Tensor) -> None:
    """A custom operator drops the tangents of forward-mode derivatives without a word."""
    if has_tangents(*xs):
        raise NotImplementedError(
            f"backend {backend!r} has no forward-mode derivative; use backend='reference'"
        )


def has_tangents(*xs: Tensor) -> bool:
    if torch.compiler.is_compiling():
        return False
    return any(forward_ad.unpack_dual(x).tangent is not None for x in xs)


def is_transformed() -> bool:
    """Tell whether a transform of `torch.func` is active; torch has no public function for it."""
    return torch._C._are_functorch_transforms_active()

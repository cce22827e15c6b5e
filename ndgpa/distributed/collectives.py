"""What ranks send each other, as operators: linear maps, each with its adjoint as its gradient.

`gather_blocks` and `scatter_blocks` are adjoint: all ranks get what each has of its blocks, and
each rank gets the sum over all ranks of what they have for its blocks. `launch` and `land` move
rows from rank to rank: `launch` returns before the rows are there, `land` waits for them. The
adjoint of a `land` is the `launch` the other way, so the gradients, too, travel while other work is
done. `pick` and `put` are adjoint: rows to send, and the ordered sum of rows that came back.

All sums run over the ranks in their order, so the same input gives the same bits. Each operator is
opaque to the compiler; underneath are torch's functional collectives.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed._functional_collectives import allow_inflight_collective_as_graph_input_ctx
from torch.distributed.distributed_c10d import GroupName

from ndgpa._ops import wide

# The functional collectives: their results must be waited for.
_c10d = torch.ops._c10d_functional


def process_group(name: str) -> dist.ProcessGroup:
    """Find a process group by its name."""
    return torch._C._distributed_c10d._resolve_process_group(GroupName(name))


@contextmanager
def named_failure(group: str) -> Iterator[None]:
    """Say in the error of a collective what it most likely means."""
    try:
        yield
    except RuntimeError as error:
        ranks = process_group(group)
        raise RuntimeError(
            f"rank {ranks.rank()} of {ranks.size()} waited in vain for another rank: one has died, "
            "or has not made this call within the timeout of the process group"
        ) from error


def all_to_all(x: Tensor, received: list[int], sent: list[int], group: str) -> Tensor:
    """Begin to exchange rows; the result is not there yet."""
    with named_failure(group):
        return _c10d.all_to_all_single(x.contiguous(), received, sent, group)


def all_gather(x: Tensor, ranks: int, group: str) -> Tensor:
    """Lay the rows of all ranks one after another."""
    with named_failure(group):
        return arrived(_c10d.all_gather_into_tensor(x.contiguous(), ranks, group), group)


def arrived(x: Tensor, group: str) -> Tensor:
    """Wait for the result of a collective."""
    with named_failure(group):
        return _c10d.wait_tensor(x)


# Blocks of all ranks


@torch.library.custom_op("ndgpa::gather_blocks", mutates_args=())
def gather_blocks(
    x: Tensor,  # (b, h, blocks of this rank or more, w)
    index: Tensor,  # (B,), as `Part.index`
    counts: Sequence[int],  # blocks of each rank
    rank: int,
    group: str,
    after: Tensor | None = None,  # what must be done before
) -> Tensor:  # (b, h, B, w)
    """What all ranks have of their blocks, in the order of the blocks."""
    longest, shape = max(counts), (*x.shape[:2], x.shape[3])
    rows = x[:, :, : counts[rank]].movedim(2, 0).flatten(1)
    rows = F.pad(rows, (0, 0, 0, longest - counts[rank]))
    rows = all_gather(rows, len(counts), group).index_select(0, index)
    return rows.unflatten(1, shape).movedim(0, 2).contiguous()


@gather_blocks.register_fake
def _(x: Tensor, index: Tensor, *_: Any, **__: Any) -> Tensor:
    return x.new_empty(*x.shape[:2], len(index), x.shape[3])


@torch.library.custom_op("ndgpa::scatter_blocks", mutates_args=())
def scatter_blocks(
    x: Tensor,  # (b, h, B, w)
    index: Tensor,
    counts: Sequence[int],
    rank: int,
    group: str,
    rows: int,  # how many to return: those beyond the blocks of this rank are zero
) -> Tensor:  # (b, h, rows, w)
    """The sum over all ranks of what they have for the blocks of this one."""
    longest, ranks, shape = max(counts), len(counts), (*x.shape[:2], x.shape[3])
    own = x.movedim(2, 0).flatten(1)
    placed = own.new_zeros(ranks * longest, own.shape[1])
    placed[index] = own
    came = arrived(all_to_all(placed, [longest] * ranks, [longest] * ranks, group), group)
    total = came[:longest]
    for other in range(1, ranks):
        total = total + came[other * longest : (other + 1) * longest]
    total = F.pad(total[: counts[rank]], (0, 0, 0, rows - counts[rank]))
    return total.unflatten(1, shape).movedim(0, 2).contiguous()


@scatter_blocks.register_fake
def _(x: Tensor, index: Tensor, counts: Sequence[int], rank: int, group: str, rows: int) -> Tensor:
    return x.new_empty(*x.shape[:2], rows, x.shape[3])


def _keep_gather(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, index, counts, rank, group = inputs[:5]
    ctx.save_for_backward(index)
    ctx.rest = (counts, rank, group, x.shape[2])


def _backward_of_gather(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return scatter_blocks(grad, *ctx.saved_tensors, *ctx.rest), *[None] * 5


def _keep_scatter(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.rest = inputs[2:5]


def _backward_of_scatter(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return gather_blocks(grad, *ctx.saved_tensors, *ctx.rest), *[None] * 5


gather_blocks.register_autograd(_backward_of_gather, setup_context=_keep_gather)
scatter_blocks.register_autograd(_backward_of_scatter, setup_context=_keep_scatter)


# Rows from rank to rank


@torch.library.custom_op("ndgpa::launch", mutates_args=())
def launch(
    x: Tensor,  # (rows to send, w), those for rank 0 first
    here: Tensor,  # one entry for each row to send
    there: Tensor,  # one entry for each row to come, or one where none comes
    sent: Tensor,  # (ranks,) on the CPU: how many rows go to each rank
    received: Tensor,  # (ranks,) on the CPU: how many come from each
    group: str,
    back: bool,  # whether gradients travel, for the count of bytes
    wait: bool,
) -> Tensor:  # (the larger number of rows, w)
    """Begin to send rows; what comes is not there before `land`, unless `wait`.

    The result has room for as many rows as come or go, so that its gradient, which travels the
    other way, has its shape.
    """
    out = x.new_empty(max(len(here), len(there)), x.shape[1])
    rows, coming = int(sent.sum()), int(received.sum())
    out[coming:] = 0
    given = out[:coming], x[:rows].contiguous(), received.tolist(), sent.tolist()
    with named_failure(group), allow_inflight_collective_as_graph_input_ctx():
        dist.all_to_all_single(*given, group=process_group(group), async_op=True)
    return arrived(out, group) if wait else out


@launch.register_fake
def _(x: Tensor, here: Tensor, there: Tensor, *_: Any, **__: Any) -> Tensor:
    return x.new_empty(torch.sym_max(here.shape[0], there.shape[0]), x.shape[1])


@torch.library.custom_op("ndgpa::land", mutates_args=())
def land(
    x: Tensor,  # what `launch` returned
    here: Tensor,  # the rest as given to `launch`
    there: Tensor,
    sent: Tensor,
    received: Tensor,
    group: str,
    back: bool,
    wait: bool,
) -> Tensor:  # (rows to come, w)
    """Wait for the rows."""
    return arrived(x, group)[: len(there)].clone()


@land.register_fake
def _(x: Tensor, here: Tensor, there: Tensor, *_: Any, **__: Any) -> Tensor:
    return x.new_empty(there.shape[0], x.shape[1])


def _keep_move(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, here, there, sent, received, *ctx.rest = inputs
    ctx.save_for_backward(there, here, received, sent)


def _other_way(ctx: Any) -> list[Any]:
    group, back, wait = ctx.rest
    return [*ctx.saved_tensors, group, not back, wait]


def _backward_of_launch(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return land(grad, *_other_way(ctx)), *[None] * 7


def _backward_of_land(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return launch(grad.contiguous(), *_other_way(ctx)), *[None] * 7


launch.register_autograd(_backward_of_launch, setup_context=_keep_move)
land.register_autograd(_backward_of_land, setup_context=_keep_move)


# Rows of a table, asked for by several ranks


@torch.library.custom_op("ndgpa::pick", mutates_args=())
def pick(table: Tensor, rows: Tensor, counts: Tensor) -> Tensor:
    """Take rows of a table (u, w), those for rank 0 first: as many for each rank as `counts`."""
    return table.index_select(0, rows)


@pick.register_fake
def _(table: Tensor, rows: Tensor, counts: Tensor) -> Tensor:
    return table.new_empty(rows.shape[0], table.shape[1])


@torch.library.custom_op("ndgpa::put", mutates_args=())
def put(x: Tensor, rows: Tensor, counts: Tensor, length: int) -> Tensor:
    """Add rows to a table of zeros, rank after rank; no rank names a row twice."""
    table = x.new_zeros(length, x.shape[1], dtype=wide(x))
    for part, own in zip(x.split(counts.tolist()), rows.split(counts.tolist())):
        table.index_add_(0, own, part.to(table.dtype))
    return table.to(x.dtype)


@put.register_fake
def _(x: Tensor, rows: Tensor, counts: Tensor, length: int) -> Tensor:
    return x.new_empty(length, x.shape[1])


def _keep_rows(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:3])
    ctx.length = inputs[0].shape[0]


def _backward_of_pick(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return put(grad, *ctx.saved_tensors, ctx.length), None, None


def _backward_of_put(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return pick(grad.contiguous(), *ctx.saved_tensors), None, None, None


pick.register_autograd(_backward_of_pick, setup_context=_keep_rows)
put.register_autograd(_backward_of_put, setup_context=_keep_rows)

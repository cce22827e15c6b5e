"""Before anything is sent: do all ranks make the same call?"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ndgpa.distributed.collectives import all_gather, process_group

# A call is told by what it says of each of these, in a text of one line each.
SUBJECTS = (
    "space",
    "space of keys",
    "rule",
    "dtype",
    "scale",
    "affinity",
    "causal",
    "use of masks",
    "sampling",
    "far field",
    "need of gradients",
)
# And by these, which are compared first.
SIZES = ("batch", "number of heads", "width of a key", "number of key heads", "width of a value")
_FAILED = "\n".join("failed" for _ in SUBJECTS)


@torch.library.custom_op("ndgpa::agree", mutates_args=())
def agree(call: str, sizes: Sequence[int], like: Tensor, group: str) -> Tensor:
    """Compare a call with those of the other ranks.

    Args:
        call: One line for each of `SUBJECTS`.
        sizes: One for each of `SIZES`.
        like: On the device over which the ranks talk.

    Returns:
        An empty tensor, to be given to what must come after.

    Raises:
        ValueError: The ranks make different calls, on all ranks alike.
        RuntimeError: Another rank has refused its arguments, or does not answer.
    """
    told = [*sizes, *map(_number, call.split("\n"))]
    size = process_group(group).size()
    table = all_gather(torch.tensor([told], device=like.device), size, group).tolist()
    if call != _FAILED:
        _check_failed([rank for rank, said in enumerate(table) if said[-1] == _number("failed")])
        _check_same(table)
    return like.new_empty(0)


@agree.register_fake
def _(call: str, sizes: Sequence[int], like: Tensor, group: str) -> Tensor:
    return like.new_empty(0)


@contextmanager
def telling_of_failure(like: Tensor, group: str) -> Iterator[None]:
    """Let the other ranks know of an error, so that they do not wait for this one."""
    try:
        yield
    except (TypeError, ValueError, NotImplementedError):
        if not torch.compiler.is_compiling():
            agree(_FAILED, [0] * len(SIZES), like, group)
        raise


def told(x: Any) -> str:
    """Tell an option apart from others; a tensor by its shape.

    It says what `repr` says of a dataclass, which the compiler cannot follow.
    """
    if isinstance(x, Tensor):
        return f"tensor of {tuple(x.shape)}"
    if isinstance(x, tuple):
        return "(" + ", ".join([told(item) for item in x]) + ")"
    if hasattr(x, "__dataclass_fields__"):
        fields = [told(getattr(x, name)) for name in x.__dataclass_fields__]
        return type(x).__name__ + "(" + ", ".join(fields) + ")"
    return str(x)


def _number(line: str) -> int:
    """Sixty bits of a text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(line.encode(), digest_size=7).digest(), "little")


def _check_failed(ranks: list[int]) -> None:
    if ranks:
        raise RuntimeError(
            f"rank {ranks[0]} has refused the arguments of this call; its own error says why"
        )


def _check_same(table: list[list[int]]) -> None:
    for rank, said in enumerate(table):
        other = [name for name, a, b in zip(SIZES + SUBJECTS, said, table[0]) if a != b]
        if other:
            raise ValueError(
                f"the ranks make different calls: the {other[0]} of rank {rank} is not that of "
                "rank 0"
            )

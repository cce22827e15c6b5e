"""How many bytes a rank sends: counted as it happens, and foretold from a selection."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ndgpa.distributed.agreement import SIZES, SUBJECTS
from ndgpa.distributed.collectives import process_group
from ndgpa.distributed.exchange import wanted_by
from ndgpa.distributed.layout import Layout

_NUMBER = 8  # bytes of an int64


class CountBytes(TorchDispatchMode):
    """Count the bytes that this rank sends to others while the context is open.

    Backward passes count as far as they run in it. What is compiled runs uncompiled in it.

    Attributes:
        means: Block means, to every other rank.
        requests: Which blocks are wanted, and the check that all ranks make the same call.
        blocks: Keys and values of the blocks that others asked for.
        gradients: What comes back of both in the backward.

    Example:
        with ndgpa.distributed.CountBytes() as sent:
            out = ndgpa.distributed.gpa(query, key, value, part, 12)
        print(sent.total, sent.blocks)
    """

    def __init__(self) -> None:
        super().__init__()
        self.means = self.requests = self.blocks = self.gradients = 0

    def __repr__(self) -> str:
        return (
            f"{self.total:,} bytes sent: means {self.means:,}, requests {self.requests:,}, blocks "
            f"{self.blocks:,}, gradients {self.gradients:,}"
        )

    @property
    def total(self) -> int:
        """All bytes sent."""
        return self.means + self.requests + self.blocks + self.gradients

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        count = _COUNTS.get(func)
        if count is not None:
            kind, size = count(args, out)
            setattr(self, kind, getattr(self, kind) + size)
        return out


def _of_gather(args: Any, out: Any) -> tuple[str, int]:
    x, _, counts = args[:3]
    return "means", _to_each(x, counts)


def _of_scatter(args: Any, out: Any) -> tuple[str, int]:
    x, _, counts = args[:3]
    return "gradients", _to_each(x, counts)


def _to_each(x: Tensor, counts: Sequence[int]) -> int:
    """As many rows as the longest rank has, to every other rank."""
    return (len(counts) - 1) * max(counts) * x[:, :, :1].numel() * x.itemsize


def _of_launch(args: Any, out: Any) -> tuple[str, int]:
    x, sent, back = args[0], args[3], args[6]
    return "gradients" if back else "blocks", int(sent.sum()) * x.shape[1] * x.itemsize


def _of_plan(args: Any, out: Any) -> tuple[str, int]:
    received = out[4]
    return "requests", _NUMBER * (len(received) - 1 + int(received.sum()))


def _of_agreement(args: Any, out: Any) -> tuple[str, int]:
    told = _NUMBER * (len(SUBJECTS) + len(SIZES))
    return "requests", told * (process_group(args[3]).size() - 1)


_ops = torch.ops.ndgpa
_COUNTS: dict[Any, Callable[[Any, Any], tuple[str, int]]] = {
    _ops.gather_blocks.default: _of_gather,
    _ops.scatter_blocks.default: _of_scatter,
    _ops.launch.default: _of_launch,
    _ops.plan_exchange.default: _of_plan,
    _ops.agree.default: _of_agreement,
}


@dataclass(frozen=True)
class Foretold:
    """What the ranks will send, per rank: `units[i, j]` blocks of a key head from rank i to j."""

    units: Int[Tensor, "ranks ranks"]
    unit_bytes: int
    means_bytes: int  # that each rank sends

    @property
    def sent(self) -> Int[Tensor, " ranks"]:
        """The bytes of keys, values and means that each rank sends in the forward."""
        return self.units.sum(dim=1) * self.unit_bytes + self.means_bytes


def foretell(
    blocks: Int[Tensor, "b hs C K"],
    layout: Layout,
    key_layout: Layout | None = None,
    *,
    heads: int,
    key_heads: int,
    features: tuple[int, int],
    itemsize: int = 4,
) -> Foretold:
    """Foretell what the forward of `gpa` sends, from what the cells of the whole select.

    Without a key mask, a bias or a far field, which send some numbers for each site or block more,
    and without requests.

    Args:
        blocks: The selection of the whole, ids of key blocks, -1 for an empty slot.
        layout, key_layout: From `lay_out`; None as `key_layout` means the same.
        features: Of a key and of a value, for one head.
        itemsize: Bytes of one number of keys and values; means are of at least 4.
    """
    keys = layout if key_layout is None else key_layout
    ranks, batch = layout.ranks, len(blocks)
    units = torch.zeros(ranks, ranks, dtype=torch.int64)
    for rank in range(ranks):
        own = blocks[:, :, layout.cells_of(rank)]
        if own.numel():
            wanted = wanted_by(own, heads, key_heads, keys, rank)
            units[:, rank] = wanted.rank.bincount(minlength=ranks).cpu()
    sites = keys.structure.sites_per_block
    means = batch * key_heads * max(keys.blocks_per_rank) * features[0] * max(4, itemsize)
    return Foretold(units, sites * sum(features) * itemsize, (ranks - 1) * means)

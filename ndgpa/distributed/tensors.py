"""DTensors in and out: the local part of each, and the result as one."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Shard

from ndgpa.distributed.part import Part


def local(name: str, x: Any, part: Part, sites: int = 2) -> Any:
    """Return this rank's part of a DTensor; anything else as it is.

    Args:
        sites: The axis of the sites, along which it must be sharded over the mesh of the part.

    Raises:
        ValueError: It is placed otherwise.
    """
    if not isinstance(x, DTensor):
        return x
    _check_placements(name, x, part, sites)
    return x.to_local()


def like(x: Any, part: Part) -> Callable[[Tensor], Tensor]:
    """Return what makes of the output (b, h, n, dv) of this rank what the query `x` was."""
    if not isinstance(x, DTensor):
        return lambda out: out
    mesh, placements, whole = x.device_mesh, x.placements, list(x.shape)
    whole[2] = part.whole.num_sites

    def wrap(out: Tensor) -> Tensor:
        shape = (*whole[:3], out.shape[3])
        stride = tuple(math.prod(shape[axis + 1 :]) for axis in range(4))
        return DTensor.from_local(
            out, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
        )

    return wrap


def _check_placements(name: str, x: DTensor, part: Part, sites: int) -> None:
    for axis, placement in enumerate(x.placements):
        if isinstance(placement, Partial) or (
            isinstance(placement, Shard) and placement.dim == x.ndim - 1 != sites
        ):
            raise ValueError(f"{name} is placed as {placement}; redistribute it first")
        is_context = x.device_mesh.get_group(axis).group_name == part.group_name
        is_sites = isinstance(placement, Shard) and placement.dim == sites
        if is_context != is_sites:
            raise ValueError(
                f"{name} must be sharded along axis {sites}, its sites, over the mesh of its part "
                f"and no other; got {x.placements} over {x.device_mesh}"
            )
    sizes = set(part.layout.sites_per_rank)
    if len(sizes) > 1:
        raise ValueError(
            f"a DTensor needs as many sites on every rank; {part} has "
            f"{part.layout.sites_per_rank}: pass local tensors"
        )

"""What the processes of a world do: the same call on one process and on many."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

import ndgpa
import ndgpa.distributed
from ndgpa.distributed import Part, Placement


@dataclass(frozen=True)
class Call:
    """A call of `gpa`, from which every process makes the same inputs."""

    space: ndgpa.SpatialStructure
    rule: Any
    keys: ndgpa.SpatialStructure | None = None
    dtype: torch.dtype = torch.float64
    heads: int = 2
    key_heads: int = 1
    masked: bool = False
    asks: bool = False  # whether a query_mask is given
    placement: Placement | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def inputs(self) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Query, key and value with a gradient; and the masks."""
        torch.manual_seed(0)
        n, keys = self.space.num_sites, self.keys or self.space
        shapes = (
            (self.heads, n, 8),
            (self.key_heads, keys.num_sites, 8),
            (self.key_heads, keys.num_sites, 5),
        )
        xs = [torch.randn(2, *shape, dtype=self.dtype).requires_grad_() for shape in shapes]
        masks = {}
        if self.masked:
            masks["key_mask"] = torch.rand(2, keys.num_sites) < 0.7
        if self.asks:
            masks["query_mask"] = torch.rand(2, n) < 0.7
        return xs, masks

    def parts(self, mesh: DeviceMesh) -> tuple[Part, Part]:
        part = ndgpa.distributed.shard(self.space, mesh, self.placement)
        if self.keys is None:
            return part, part
        return part, ndgpa.distributed.shard(self.keys, mesh, self.placement)


def context() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("context",))


def largest_errors(calls: list[Call]) -> list[float]:
    """For each call, how far output and gradients of this rank are from those of one process."""
    mesh = context()
    return [_largest_error(call, mesh) for call in calls]


def _largest_error(call: Call, mesh: DeviceMesh) -> float:
    xs, masks = call.inputs()
    keys = None if call.keys is None else {"key_structure": call.keys}
    wanted = ndgpa.gpa(*xs, call.space, call.rule, **(keys or {}), **masks, **call.options)
    slope = torch.randn_like(wanted)
    gradients = torch.autograd.grad(wanted, xs, slope)
    part, of_keys = call.parts(mesh)
    places = (part, of_keys, of_keys)
    out, found = apart(call, mesh, slope)
    pairs = [(out, part.take(wanted))]
    pairs += [(x, place.take(y)) for x, place, y in zip(found, places, gradients)]
    return max(float((x - y).detach().abs().max()) if x.numel() else 0.0 for x, y in pairs)


def apart(call: Call, mesh: DeviceMesh, slope: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output and gradients of this rank."""
    xs, masks = call.inputs()
    part, keys = call.parts(mesh)
    own = [p.take(x.detach()).requires_grad_() for p, x in zip((part, keys, keys), xs)]
    given = {name: x[:, (keys if name == "key_mask" else part).sites] for name, x in masks.items()}
    if call.keys is not None:
        given["key_structure"] = keys
    out = ndgpa.distributed.gpa(*own, part, call.rule, **given, **call.options)
    return out, torch.autograd.grad(out, own, part.take(slope))


# Combinations: each returns what a test then looks at


def compiled(call: Call) -> float:
    """How far a compiled call is from one process, forward and backward, as one graph."""
    return _largest_error_of(call, lambda f: torch.compile(f, fullgraph=True, backend="aot_eager"))


def checkpointed(call: Call) -> float:
    """The same, with the forward taken again in the backward."""
    from torch.utils.checkpoint import checkpoint

    return _largest_error_of(call, lambda f: lambda *xs: checkpoint(f, *xs, use_reentrant=False))


def _largest_error_of(call: Call, wrapped: Any) -> float:
    mesh = context()
    xs, _ = call.inputs()
    wanted = ndgpa.gpa(*xs, call.space, call.rule, **call.options)
    slope = torch.randn_like(wanted)
    gradients = torch.autograd.grad(wanted, xs, slope)
    part, _ = call.parts(mesh)
    own = [part.take(x.detach()).requires_grad_() for x in xs]

    def run(*own: Tensor) -> Tensor:
        return ndgpa.distributed.gpa(*own, part, call.rule, **call.options)

    out = wrapped(run)(*own)
    found = torch.autograd.grad(out, own, part.take(slope))
    pairs = zip((out, *found), (wanted, *gradients))
    return max(float((x - part.take(y)).detach().abs().max()) for x, y in pairs)


def second_derivative(call: Call) -> float:
    """How far the gradient of a gradient penalty is from that of one process."""
    mesh = context()
    xs, _ = call.inputs()
    part, _ = call.parts(mesh)
    own = [part.take(x.detach()).requires_grad_() for x in xs]

    def penalty(out: Tensor, xs: list[Tensor]) -> tuple[Tensor, ...]:
        slopes = torch.autograd.grad(out.square().sum(), xs, create_graph=True)
        return torch.autograd.grad(sum(s.square().sum() for s in slopes), xs)

    wanted = penalty(ndgpa.gpa(*xs, call.space, call.rule, **call.options), xs)
    out = ndgpa.distributed.gpa(*own, part, call.rule, **call.options)
    found = penalty(out, own)
    return max(float((x - part.take(y)).abs().max()) for x, y in zip(found, wanted))


def dtensors(call: Call) -> float:
    """DTensors in and out."""
    from torch.distributed.tensor import DTensor, Shard

    mesh = context()
    xs, _ = call.inputs()
    wanted = ndgpa.gpa(*xs, call.space, call.rule, **call.options)
    part, _ = call.parts(mesh)
    given = [
        DTensor.from_local(part.take(x.detach()), mesh, [Shard(2)]).requires_grad_() for x in xs
    ]
    out = ndgpa.distributed.gpa(*given, part, call.rule, **call.options)
    assert isinstance(out, DTensor)
    assert out.shape == wanted.shape
    out.sum().backward()
    gradients = torch.autograd.grad(wanted.sum(), xs)
    pairs = [(out.to_local(), part.take(wanted))]
    pairs += [(x.grad.to_local(), part.take(y)) for x, y in zip(given, gradients)]
    return max(float((x - y).detach().abs().max()) for x, y in pairs)

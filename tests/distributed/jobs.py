"""What the processes of a world do: the same call on one process and on many."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import ndgpa
import ndgpa.distributed
from ndgpa.distributed import Part, Placement, collectives


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


def everything(jobs: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]) -> dict[str, Any]:
    """Do several jobs one after another; what one raises is its answer."""
    found = {}
    for name, (job, args) in jobs.items():
        try:
            found[name] = job(*args)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def largest_error(call: Call) -> float:
    """How far output and gradients of this rank are from those of one process."""
    return _largest_error(call, context())


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


def same_bits_twice(call: Call) -> bool:
    """Whether a second run gives the same bits, forward and backward."""
    mesh = context()
    torch.manual_seed(1)
    slope = torch.randn(2, call.heads, call.space.num_sites, 5, dtype=call.dtype)
    runs = [apart(call, mesh, slope) for _ in range(2)]
    flat = [(out, *gradients) for out, gradients in runs]
    return all(torch.equal(x, y) for x, y in zip(*flat))


def foretold_and_sent(call: Call) -> tuple[int, int]:
    """Bytes of blocks and means: as the selection of one process foretells, and as sent."""
    mesh = context()
    xs, _ = call.inputs()
    found = ndgpa.select(*xs[:2], call.space, call.rule, key_structure=call.keys)
    part, keys = call.parts(mesh)
    own = [p.take(x.detach()) for p, x in zip((part, keys, keys), xs)]
    with ndgpa.distributed.CountBytes() as sent:
        ndgpa.distributed.gpa(*own, part, call.rule, key_structure=keys)
    told = ndgpa.distributed.foretell(
        found.blocks,
        part.layout,
        keys.layout,
        heads=call.heads,
        key_heads=call.key_heads,
        features=(8, 5),
        itemsize=call.dtype.itemsize,
    )
    return int(told.sent[mesh.get_local_rank()]), sent.blocks + sent.means


# Wrong calls


def call_with(call: Call, mesh: DeviceMesh | None = None, **of_rank_1: Any) -> str:
    """Make a call that differs on rank 1; what it raised."""
    mesh = context() if mesh is None else mesh
    xs, _ = call.inputs()
    part, _ = call.parts(mesh)
    given: dict[str, Any] = {"rule": call.rule, "width": 8, "sites": part.num_sites}
    if dist.get_rank() == 1:
        given |= of_rank_1
    rule, width, sites = (given.pop(name) for name in ("rule", "width", "sites"))
    own = [part.take(x.detach())[:, :, :sites, :width] for x in xs]
    return _error_of(lambda: ndgpa.distributed.gpa(*own, part, rule, **given))


def one_dies(call: Call) -> str:
    """Rank 1 ends before the call."""
    if dist.get_rank() == 1:
        os._exit(1)
    return call_with(call)


def one_sleeps(call: Call, timeout_s: float) -> tuple[str, float]:
    """Rank 1 does not make the call in time; what it raised on the other, and after how long."""
    group = dist.new_group(timeout=timedelta(seconds=timeout_s))
    mesh = DeviceMesh.from_group(group, "cpu", mesh_dim_names=("context",))
    dist.barrier()
    start = time.monotonic()
    if dist.get_rank() == 1:
        time.sleep(timeout_s + 1)
        return "slept", time.monotonic() - start
    return call_with(call, mesh), time.monotonic() - start


def parts_of_two_meshes(call: Call) -> str:
    """Queries are sharded over one dimension of a mesh, keys over another."""
    mesh = _two_by_half("data", "context")
    part, keys = (ndgpa.distributed.shard(call.space, mesh[name]) for name in ("context", "data"))
    x = torch.zeros(1, 1, part.num_sites, 4)
    return _error_of(lambda: ndgpa.distributed.gpa(x, x, x, part, 3, key_structure=keys))


def _error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except (ValueError, RuntimeError, TypeError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


# Together with other ways to share work


class Model(torch.nn.Module):
    """A residual layer of attention between two linear ones."""

    def __init__(self, operator: Any) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)
        self.attention = ndgpa.nn.SpatialAttention(8, heads=2, operator=operator)

    def forward(self, x: Tensor, space: ndgpa.SpatialStructure) -> Tensor:
        x = self.first(x)
        return self.last(x + self.attention(x, space))


def late_rows(seconds: float) -> tuple[float, float, bool]:
    """Rank 1 sends late: when `launch` and `land` returned here, and whether rows are right.

    Gradients, too, are looked at.
    """
    group, rank = context().get_group().group_name, dist.get_rank()
    rows = torch.arange(6.0).view(3, 2).add(10 * rank).requires_grad_()
    counts = torch.tensor([0, 3] if rank == 0 else [3, 0])
    move = (torch.empty(3), torch.empty(3), counts, counts, group, False, False)
    collectives.land(collectives.launch(rows, *move), *move)  # what only the first time takes
    dist.barrier()
    start = time.monotonic()
    if rank == 1:
        time.sleep(seconds)
    pending = collectives.launch(rows, *move)
    launched = time.monotonic() - start
    out = collectives.land(pending, *move)
    landed = time.monotonic() - start
    (gradient,) = torch.autograd.grad(out, rows, torch.full_like(out, rank + 1.0))
    right = torch.equal(out, rows.detach() + (10 if rank == 0 else -10))
    return launched, landed, right and bool((gradient == 2.0 - rank).all())


def _two_by_half(*names: str) -> DeviceMesh:
    return init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=names)


def _data_and_context() -> tuple[DeviceMesh, Tensor, Part, Tensor]:
    """A mesh of data by context, the whole batch, this rank's part and its sites of its sample."""
    mesh = init_device_mesh(
        "cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("data", "context")
    )
    torch.manual_seed(4)
    space = ndgpa.Image((16, 16), 4, 2)
    x = torch.randn(2, space.num_sites, 6)
    part = ndgpa.distributed.shard(space, mesh["context"])
    return mesh, x, part, part.take(x[mesh["data"].get_local_rank()][None])


def _gradients_of_one(x: Tensor, space: ndgpa.SpatialStructure) -> list[Tensor]:
    model = Model(ndgpa.GPA(3))
    model(x, space).square().mean().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def data_parallel() -> float:
    """DDP over data and context: how far the gradients are from those of one process."""
    _, x, part, own = _data_and_context()
    model = DistributedDataParallel(Model(ndgpa.distributed.ContextParallel(ndgpa.GPA(3))))
    model(own, part).square().mean().backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    wanted = _gradients_of_one(x, part.whole)
    return max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))


def fully_sharded() -> float:
    """FSDP2 over data and context, the same."""
    mesh, x, part, own = _data_and_context()
    model = Model(ndgpa.distributed.ContextParallel(ndgpa.GPA(3)))
    for module in (model.attention, model):
        fully_shard(module, mesh=mesh._flatten("all"))
    model(own, part).square().mean().backward()
    found = [p.grad.full_tensor() for p in model.parameters() if p.grad is not None]
    wanted = _gradients_of_one(x, part.whole)
    return max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))


def heads_and_context() -> float:
    """Ulysses by context on a mesh of two dimensions."""
    mesh = init_device_mesh(
        "cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("context", "heads")
    )
    space, heads = ndgpa.Image((16, 16), 4, 2), mesh["heads"]
    call = Call(space, 3, heads=4, key_heads=4)
    xs, _ = call.inputs()
    wanted = ndgpa.gpa(*xs, space, 3)
    gradients = torch.autograd.grad(wanted.square().sum(), xs)
    part = ndgpa.distributed.shard(space, mesh["context"])

    def own(x: Tensor) -> Tensor:
        return part.take(x.detach()).chunk(heads.size(), dim=2)[heads.get_local_rank()]

    given = [own(x).requires_grad_() for x in xs]
    by_heads = [ndgpa.distributed.sites_to_heads(x, heads) for x in given]
    out = ndgpa.distributed.heads_to_sites(ndgpa.distributed.gpa(*by_heads, part, 3), heads)
    found = torch.autograd.grad(out.square().sum(), given)
    pairs = zip((out, *found), (wanted, *gradients))
    return max(float((x - own(y)).detach().abs().max()) for x, y in pairs)

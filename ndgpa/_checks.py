"""Every error text of the package: bad input gets one clear sentence before any work is done."""

import importlib.util
import math
import os
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ndgpa.affinity import AFFINITIES

if TYPE_CHECKING:
    from ndgpa.selection.base import Selection
    from ndgpa.structures.base import SpatialStructure

# Structures


def grid(
    shape: Any, downsample: Any, cell: Any, time_axis: int | None
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shape, block shape and cell shape, one int per axis each."""
    shape = _ints("shape", shape)
    if not shape:
        raise ValueError("shape has no axes; a grid needs at least one")
    if min(shape) < 1:
        raise ValueError(f"shape {shape} has an empty axis; every axis needs at least one site")
    block_shape = _factors("downsample", downsample, shape, "sites")
    blocks = tuple(math.ceil(n / d) for n, d in zip(shape, block_shape))
    cell_shape = _factors("cell", cell, blocks, "blocks")
    if time_axis is not None and not 0 <= time_axis < len(shape):
        raise ValueError(f"time_axis {time_axis} is not an axis of a grid of rank {len(shape)}")
    return shape, block_shape, cell_shape


def length(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"length of a Sequence must be an int; got {value!r}: for several axes, use Grid"
        )


def rank(who: str, shape: Any, axes: Sequence[str]) -> None:
    if len(_ints("shape", shape)) != len(axes):
        raise ValueError(f"{who} expects a shape ({', '.join(axes)}); got {shape}")


def one_factor(name: str, value: Any) -> int:
    """A factor that counts members, so a single int."""
    factors = _ints(name, value)
    if len(factors) != 1 or factors[0] < 1:
        raise ValueError(
            f"{name} must be one int of at least 1 for a structure that is not a Grid; got {value}"
        )
    return factors[0]


def clusters(
    block_of_site: Tensor, cell_of_block: Tensor, time: Tensor | None, group: Tensor | None
) -> None:
    num_blocks = _numbering("block_of_site", block_of_site)
    _numbering("cell_of_block", cell_of_block)
    if len(cell_of_block) != num_blocks:
        raise ValueError(
            f"cell_of_block has {len(cell_of_block)} entries but block_of_site names "
            f"{num_blocks} blocks"
        )
    for name, vector, length, of in (
        ("time", time, len(block_of_site), "sites"),
        ("group", group, num_blocks, "blocks"),
    ):
        if vector is None:
            continue
        _int_vector(name, vector)
        if len(vector) != length:
            raise ValueError(f"{name} has {len(vector)} entries but there are {length} {of}")
    given = [x for x in (block_of_site, cell_of_block, time, group) if x is not None]
    if len({x.device for x in given}) > 1:
        raise ValueError(
            "block_of_site, cell_of_block, time and group must be on one device; got "
            f"{_listed(x.device for x in given)}"
        )
    if group is not None:
        first = torch.zeros(int(cell_of_block.max()) + 1, dtype=torch.int64, device=group.device)
        first[cell_of_block.long()] = group.long()
        if bool((first[cell_of_block.long()] != group).any()):
            raise ValueError("a cell has blocks of different groups; it must lie within one group")


def points(position: Any, downsample: Any, cell: Any) -> None:
    if not isinstance(position, Tensor):
        raise TypeError(f"position must be a tensor; got {type(position).__name__}")
    if not position.dtype.is_floating_point:
        raise TypeError(f"position must have a floating-point dtype; got {position.dtype}")
    if position.ndim != 2 or position.shape[1] == 0:
        raise ValueError(
            f"position must have shape (points, dimensions); got {tuple(position.shape)}"
        )
    if len(position) == 0:
        raise ValueError("position is empty; a structure needs at least one site")
    if not bool(position.isfinite().all()):
        raise ValueError("position has NaN or infinite coordinates")
    counts(len(position), downsample, cell)


def counts(sites: int, downsample: Any, cell: Any) -> None:
    """Sites of a block and blocks of a cell, where they are counts."""
    positive_count("downsample", downsample)
    positive_count("cell", cell)
    if downsample > sites:
        raise ValueError(f"downsample {downsample} is larger than the number of sites, {sites}")
    blocks = -(-sites // downsample)
    if cell > blocks:
        raise ValueError(f"cell {cell} is larger than the number of blocks, {blocks}")


def _ints(name: str, value: Any) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Iterable) else (value,)
    if any(isinstance(v, bool) or not isinstance(v, int) for v in values):
        raise TypeError(f"{name} must be an int or a tuple of ints; got {value!r}")
    return values


def _factors(name: str, value: Any, axes: tuple[int, ...], of: str) -> tuple[int, ...]:
    factors = _ints(name, value)
    if isinstance(value, int):
        factors = factors * len(axes)
    if len(factors) != len(axes):
        raise ValueError(f"{name} has {len(factors)} entries but the grid has {len(axes)} axes")
    for axis, (factor, size) in enumerate(zip(factors, axes)):
        if factor < 1:
            raise ValueError(f"{name} must be at least 1; got {factor} for axis {axis}")
        if factor > size:
            raise ValueError(f"{name} {factor} is larger than axis {axis}, which has {size} {of}")
    return factors


def _int_vector(name: str, vector: Any) -> None:
    if not isinstance(vector, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(vector).__name__}")
    if vector.dtype.is_floating_point or vector.dtype.is_complex or vector.dtype == torch.bool:
        raise TypeError(f"{name} must have an integer dtype; got {vector.dtype}")
    if vector.ndim != 1:
        raise ValueError(f"{name} must have one axis; got shape {tuple(vector.shape)}")


def _numbering(name: str, vector: Any) -> int:
    """How many numbers a vector uses; they must be 0, 1, ... without gaps."""
    _int_vector(name, vector)
    if len(vector) == 0:
        raise ValueError(f"{name} is empty; a structure needs at least one site")
    used = vector.unique()
    if int(used[0]) != 0 or int(used[-1]) != len(used) - 1:
        raise ValueError(f"{name} must use the numbers 0, 1, 2, ... without gaps")
    return len(used)


# Rules


def positive_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int; got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}")


def one_of(name: str, value: Any, choices: Iterable[str]) -> None:
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; expected one of {_listed(choices, repr)}")


def forced(force: Any) -> None:
    for item in force:
        if item != "own" and (isinstance(item, bool) or not isinstance(item, int)):
            raise TypeError(f"force must be 'own' or numbers of blocks; got {item!r}")
        if item != "own" and item < 0:
            raise ValueError(f"force contains block {item}; numbers start at 0")


def forced_ids(largest: int, num_blocks: int) -> None:
    if largest >= num_blocks:
        raise ValueError(
            f"force contains block {largest} but key_structure has {num_blocks} blocks"
        )


def own_blocks(structure: "SpatialStructure", key_structure: "SpatialStructure") -> None:
    if key_structure.num_sites != structure.num_sites:
        raise ValueError(
            "own blocks need queries and keys on the same sites; structure has "
            f"{structure.num_sites} sites but key_structure has {key_structure.num_sites}"
        )


# The call


def query_and_key(
    query: Any, key: Any, structure: Any, key_structure: Any, affinity: str, causal: bool
) -> None:
    for name, x, place, space in (
        ("query", query, "structure", structure),
        ("key", key, "key_structure", key_structure),
    ):
        _features(name, x)
        _structure(place, space)
        _sites(name, x, place, space.num_sites)
    heads_and_features(query, key)
    _whole(structure)
    one_of("affinity", affinity, AFFINITIES)
    for place, space in (("structure", structure), ("key_structure", key_structure)):
        if causal and space.time is None:
            raise ValueError(f"causal=True needs structures with time; {place} has none")


def _sites(name: str, x: Tensor, place: str, num_sites: int) -> None:
    if x.shape[2] == num_sites:
        return
    hint = ""
    if x.shape[1] == num_sites:
        hint = f"; if its axes are (batch, sites, heads, features), use {name}.transpose(1, 2)"
    raise ValueError(f"{name} has {x.shape[2]} sites but {place} has {num_sites}{hint}")


def value_for(key: Tensor, value: Any) -> None:
    _features("value", value)
    _alike("key", key, "value", value)
    if value.shape[1:3] != key.shape[1:3]:
        raise ValueError(
            f"value has {value.shape[1]} heads and {value.shape[2]} sites but key has "
            f"{key.shape[1]} and {key.shape[2]}"
        )


def heads_and_features(query: Tensor, key: Tensor) -> None:
    _alike("query", query, "key", key)
    if key.shape[3] != query.shape[3]:
        raise ValueError(f"query has {query.shape[3]} features per head but key has {key.shape[3]}")
    if key.shape[1] == 0 or query.shape[1] % key.shape[1]:
        raise ValueError(
            f"query has {query.shape[1]} heads, which is not a multiple of key's {key.shape[1]}"
        )


def key_mask(mask: Any, key: Tensor) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"key_mask must be a bool tensor, True where a key is seen; got {got}")
    wanted = (key.shape[0], key.shape[2])
    if tuple(mask.shape) != wanted:
        raise ValueError(
            f"key_mask must have shape (batch, sites) = {wanted}; got {tuple(mask.shape)}"
        )
    if mask.device != key.device:
        raise ValueError(f"key_mask is on {mask.device} but key is on {key.device}")


def scale(value: Any) -> None:
    if value is None:
        return
    if isinstance(value, Tensor) or not hasattr(value, "__float__"):
        raise TypeError(
            f"scale must be a number; got {type(value).__name__}: to learn a scale, multiply the "
            "queries by it"
        )
    if not math.isfinite(value):
        raise ValueError(f"scale must be finite; got {value}")


def selection_for(
    selection: "Selection",
    query: Tensor,
    key: Tensor,
    structure: "SpatialStructure",
) -> None:
    from ndgpa.selection.base import Selection

    if not isinstance(selection, Selection):
        raise TypeError(
            f"selection must be a Selection; got {type(selection).__name__}: wrap a table of "
            "blocks as Selection(blocks)"
        )
    blocks = selection.blocks
    batch, heads, cells, _ = blocks.shape
    if batch != query.shape[0]:
        raise ValueError(f"selection has a batch of {batch} but query has {query.shape[0]}")
    if heads not in (1, key.shape[1], query.shape[1]):
        raise ValueError(
            f"selection has {heads} heads; expected 1, {key.shape[1]} (key) or "
            f"{query.shape[1]} (query)"
        )
    if cells != structure.num_cells:
        raise ValueError(f"selection has {cells} cells but structure has {structure.num_cells}")
    if blocks.device != query.device:
        raise ValueError(f"selection is on {blocks.device} but query is on {query.device}")


def selection_fields(blocks: Any, bias: Any) -> None:
    _int_tensor("blocks", blocks)
    if blocks.ndim != 4:
        raise ValueError(
            f"blocks must have shape (batch, heads, cells, width); got {tuple(blocks.shape)}"
        )
    if bias is None:
        return
    if not isinstance(bias, Tensor) or not bias.dtype.is_floating_point:
        raise TypeError("bias must be a floating tensor")
    if bias.shape != blocks.shape:
        raise ValueError(f"bias has shape {tuple(bias.shape)} but blocks has {tuple(blocks.shape)}")


def block_ids(blocks: Tensor, num_blocks: int) -> None:
    """Checked on the CPU, where looking at values costs nothing, and outside traces."""
    if blocks.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if blocks.numel() and int(blocks.max()) >= num_blocks:
        raise ValueError(
            f"selection names block {int(blocks.max())} but key_structure has {num_blocks} blocks"
        )


def layer_widths(query_dim: int, heads: int, key_dim: int, value_dim: int, out_dim: int) -> None:
    positive_count("heads", heads)
    for name, width in (
        ("query_dim", query_dim),
        ("key_dim", key_dim),
        ("value_dim", value_dim),
        ("out_dim", out_dim),
    ):
        positive_count(name, width)
    for name, width in (("query_dim", query_dim), ("value_dim", value_dim)):
        if width % heads:
            raise ValueError(f"{name} must be a multiple of the {heads} heads; got {width}")


def layer_key_heads(heads: int, key_heads: int) -> None:
    positive_count("key_heads", key_heads)
    if heads % key_heads:
        raise ValueError(f"heads must be a multiple of the {key_heads} key heads; got {heads}")


def layer_input(name: str, x: Tensor, width: int) -> None:
    if x.ndim == 3 and x.shape[-1] == width:
        return
    hint = ""
    if x.ndim > 3 and x.shape[-1] == width:
        hint = f"; flatten the grid with {name}.flatten(1, -2)"
    elif x.ndim > 3 and x.shape[1] == width:
        hint = f"; flatten the grid with {name}.flatten(2).mT"
    raise ValueError(f"{name} must have shape (batch, sites, {width}); got {tuple(x.shape)}{hint}")


def layer_operator(operator: Any) -> None:
    if isinstance(operator, type) or not callable(operator):
        raise TypeError(f"operator must be an operator, such as GPA(12); got {operator!r}")


def no_tangents(backend: str, *xs: Tensor) -> None:
    """A custom operator drops the tangents of forward-mode derivatives without a word."""
    if _has_tangents(*xs):
        raise NotImplementedError(
            f"backend {backend!r} has no forward-mode derivative; use backend='reference'"
        )


def _has_tangents(*xs: Tensor) -> bool:
    if torch.compiler.is_compiling():
        return False
    return any(forward_ad.unpack_dual(x).tangent is not None for x in xs)


def _features(name: str, x: Any) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(x).__name__}")
    if not x.dtype.is_floating_point:
        raise TypeError(f"{name} must have a floating-point dtype; got {x.dtype}")
    if x.dtype.itemsize < 2:
        raise TypeError(
            f"{name} is {x.dtype}, but attention needs at least 16 bits: use "
            f"{name}.to(torch.bfloat16)"
        )
    if x.ndim != 4:
        hint = f"; flatten the grid with {name}.flatten(2, -2)" if x.ndim > 4 else ""
        raise ValueError(
            f"{name} must have shape (batch, heads, sites, features); got {tuple(x.shape)}{hint}"
        )


def _alike(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    if x.shape[0] != other.shape[0]:
        raise ValueError(
            f"{name} has a batch of {x.shape[0]} but {other_name} has {other.shape[0]}"
        )
    if x.dtype != other.dtype:
        raise ValueError(f"{name} is {x.dtype} but {other_name} is {other.dtype}")
    if x.device != other.device:
        raise ValueError(f"{name} is on {x.device} but {other_name} is on {other.device}")


def _structure(name: str, x: Any) -> None:
    from ndgpa.structures.base import SpatialStructure

    if not isinstance(x, SpatialStructure):
        raise TypeError(f"{name} must be a SpatialStructure; got {type(x).__name__}")


def _whole(structure: "SpatialStructure") -> None:
    from ndgpa.structures.sampling import Sampled

    if isinstance(structure, Sampled):
        raise TypeError("a sampled structure can only be passed as key_structure")


def _int_tensor(name: str, x: Any) -> None:
    if not isinstance(x, Tensor) or x.dtype not in (torch.int32, torch.int64):
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be an int32 or int64 tensor; got {got}")


def _listed(items: Iterable[Any], form: Any = str) -> str:
    return ", ".join(form(item) for item in items)


# Analysis


def site_ids(name: str, sites: Any, num_sites: int) -> None:
    _int_vector(name, sites)
    if len(sites) and not 0 <= int(sites.min()) <= int(sites.max()) < num_sites:
        raise ValueError(
            f"{name} must be between 0 and {num_sites - 1}; got numbers from {int(sites.min())} to "
            f"{int(sites.max())}"
        )


def picture(name: str, image: Any) -> None:
    if not isinstance(image, Tensor) or not image.dtype.is_floating_point:
        got = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(f"{name} must be a floating tensor; got {got}")
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(
            f"{name} must have shape (1 or 3, height, width); got {tuple(image.shape)}"
        )


def key_lines(
    queries: Any, keys: Tensor, weights: Tensor, query_image: Tensor, key_image: Tensor
) -> None:
    site_ids("queries", queries, query_image.shape[1:].numel())
    for name, x in (("keys", keys), ("weights", weights)):
        if x.ndim != 2 or x.shape[0] != len(queries):
            raise ValueError(
                f"{name} must have a row for each of {len(queries)} queries; got {tuple(x.shape)}"
            )
    if keys.shape != weights.shape:
        raise ValueError(
            f"keys has shape {tuple(keys.shape)} but weights has {tuple(weights.shape)}"
        )
    if keys.numel():
        site_ids("keys", keys.flatten().clamp(min=0), key_image.shape[1:].numel())


def needs(who: str, module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ImportError(f"{who} needs {module}; install it with: pip install 'ndgpa[{extra}]'")


# The triton backend


def triton_backend(
    query: Tensor, value: Tensor, dtypes: Iterable[torch.dtype], widest: int
) -> None:
    """Asked before the first kernel: a GPU, or Triton's interpreter, and a dtype that it has."""
    if importlib.util.find_spec("triton") is None:
        raise ValueError("backend 'triton' needs the triton package, which is not installed")
    interpreted = not query.is_cuda
    if interpreted and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"backend 'triton' needs tensors on a GPU; query is on {query.device}: use "
            "backend='torch', or set TRITON_INTERPRET=1 before Python starts to test the kernels"
        )
    if query.dtype not in dtypes:
        raise TypeError(f"backend 'triton' computes in {_listed(dtypes)}; got {query.dtype}")
    if interpreted and query.dtype == torch.bfloat16:
        raise TypeError("Triton's interpreter does not multiply torch.bfloat16; use a GPU")
    for name, x in (("query", query), ("value", value)):
        if x.shape[3] > widest:
            raise ValueError(
                f"backend 'triton' takes heads of at most {widest} features; "
                f"{name} has {x.shape[3]}"
            )


# Operators


def operator_call(
    query: Any, key: Any, value: Any, structure: Any, key_structure: Any, mask: Any
) -> None:
    """What every operator asks of its arguments."""
    query_and_key(query, key, structure, key_structure, "dot", causal=False)
    value_for(key, value)
    key_mask(mask, key)
    if _has_tangents(query, key, value):
        raise NotImplementedError(
            "this operator has no forward-mode derivative; use reverse mode, or Full"
        )


def grid_shape(who: str, name: str, structure: Any) -> tuple[int, ...]:
    from ndgpa.structures.grid import Grid

    if not isinstance(structure, Grid):
        raise TypeError(f"{who} needs a Grid as {name}; got {type(structure).__name__}")
    return structure.shape


def neighborhood(kernel: Any, dilation: Any, rel_bias: bool, heads: int | None) -> None:
    for name, value in (("kernel", kernel), ("dilation", dilation)):
        sizes = _ints(name, value)
        if not sizes or min(sizes) < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    if rel_bias and (heads is None or not isinstance(kernel, tuple)):
        raise ValueError("rel_bias=True needs heads, and a kernel given as one int per axis")
    if heads is not None:
        positive_count("heads", heads)


def windows(
    kernel: Any, dilation: Any, shape: tuple[int, ...], key_shape: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Kernel and dilation, one int per axis each, that fit the grid of the keys."""
    same_rank(shape, key_shape)
    sizes = []
    for name, value in (("kernel", kernel), ("dilation", dilation)):
        entries = _ints(name, value) * (len(shape) if isinstance(value, int) else 1)
        if len(entries) != len(shape):
            raise ValueError(
                f"{name} has {len(entries)} entries but the grid has {len(shape)} axes"
            )
        sizes.append(entries)
    for axis, (k, d, size) in enumerate(zip(*sizes, key_shape)):
        if k * d > size:
            raise ValueError(
                f"kernel {k} with dilation {d} covers {k * d} sites but axis {axis} of the keys "
                f"has {size}; kernel x dilation must not exceed it"
            )
    return sizes[0], sizes[1]


def same_rank(shape: tuple[int, ...], key_shape: tuple[int, ...]) -> None:
    if len(shape) != len(key_shape):
        raise ValueError(
            f"queries are on a grid of rank {len(shape)} but keys on one of rank {len(key_shape)}"
        )


def rel_bias_heads(rel_bias: Tensor, query: Tensor) -> None:
    if rel_bias.shape[0] != query.shape[1]:
        raise ValueError(
            f"query has {query.shape[1]} heads but the relative bias was made for "
            f"{rel_bias.shape[0]}"
        )
    if rel_bias.device != query.device:
        raise ValueError(f"the relative bias is on {rel_bias.device} but query on {query.device}")


def parts(given: Any) -> None:
    if len(given) == 0:
        raise ValueError("parts is empty; Hydra needs at least one operator")
    for part in given:
        if not callable(part):
            raise TypeError(f"parts must be operators; got {type(part).__name__}")


def hydra_lists(kernels: Any, dilations: Any) -> tuple[list[Any], list[Any]]:
    """Both lists at the length of the longer; a list of one serves all."""
    length = max(len(kernels), len(dilations))
    for name, given in (("kernels", kernels), ("dilations", dilations)):
        if len(given) not in (1, length):
            raise ValueError(f"{name} has {len(given)} entries; expected 1 or {length}")
    whole = [list(x) * (length if len(x) == 1 else 1) for x in (kernels, dilations)]
    return whole[0], whole[1]


def enough_heads(who: str, heads: int, count: int) -> None:
    if heads < count:
        raise ValueError(
            f"{who} has {count} parts but query has {heads} heads; each part needs one"
        )


def features_for_mask(who: str, query: Any, key: Any) -> tuple[Tensor, Tensor]:
    if query is None or key is None:
        raise ValueError(f"the mask of {who} depends on the features: give query and key")
    return query, key


def nystrom(landmarks: Any, iterations: Any, conv_kernel: Any, heads: Any) -> None:
    if landmarks != "blocks":
        if isinstance(landmarks, str):
            raise ValueError(f"unknown landmarks {landmarks!r}; expected a number or 'blocks'")
        positive_count("landmarks", landmarks)
    positive_count("iterations", iterations)
    if conv_kernel is None:
        return
    positive_count("conv_kernel", conv_kernel)
    if conv_kernel % 2 == 0:
        raise ValueError(f"conv_kernel must be odd; got {conv_kernel}")
    if heads is None:
        raise ValueError("conv_kernel needs heads, the number of query heads")
    positive_count("heads", heads)


def nystrom_conv(
    weight: Tensor,
    query: Tensor,
    structure: "SpatialStructure",
    key_structure: "SpatialStructure",
) -> None:
    if key_structure is not structure:
        raise ValueError("conv_kernel needs queries and keys on one structure")
    if weight.shape[0] != query.shape[1]:
        raise ValueError(
            f"query has {query.shape[1]} heads but the convolution was made for {weight.shape[0]}"
        )


def as_many_blocks(
    who: str, structure: "SpatialStructure", key_structure: "SpatialStructure"
) -> None:
    if structure.num_blocks != key_structure.num_blocks:
        raise ValueError(
            f"{who} needs as many blocks of queries as of keys; structure has "
            f"{structure.num_blocks} and key_structure {key_structure.num_blocks}"
        )


def one_space(who: str, *structures: "SpatialStructure") -> None:
    if any(structure.group is not None for structure in structures):
        raise NotImplementedError(
            f"{who} does not support structures with groups; call it once for each group"
        )


def performer(features: Any, redraw_every: Any, scale: Any, eps: Any) -> None:
    positive_count("features", features)
    if redraw_every is not None:
        positive_count("redraw_every", redraw_every)
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale of a Performer must be positive and finite; got {scale}")
    if not eps >= 0:
        raise ValueError(f"eps must be at least 0; got {eps}")


def performer_input(query: Tensor, projection: Tensor) -> None:
    if query.shape[-1] != projection.shape[1]:
        raise ValueError(
            f"query has {query.shape[-1]} features per head but the Performer was made for "
            f"{projection.shape[1]}"
        )
    if query.device != projection.device:
        raise ValueError(f"the projection is on {projection.device} but query is on {query.device}")


def block_size(block: Any) -> None:
    if block is not None and min(_ints("block", block), default=0) < 1:
        raise ValueError(f"block must be at least 1; got {block}")


def halves(who: str, heads: int) -> None:
    if heads % 2:
        raise ValueError(f"{who} needs an even number of query heads; got {heads}")


def paired_blocks(structure: "SpatialStructure", key_structure: "SpatialStructure") -> None:
    as_many_blocks("MultiAxis", structure, key_structure)
    if structure.sites_per_block != key_structure.sites_per_block:
        raise ValueError(
            f"MultiAxis needs blocks of one size; those of structure have "
            f"{structure.sites_per_block} sites and those of key_structure "
            f"{key_structure.sites_per_block}"
        )


def local_sparse(patterns: Any, known: Any) -> None:
    if len(patterns) == 0:
        raise ValueError("pattern is empty; name at least one")
    for pattern in patterns:
        one_of("pattern", pattern, known)


def stride(value: int, n: int) -> None:
    if value > n:
        raise ValueError(f"stride {value} is larger than the {n} sites of key_structure")


def heads_over_steps(who: str, heads: int, steps: int) -> None:
    if heads == 0 or heads % steps:
        raise ValueError(
            f"{who} needs a multiple of {steps} query heads, as many for each step; got {heads}"
        )


# Information flow


def flow_steps(steps: Any) -> None:
    if len(steps) == 0:
        raise ValueError("steps is empty; information flow needs at least one")
    for i, step in enumerate(steps):
        if not isinstance(step, Tensor) or step.dtype != torch.bool:
            got = step.dtype if isinstance(step, Tensor) else type(step).__name__
            raise TypeError(f"step {i} must be a bool tensor (queries, keys); got {got}")
        if step.ndim != 2:
            raise ValueError(f"step {i} must have two axes; got shape {tuple(step.shape)}")
        if i and step.shape[1] != steps[i - 1].shape[0]:
            raise ValueError(
                f"step {i} has {step.shape[1]} keys but the step before has "
                f"{steps[i - 1].shape[0]} queries"
            )


# Graphs


def graph(
    edge_index: Any,
    num_nodes: Any,
    downsample: Any,
    cell: Any,
    position: Any,
    edge_weight: Any,
    time: Any,
) -> None:
    _edge_index(edge_index)
    if isinstance(num_nodes, bool) or not isinstance(num_nodes, int):
        raise TypeError(f"num_nodes must be an int; got {num_nodes!r}")
    if num_nodes < 1:
        raise ValueError(f"num_nodes is {num_nodes}; a structure needs at least one site")
    if edge_index.numel():
        low, high = int(edge_index.min()), int(edge_index.max())
        if low < 0 or high >= num_nodes:
            raise ValueError(
                f"edge_index names node {low if low < 0 else high}; nodes are numbered from 0 to "
                f"{num_nodes - 1}"
            )
    counts(num_nodes, downsample, cell)
    if position is not None:
        points(position, downsample, cell)
        if len(position) != num_nodes:
            raise ValueError(f"position has {len(position)} rows but there are {num_nodes} nodes")
    if edge_weight is not None:
        _edge_weight(edge_weight, edge_index.shape[1])
    if time is not None:
        _int_vector("time", time)
        if len(time) != num_nodes:
            raise ValueError(f"time has {len(time)} entries but there are {num_nodes} sites")


def _edge_index(edge_index: Any) -> None:
    if not isinstance(edge_index, Tensor):
        raise TypeError(f"edge_index must be a tensor; got {type(edge_index).__name__}")
    dtype = edge_index.dtype
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise TypeError(f"edge_index must have an integer dtype; got {dtype}")
    if edge_index.ndim != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"edge_index must have shape (2, edges); got {tuple(edge_index.shape)}")


def _edge_weight(weight: Any, edges: int) -> None:
    if not isinstance(weight, Tensor):
        raise TypeError(f"edge_weight must be a tensor; got {type(weight).__name__}")
    if weight.dtype.is_complex or weight.dtype == torch.bool:
        raise TypeError(f"edge_weight must have a real dtype; got {weight.dtype}")
    if tuple(weight.shape) != (edges,):
        raise ValueError(f"edge_weight must have shape ({edges},); got {tuple(weight.shape)}")
    if not bool(weight.isfinite().all()) or bool((weight < 0).any()):
        raise ValueError("edge_weight must be finite and not negative")


def graph_method(method: str, has_position: bool) -> None:
    if method == "kd" and not has_position:
        raise ValueError("method 'kd' needs positions, and none are given")
    needed = {"metis": "pymetis", "landmark": "scipy"}.get(method)
    if needed is not None and find_spec(needed) is None:
        raise ImportError(
            f"Graph needs {needed} for method {method!r}; install it with: pip install "
            "'ndgpa[graph]', or give positions"
        )


def disjoint(structures: Sequence[Any]) -> None:
    if not structures:
        raise ValueError("disjoint got no structures; it needs at least one")
    for place, structure in enumerate(structures):
        _structure(f"structure {place}", structure)
    if len({structure.device for structure in structures}) > 1:
        devices = _listed(structure.device for structure in structures)
        raise ValueError(f"the structures are on different devices: {devices}")
    timed = [structure.time is not None for structure in structures]
    if any(timed) and not all(timed):
        raise ValueError(
            f"structure {timed.index(False)} has no time but structure {timed.index(True)} has"
        )


# PyTorch Geometric


def homogeneous(data: Any) -> None:
    if hasattr(data, "node_types"):
        raise TypeError(
            f"graphs must have one type of nodes; got {type(data).__name__}: convert it with "
            "data.to_homogeneous()"
        )


def has_edges(data: Any) -> None:
    if data.get("edge_index") is None:
        raise ValueError(
            "this graph has no edge_index; add edges first, e.g. with KNNGraph, or use "
            "ndgpa.PointCloud for positions alone"
        )


def coarsened(data: Any) -> None:
    if data.get("gpa_block_of_site") is None:
        raise ValueError(
            "this graph has no GPA tables; apply GPACoarsening first, as a transform or "
            "pre_transform"
        )


def node_batch(batch: Any, edge_index: Any, num_nodes: int) -> None:
    _int_vector("batch", batch)
    _edge_index(edge_index)
    if len(batch) != num_nodes:
        raise ValueError(f"batch has {len(batch)} entries but there are {num_nodes} nodes")
    if bool((batch[1:] < batch[:-1]).any()):
        raise ValueError("batch must be sorted: the nodes of each graph follow one another")
    if bool((batch[edge_index[0]] != batch[edge_index[1]]).any()):
        raise ValueError("edge_index connects nodes of different graphs in the batch")


# Rules beyond TopK


def share_of(name: str, value: Any) -> None:
    """A part of a whole: more than nothing, at most everything."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number; got {value!r}")
    if not 0 < value <= 1:
        raise ValueError(f"{name} must lie in (0, 1]; got {value}")


def bounds(at_least: Any, at_most: Any) -> None:
    positive_count("at_least", at_least)
    if at_most is None:
        return
    positive_count("at_most", at_most)
    if at_most < at_least:
        raise ValueError(f"at_most {at_most} is less than at_least {at_least}")


def radius(value: Any, rank: int) -> tuple[int, ...]:
    """One radius for each axis."""
    radii = _ints("radius", value)
    if isinstance(value, int):
        radii = radii * rank
    if len(radii) != rank:
        raise ValueError(f"radius has {len(radii)} entries but the grid has {rank} axes")
    if min(radii) < 0:
        raise ValueError(f"radius must be at least 0; got {value}")
    return radii


def no_neighborhood(name: str) -> str:
    return f"{name} does not know which blocks are near a cell; use a Grid"


def only_read(name: str) -> str:
    return (
        f"a sampled structure has no {name}, as a site may be in several blocks or in none; it "
        "can only be passed as key_structure"
    )


def one_structure(who: str, structure: "SpatialStructure", key_structure: Any) -> None:
    if key_structure is not structure:
        raise ValueError(f"{who} needs queries and keys on one structure")


def fixed_blocks(blocks: Any) -> None:
    _int_tensor("blocks", blocks)
    if not 1 <= blocks.ndim <= 4:
        raise ValueError(
            "blocks must have shape (width,), (cells, width), (heads, cells, width) or (batch, "
            f"heads, cells, width); got {tuple(blocks.shape)}"
        )


def fixed_for(blocks: Tensor, num_cells: int, num_blocks: int) -> None:
    if blocks.ndim > 1 and blocks.shape[-2] not in (1, num_cells):
        raise ValueError(
            f"Fixed has blocks for {blocks.shape[-2]} cells but structure has {num_cells}"
        )
    if blocks.is_cuda or torch.compiler.is_compiling():
        return
    if blocks.numel() and int(blocks.max()) >= num_blocks:
        raise ValueError(
            f"Fixed names block {int(blocks.max())} but key_structure has {num_blocks} blocks"
        )


def rules(who: str, items: Any) -> None:
    from ndgpa.selection.base import Rule

    if not isinstance(items, tuple) or not items:
        raise TypeError(f"{who} needs a tuple of rules; got {items!r}")
    for item in items:
        if not isinstance(item, Rule):
            raise TypeError(f"{who} needs rules; got {type(item).__name__}")


def rule_or_count(rule: Any) -> None:
    from ndgpa.selection.base import Rule

    if not isinstance(rule, Rule | int):
        raise TypeError(f"rule must be a Rule or an int; got {type(rule).__name__}")


def rule_per_head(count: int, heads: int) -> None:
    if count != heads:
        raise ValueError(f"PerHead has {count} rules but query has {heads} heads")


def kept_per_level(keep: Any) -> None:
    if not isinstance(keep, tuple) or not keep:
        raise TypeError(f"keep must be a tuple with one count for each level; got {keep!r}")
    for count in keep:
        positive_count("keep", count)


def level_factor(factor: Any) -> None:
    if not isinstance(factor, (int, tuple)):
        raise TypeError(f"factor must be an int or a tuple of ints; got {factor!r}")
    if min(_ints("factor", factor), default=0) < 1:
        raise ValueError(f"factor must be at least 1; got {factor}")


def level_shrinks(level: int, levels: int, before: int, after: int) -> None:
    if after >= before:
        raise ValueError(
            f"MultiLevel has {levels} levels, but level {level} would have {after} nodes, no fewer "
            f"than the {before} below it; use fewer levels or a larger factor"
        )


def positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number; got {value!r}")
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite; got {value}")


# The coarse branch


def one_time(holds: bool) -> None:
    if not holds:
        raise ValueError(
            "a causal coarse branch needs query blocks within one time, such as one frame or one "
            "token; a mean over several times would look ahead"
        )


def gate_for(coarse: str | None, gate: Any, out: tuple[int, ...]) -> None:
    if coarse != "gate":
        if gate is not None:
            raise ValueError(f"a gate needs coarse='gate'; got coarse={coarse!r}")
        return
    if not isinstance(gate, Tensor):
        raise TypeError(f"coarse='gate' needs a gate tensor; got {type(gate).__name__}")
    if gate.ndim != 4 or tuple(gate.shape[:3]) != out[:3] or gate.shape[3] not in (1, out[3]):
        raise ValueError(f"gate must have shape {out} or {(*out[:3], 1)}; got {tuple(gate.shape)}")


# Rules and presets of the peers


def antidiagonal(problem: Any, stride: int) -> None:
    if problem.causal:
        raise NotImplementedError(
            "Antidiagonal does not support causal=True: its estimate looks ahead"
        )
    if problem.affinity != "dot" or problem.key_mask is not None:
        raise ValueError("Antidiagonal needs affinity='dot' and no key_mask")
    for name in ("structure", "key_structure"):
        space = getattr(problem, name)
        if not space.is_even or space.sites_per_block % stride or space.group is not None:
            raise ValueError(
                f"Antidiagonal needs full blocks of a multiple of {stride} sites and no groups; "
                f"{name} is {space!r}"
            )


def preset_shape(who: str, name: str, sizes: Any, rank: int) -> tuple[int, ...]:
    entries = _ints(name, sizes)
    if len(entries) != rank:
        raise ValueError(f"{who} needs a {name} of {rank} axes; got {sizes}")
    return entries


def level_weights(weights: Tensor, levels: int) -> None:
    if not weights.dtype.is_floating_point or tuple(weights.shape) != (levels,):
        raise ValueError(
            f"quadtree_b needs {levels} floating weights, one more than topks has entries; got "
            f"{weights.dtype} of shape {tuple(weights.shape)}"
        )


def multiple(who: str, name: str, value: int, of: int) -> None:
    if value % of:
        raise ValueError(f"{who} needs a {name} that is a multiple of {of}; got {value}")


def below_one(name: str, value: Any) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1); got {value}")


def at_most(name: str, value: int, limit: int, of: str) -> None:
    positive_count(name, value)
    if value > limit:
        raise ValueError(f"{name} must be at most {limit}, the number of {of}; got {value}")


def no_mask(who: str, mask: Any) -> None:
    if mask is not None:
        raise ValueError(f"{who} does not support key_mask")


# Decoding


def same_sequence(name: str, new: Tensor, kept: Tensor) -> None:
    wanted = (*kept.shape[:2], kept.shape[3])
    if (*new.shape[:2], new.shape[3]) != wanted or new.dtype != kept.dtype:
        raise ValueError(
            f"{name} must match the cache, (batch, heads, features) = {wanted} and {kept.dtype}; "
            f"got {(*new.shape[:2], new.shape[3])} and {new.dtype}"
        )


def newest(query: Any, wanted: int) -> None:
    _features("query", query)
    if wanted == 0:
        raise ValueError(
            "every site of the cache already has its output; append keys and values first"
        )
    if query.shape[2] != wanted:
        raise ValueError(
            f"query has {query.shape[2]} sites but {wanted} were appended since the last call"
        )

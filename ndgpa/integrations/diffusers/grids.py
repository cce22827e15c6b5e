"""The grid of a call: found where a model is given its latent, and sent along to its attention.

The grid is never kept on a module. It travels with the arguments of the call, so what activation
checkpointing computes again in a backward, or another thread computes at the same time, has its
own. Models with a rotary embedding hand that to every attention, so the grid is tied to it; the
others have keywords for attention.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Num
from torch import Tensor, nn

KEYWORD = "ndgpa_grid"

Shape = tuple[int, ...]
Args = tuple[Any, ...]
Kwargs = dict[str, Any]
GridOf = Callable[[nn.Module, Args, Kwargs], Shape]


class OnGrid(tuple[Any, ...]):
    """The tensors of a rotary embedding, and the grid that they were made for."""

    grid: Shape

    def __new__(cls, items: Iterable[Any], grid: Shape) -> "OnGrid":
        pair = super().__new__(cls, items)
        pair.grid = grid
        return pair

    def __reduce__(self) -> tuple[Any, ...]:
        return OnGrid, (tuple(self), self.grid)

    def to(self, *args: Any, **kwargs: Any) -> "OnGrid":
        """Move the tensors; hooks that offload call this on arguments that have it."""
        return OnGrid((x.to(*args, **kwargs) for x in self), self.grid)


@dataclass(frozen=True)
class TieToRotary:
    """Tie the grid to the rotary embedding, as a forward hook of the module that makes it."""

    grid_of: GridOf

    def __call__(self, module: nn.Module, args: Args, kwargs: Kwargs, out: Any) -> OnGrid:
        return OnGrid(out, self.grid_of(module, args, kwargs))


@dataclass(frozen=True)
class PassAsKeyword:
    """Add the grid to the keywords for attention, as a forward pre-hook of the model.

    A caller who knows the grid may pass it there; then it is not looked for.
    """

    argument: str
    grid_of: GridOf

    def __call__(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        given = kwargs.get(self.argument) or {}
        if KEYWORD in given:
            return args, kwargs
        grid = self.grid_of(module, args, kwargs)
        return args, {**kwargs, self.argument: {**given, KEYWORD: grid}}


def drop_keyword(module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
    """Take the grid out again, as a forward pre-hook of an attention that has no use for it."""
    return args, {name: x for name, x in kwargs.items() if name != KEYWORD}


# Where each model says what its grid is


def _latent(args: Args, kwargs: Kwargs) -> Tensor:
    return kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]


def of_wan(rope: Any, args: Args, kwargs: Kwargs) -> Shape:
    """From (batch, channels, frames, height, width)."""
    sizes = _latent(args, kwargs).shape[-3:]
    return tuple(size // patch for size, patch in zip(sizes, rope.patch_size))


def of_hunyuan(rope: Any, args: Args, kwargs: Kwargs) -> Shape:
    """From (batch, channels, frames, height, width)."""
    frames, height, width = _latent(args, kwargs).shape[-3:]
    return frames // rope.patch_size_t, height // rope.patch_size, width // rope.patch_size


def of_ltx(rope: Any, args: Args, kwargs: Kwargs) -> Shape:
    """From the sizes that the pipeline passes, as the latent is packed already."""
    names = ("hidden_states", "num_frames", "height", "width", "scale", "video_coords")
    given = {**dict(zip(names, args)), **kwargs}
    if given.get("video_coords") is not None or None in [given.get(name) for name in names[1:4]]:
        raise NotImplementedError(
            "GPA needs num_frames, height and width of LTX; with video_coords, as in a pipeline "
            "that is conditioned on frames, its tokens lie on no grid"
        )
    return given["num_frames"], given["height"], given["width"]


def of_cogvideox(model: Any, args: Args, kwargs: Kwargs) -> Shape:
    """From (batch, frames, channels, height, width)."""
    _, frames, _, height, width = _latent(args, kwargs).shape
    patch, patch_t = model.config.patch_size, model.config.patch_size_t or 1
    return -(-frames // patch_t), height // patch, width // patch


def of_patches(model: Any, args: Args, kwargs: Kwargs) -> Shape:
    """From (batch, channels, height, width), in patches."""
    height, width = _latent(args, kwargs).shape[-2:]
    return height // model.patch_size, width // model.patch_size


def of_pixels(module: nn.Module, args: Args, kwargs: Kwargs) -> Shape:
    """From (batch, channels, height, width)."""
    return tuple(_latent(args, kwargs).shape[-2:])


def of_flux(model: nn.Module, args: Args, kwargs: Kwargs) -> Shape:
    """From the row and the column of each token, as the latent is packed already."""
    ids = kwargs.get("img_ids")
    if ids is None:
        raise ValueError("Flux finds its grid from img_ids, which must be passed by name")
    return _raster((ids[0] if ids.ndim == 3 else ids).detach().cpu())


def _raster(ids: Num[Tensor, "n 3"]) -> Shape:
    """Read (height, width) off positions (image, row, column) in raster order."""
    height, width = (int(size) + 1 for size in ids.amax(dim=0)[1:])
    number = ids[:, 1] * width + ids[:, 2]
    one_image = bool((ids[:, 0] == ids[0, 0]).all())
    if not one_image or not torch.equal(number.long(), torch.arange(height * width)):
        raise NotImplementedError(
            "img_ids must be those of one image in raster order; GPA does not know Flux with "
            "reference images"
        )
    return height, width

"""Head sharding (Ulysses): all sites and some heads, in place of some sites and all heads."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh

from ndgpa.distributed.part import check_mesh


def sites_to_heads(x: Float[Tensor, "b h m d"], mesh: DeviceMesh) -> Float[Tensor, "b g n d"]:
    """Exchange features so that each rank has all sites and h / ranks of the heads.

    Attention is per head, so whatever attends next needs nothing of the other ranks: `ndgpa.gpa` of
    a whole space, or, on a mesh of two dimensions, `ndgpa.distributed.gpa` of a part.

    Source: DeepSpeed Ulysses (Jacobs et al. 2023).

    Args:
        x: A run of the sites and all heads; as many sites on every rank.
        mesh: One dimension of a mesh, such as `mesh["heads"]`.

    Raises:
        ValueError: The heads do not divide among the ranks.
    """
    _check_heads(x, mesh)
    pieces = rearrange(x, "b (u g) m d -> u b g m d", u=mesh.size())
    return rearrange(_exchanged(pieces, mesh), "u b g m d -> b g (u m) d")


def heads_to_sites(x: Float[Tensor, "b g n d"], mesh: DeviceMesh) -> Float[Tensor, "b h m d"]:
    """Undo `sites_to_heads`: each rank gets its run of the sites and all heads.

    Raises:
        ValueError: The sites do not divide among the ranks.
    """
    check_mesh(mesh)
    if x.shape[2] % mesh.size():
        raise ValueError(f"{x.shape[2]} sites do not divide among {mesh.size()} ranks")
    pieces = rearrange(x, "b g (u m) d -> u b g m d", u=mesh.size())
    return rearrange(_exchanged(pieces, mesh), "u b g m d -> b (u g) m d")


def _exchanged(pieces: Float[Tensor, "ranks *shape"], mesh: DeviceMesh) -> Tensor:
    """Send the i-th piece to rank i, and return those that came, by rank."""
    group = mesh.get_group()
    return all_to_all_single_autograd(pieces.contiguous(), None, None, group)


def _check_heads(x: Tensor, mesh: DeviceMesh) -> None:
    check_mesh(mesh)
    if x.shape[1] % mesh.size():
        raise ValueError(f"{x.shape[1]} heads do not divide among {mesh.size()} ranks")

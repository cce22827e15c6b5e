"""Special tokens beside a space: class tokens, registers, text before or after a video."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa import arguments
from ndgpa.structures.base import SpatialStructure, check_structure
from ndgpa.structures.tables import cached


def with_tokens(
    structure: SpatialStructure,
    prefix: int = 1,
    suffix: int = 0,
    *,
    time: Int[Tensor, " tokens"] | None = None,
) -> SpatialStructure:
    """Add special tokens to a space: keys that every site reads, queries that read everything.

    The sites of the result are the prefix tokens, then those of `structure`, then the suffix
    tokens. In `ndgpa.gpa` the tokens take no part in the selection: cells select among the blocks
    of `structure` as without tokens, and what they read is one softmax over the selected blocks and
    all tokens.

    Args:
        structure: Any space without groups.
        prefix, suffix: How many tokens come before and after its sites; with 0 and 0 the result is
            `structure`.
        time: (prefix + suffix,) int, the time of each token, for causal attention. None means that
            the prefix is earlier than every site and the suffix later, each at one time.

    Raises:
        ValueError: A number is negative, or `time` has another length, or the space has no time.
        TypeError: `structure` is no structure, or a number no int.
        NotImplementedError: The space has groups.
    """
    check_structure("structure", structure)
    _check_count("prefix", prefix)
    _check_count("suffix", suffix)
    arguments.int_vector_of("time", time, prefix + suffix, "tokens")
    _check_space(structure, time)
    if prefix == suffix == 0:
        return structure
    return WithTokens(structure, prefix, suffix, None if time is None else time.long())


class WithTokens(SpatialStructure):
    """What `with_tokens` makes: the blocks and cells of a space, then those of its tokens.

    The tokens are cut into blocks as large as those of the space, each a cell of its own.
    """

    def __init__(
        self, inner: SpatialStructure, prefix: int, suffix: int, token_time: Tensor | None
    ) -> None:
        self._inner, self._prefix, self._suffix = inner, prefix, suffix
        self._token_time = token_time

    def __repr__(self) -> str:
        return f"with_tokens({self._inner}, prefix={self._prefix}, suffix={self._suffix})"

    @property
    def inner(self) -> SpatialStructure:
        return self._inner

    @property
    def prefix(self) -> int:
        return self._prefix

    @property
    def suffix(self) -> int:
        return self._suffix

    @property
    def num_sites(self) -> int:
        return self._prefix + self._inner.num_sites + self._suffix

    @property
    def device(self) -> torch.device:
        return self._inner.device

    def _move(self, device: torch.device) -> "WithTokens":
        time = None if self._token_time is None else self._token_time.to(device)
        return WithTokens(self._inner.to(device), self._prefix, self._suffix, time)

    @cached
    def blocks(self) -> Int[Tensor, "B R"]:
        own = self._inner.blocks
        tokens = (
            self._token_blocks(0, self._prefix),
            self._token_blocks(self._prefix + self._inner.num_sites, self._suffix),
        )
        return torch.cat([torch.where(own < 0, -1, own + self._prefix), *tokens])

    def _token_blocks(self, first: int, count: int) -> Int[Tensor, "B R"]:
        sites, places = first + torch.arange(count, device=self.device), self.sites_per_block
        return F.pad(sites, (0, -count % places), value=-1).view(-1, places)

    @property
    def sites_per_block(self) -> int:
        return self._inner.sites_per_block

    @cached
    def cells(self) -> Int[Tensor, "C P"]:
        own = self._inner.cells
        tokens = torch.arange(self._inner.num_blocks, self.num_blocks, device=self.device)
        return torch.cat([own, F.pad(tokens[:, None], (0, own.shape[1] - 1), value=-1)])

    @cached
    def time(self) -> Int[Tensor, " n"] | None:
        own, counts = self._inner.time, (self._prefix, self._suffix)
        if own is None:
            return None
        if self._token_time is not None:
            before, after = self._token_time.split(counts)
        else:
            before = (own.amin() - 1).expand(self._prefix)
            after = (own.amax() + 1).expand(self._suffix)
        return torch.cat([before, own, after])

    def coarsen(
        self, factor: int | tuple[int, ...], cell: int | tuple[int, ...] = 1
    ) -> SpatialStructure:
        """Make the coarser space with a token after it for each block of tokens."""
        inner = self._inner.coarsen(factor, cell)
        tokens = self.num_blocks - self._inner.num_blocks
        time = None if self.time is None else self.block_span[1][self._inner.num_blocks :]
        return WithTokens(inner, 0, tokens, time)


def without_tokens(structure: SpatialStructure, x: Tensor, dim: int = 2) -> Tensor:
    """Cut out the sites of `structure.inner`, a view; all of x where there are no tokens."""
    if structure.inner is structure:
        return x
    return x.narrow(dim, structure.prefix, structure.inner.num_sites)


def split_tokens(
    structure: SpatialStructure, x: Float[Tensor, "b h n *d"]
) -> tuple[Float[Tensor, "b h s *d"], Float[Tensor, "b h t *d"]]:
    """Split features into those of the sites, a view, and those of the tokens, a copy.

    One operation, whose gradient is one copy too.
    """
    if structure.inner is structure:
        return x, x[:, :, :0]
    sizes = [structure.prefix, structure.inner.num_sites, structure.suffix]
    before, sites, after = x.split(sizes, dim=2)
    return sites, torch.cat([before, after], dim=2)


def between_tokens(
    structure: SpatialStructure,
    x: Float[Tensor, "b h n d"],
    sites: Float[Tensor, "b h s d"],
) -> Float[Tensor, "b h n d"]:
    """Put features of the sites of `structure.inner` in the place of theirs in x."""
    if structure.inner is structure:
        return sites
    end = x.shape[2] - structure.suffix
    return torch.cat([x[:, :, : structure.prefix], sites, x[:, :, end:]], dim=2)


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int; got {value!r}")
    if value < 0:
        raise ValueError(f"{name} must be at least 0; got {value}")


def _check_space(structure: SpatialStructure, time: Tensor | None) -> None:
    if structure.group is not None:
        raise NotImplementedError(
            "tokens of a structure with groups would let its spaces see each other; give each "
            "space its own call"
        )
    if structure.inner is not structure:
        raise ValueError(f"structure has tokens already; got {structure}")
    if time is not None and structure.time is None:
        raise ValueError("time is given for the tokens but structure has no time")
    if time is not None and time.device != structure.device:
        raise ValueError(f"time is on {time.device} but structure is on {structure.device}")

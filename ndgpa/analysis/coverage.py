"""How much of full attention a selection keeps."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ndgpa import arguments
from ndgpa.analysis._rows import logit_rows
from ndgpa.problem import Affinity, Problem, Selection, check_block_ids, check_selection
from ndgpa.structures import SpatialStructure

# Logits held at a time.
_CHUNK = 1 << 22


@torch.no_grad()
def coverage(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b hk n_k d"],
    selection: Selection,
    structure: SpatialStructure,
    *,
    key_structure: SpatialStructure | None = None,
    scale: float | None = None,
    affinity: Affinity = "dot",
    causal: bool = False,
    key_mask: Bool[Tensor, "b n_k"] | None = None,
    samples: int | None = 1024,
    seed: int = 0,
) -> Float[Tensor, "b h"]:
    """Measure the share of full attention that lies on the selected keys, averaged over queries.

    The share of a query is the softmax over all keys that it can see, summed over the blocks that
    its cell selected. Keeping more blocks never lowers the share; keeping all gives exactly 1. The
    bias of the selection is ignored.

    Source: `err_stat` in the code released with Jetchev et al. 2021, which draws one query of each
    cell.

    Args:
        query, key, structure, key_structure, scale, affinity, causal, key_mask: As for `ndgpa.gpa`.
        selection: From `ndgpa.select`, or built from block ids.
        samples: How many query sites to draw, without repetition, the same in every batch and
            head. None, or at least as many as there are, takes all and is exact.
        seed: Seed of the draw.

    Returns:
        The shares, in float32 or wider. Queries that see no key are left out of the mean; where
        there is no other query, the share is 1.

    Raises:
        ValueError, TypeError: An argument does not fit the others; nothing has been computed.
    """
    problem = Problem.of(
        query,
        key,
        structure,
        key_structure=key_structure,
        scale=scale,
        affinity=affinity,
        causal=causal,
        key_mask=key_mask,
    )
    structure, key_structure = problem.structure, problem.key_structure
    check_selection(selection, query, key, structure)
    if samples is not None:
        arguments.positive_count("samples", samples)
    if not selection.blocks.is_cuda:
        check_block_ids(selection.blocks, key_structure.inner.num_blocks)
    sites = _draw(structure.num_sites, samples, seed).to(query.device)
    shares = seeing = torch.zeros((), device=query.device)
    of_one = max(1, query.shape[:2].numel() * key.shape[2])
    for chunk in sites.split(max(1, _CHUNK // of_one)):
        rows = logit_rows(problem, chunk)
        kept = _kept(selection, chunk, structure, key_structure, query.shape[1])
        sees_none = rows.amax(dim=-1) == -torch.inf
        share = _share(rows, kept).masked_fill(sees_none, 0)
        shares = shares + share.sum(dim=-1)
        seeing = seeing + (~sees_none).sum(dim=-1)
    return torch.where(seeing == 0, 1, shares / seeing.clamp(min=1))


def _draw(num_sites: int, samples: int | None, seed: int) -> Int[Tensor, " s"]:
    if samples is None or samples >= num_sites:
        return torch.arange(num_sites)
    return torch.randperm(num_sites, generator=torch.Generator().manual_seed(seed))[:samples]


def _kept(
    selection: Selection,
    sites: Int[Tensor, " s"],
    structure: SpatialStructure,
    key_structure: SpatialStructure,
    heads: int,
) -> Bool[Tensor, "b h s n_k"]:
    """Tell whether each key is of a block that the query's cell selected; with a token, True."""
    own, keys = structure.inner, key_structure.inner
    inner = sites - structure.prefix
    is_token = (inner < 0) | (inner >= own.num_sites)
    cells = own.cell_of_site[inner.masked_fill(is_token, 0)]
    blocks = selection.blocks[:, :, cells].long()
    blocks = blocks.masked_fill(blocks < 0, keys.num_blocks)
    kept = torch.zeros(*blocks.shape[:3], keys.num_blocks + 1, dtype=torch.bool)
    kept = kept.to(blocks.device).scatter(-1, blocks, True)
    kept = kept[..., keys.block_of_site]
    kept = F.pad(kept, (key_structure.prefix, key_structure.suffix), value=True)
    kept = kept | is_token[:, None]
    return kept.repeat_interleave(heads // kept.shape[1], dim=1)


def _share(
    rows: Float[Tensor, "b h s n_k"], kept: Bool[Tensor, "b h s n_k"]
) -> Float[Tensor, "b h s"]:
    """Divide the kept mass by the total, both summed in one order so that all kept is exactly 1."""
    mass = rows.softmax(dim=-1)
    return mass.where(kept, 0).sum(dim=-1) / mass.sum(dim=-1)

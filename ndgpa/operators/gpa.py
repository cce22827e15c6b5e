"""Grid Partitioned Attention with its options bound."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ndgpa import arguments
from ndgpa._ops import without_autocast
from ndgpa.attention.far_field import Bundles, Far, check_far, far_mask
from ndgpa.attention.scores import Scores
from ndgpa.functional import gpa, select
from ndgpa.operators.coarse import add_by_block, coarse_attention
from ndgpa.problem import Affinity, Problem
from ndgpa.selection import Rule
from ndgpa.structures import Sampling, SpatialStructure, visible
from ndgpa.structures.tables import lookup
from ndgpa.structures.tokens import between_tokens, without_tokens


@dataclass(frozen=True)
class GPA:
    """Apply `ndgpa.gpa` with its options bound; options and errors as there.

    Args:
        rule: Which key blocks each cell reads; an int k means `TopK(k)`.
        coarse: Also attend between block means: "add" adds the result to every site of a block,
            "gate" first multiplies it by the gate given to the call. None means no coarse branch.
        coarse_sizes: Whether the coarse branch weights a key block by its number of sites.
        read: Which sites are read where a block is selected, e.g. `Strided(2)`; None means its own.
        far: How the blocks that are not selected take part: "site", "block", `Bundles`, or not
            at all (None).
    """

    rule: Rule | int
    scale: float | None = None
    affinity: Affinity = "dot"
    causal: bool = False
    backend: Literal["reference", "torch", "triton"] | None = None
    coarse: Literal["add", "gate"] | None = None
    coarse_sizes: bool = True
    read: Sampling | None = None
    far: Far | Bundles | None = None

    def __post_init__(self) -> None:
        if self.coarse is not None:
            arguments.one_of("coarse", self.coarse, ("add", "gate"))
        if self.far is not None:
            check_far(self.far)

    def __call__(
        self,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b hk n_k d"],
        value: Float[Tensor, "b hk n_k dv"],
        structure: SpatialStructure,
        key_structure: SpatialStructure | None = None,
        *,
        key_mask: Bool[Tensor, "b n_k"] | None = None,
        query_mask: Bool[Tensor, "b n"] | None = None,
        gate: Float[Tensor, "b h n #dv"] | None = None,
        scores: Scores | None = None,
    ) -> Float[Tensor, "b h n dv"]:
        """Attend.

        Args:
            query_mask: As for `gpa`. The query of a block in the coarse branch, too, is the mean
                over the sites that take part.
            gate: Factor of the coarse branch, one for each feature or one for each site; only with
                `coarse="gate"`.
            scores: As for `gpa`; without a coarse branch.
        """
        if scores is not None and self.coarse is not None:
            raise NotImplementedError("scores do not reach a coarse branch: pass scores or coarse")
        _check_gate(self.coarse, gate, (*query.shape[:3], value.shape[-1]))
        out = gpa(
            query,
            key,
            value,
            structure,
            self.rule,
            key_structure=key_structure,
            scale=self.scale,
            affinity=self.affinity,
            causal=self.causal,
            key_mask=key_mask,
            query_mask=query_mask,
            read=self.read,
            far=self.far,
            scores=scores,
            backend=self.backend,
        )
        if self.coarse is None:
            return out
        problem = Problem.of(
            query,
            key,
            structure,
            key_structure=key_structure,
            scale=self.scale,
            affinity=self.affinity,
            causal=self.causal,
            key_mask=key_mask,
            query_mask=query_mask,
        )
        own, sites = problem.structure, problem.without_tokens
        value = without_tokens(problem.key_structure, value)
        with without_autocast(query):
            branch = coarse_attention(sites, value, self.coarse_sizes).to(out.dtype)
        gate = None if gate is None else without_tokens(own, gate.to(out.dtype))
        added = add_by_block(without_tokens(own, out), branch, sites.structure, gate)
        return between_tokens(own, out, added)

    def mask(
        self,
        structure: SpatialStructure,
        key_structure: SpatialStructure | None = None,
        query: Tensor | None = None,
        key: Tensor | None = None,
    ) -> Bool[Tensor, "groups n n_k"]:
        """Return which site reads which, given these features; see `SaysMask.mask`.

        There is one group for each sample and selection head. A coarse branch reads every key.
        """
        query, key = _check_features_given("GPA", query, key)
        key_structure = structure if key_structure is None else key_structure
        selection = select(
            query,
            key,
            structure,
            self.rule,
            key_structure=key_structure,
            scale=self.scale,
            affinity=self.affinity,
            causal=self.causal,
        )
        own, keys = structure.inner, key_structure.inner.to(query.device)
        read = keys.blocks if self.read is None else self.read.sites(keys)
        sites = lookup(read, selection.blocks).flatten(0, 1).flatten(-2)  # (groups, C, y)
        reads = torch.zeros(
            *sites.shape[:2], keys.num_sites + 1, dtype=torch.bool, device=sites.device
        )
        reads = reads.scatter_(2, sites % reads.shape[2], value=True)[:, :, :-1]  # -1 is the last
        mask = reads[:, own.cell_of_site] | (self.coarse is not None)
        if self.far is not None:
            mask = mask | far_mask(self.far, own, keys, read, self.causal)
        mask = F.pad(
            mask,
            (key_structure.prefix, key_structure.suffix, structure.prefix, structure.suffix),
            value=True,
        )
        seen = visible(structure, key_structure, self.causal)
        return mask if seen is None else mask & seen


def _check_features_given(who: str, query: Any, key: Any) -> tuple[Tensor, Tensor]:
    if query is None or key is None:
        raise ValueError(f"the mask of {who} depends on the features; pass query and key")
    return query, key


def _check_gate(coarse: str | None, gate: Any, out: tuple[int, ...]) -> None:
    if coarse != "gate":
        if gate is not None:
            raise ValueError(f"a gate needs coarse='gate'; got coarse={coarse!r}")
        return
    if not isinstance(gate, Tensor):
        raise TypeError(f"coarse='gate' needs a gate tensor; got {type(gate).__name__}")
    if gate.ndim != 4 or tuple(gate.shape[:3]) != out[:3] or gate.shape[3] not in (1, out[3]):
        raise ValueError(f"gate must have shape {out} or {(*out[:3], 1)}; got {tuple(gate.shape)}")

"""Grid Partitioned Attention with its options bound."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ndgpa import _checks
from ndgpa._ops import without_autocast
from ndgpa.attend.far_field import FAR, far_mask
from ndgpa.functional import attend, select
from ndgpa.operators.coarse import add_by_block, coarse_attention
from ndgpa.selection import Problem, Rule
from ndgpa.structures import SpatialStructure, visible
from ndgpa.structures.sampling import Sampling


@dataclass(frozen=True)
class GPA:
    """`ndgpa.gpa` as an operator; options and errors as there.

    Args:
        rule: Which key blocks each cell reads; an int k means `TopK(k)`.
        coarse: Also attend between block means and bring the result to every site of a block:
            "add" adds it, "gate" adds it times the gate given to the call, None does not.
        coarse_sizes: Whether a key block counts in the coarse branch as its sites do, or as one.
        read: Which sites stand for a block, e.g. `Strided(2)`; None means all of its own.
        far: How the blocks that are not selected take part, as for `ndgpa.gpa`.
    """

    rule: Rule | int
    scale: float | None = None
    affinity: str = "dot"
    causal: bool = False
    backend: str | None = None
    coarse: str | None = None
    coarse_sizes: bool = True
    read: Sampling | None = None
    far: str | None = None

    def __post_init__(self) -> None:
        if self.coarse is not None:
            _checks.one_of("coarse", self.coarse, ("add", "gate"))
        if self.far is not None:
            _checks.one_of("far", self.far, FAR)

    def __call__(
        self,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b hk n_k d"],
        value: Float[Tensor, "b hk n_k dv"],
        structure: SpatialStructure,
        key_structure: SpatialStructure | None = None,
        *,
        key_mask: Bool[Tensor, "b n_k"] | None = None,
        gate: Float[Tensor, "b h n #dv"] | None = None,
    ) -> Float[Tensor, "b h n dv"]:
        """Attend.

        Args:
            gate: What the coarse branch is multiplied with, one number for each feature or for
                each site; only with `coarse="gate"`.
        """
        _checks.gate_for(self.coarse, gate, (*query.shape[:3], value.shape[-1]))
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
            key_mask=key_mask,
        )
        out = attend(
            query,
            key,
            value,
            selection,
            structure,
            key_structure=self._read(key_structure, query.device),
            scale=self.scale,
            affinity=self.affinity,
            causal=self.causal,
            key_mask=key_mask,
            far=self.far,
            backend=self.backend,
        )
        if self.coarse is None:
            return out
        structure, key_structure = structure.to(query.device), key_structure.to(query.device)
        scale = query.shape[-1] ** -0.5 if self.scale is None else self.scale
        problem = Problem(
            query, key, structure, key_structure, scale, self.affinity, self.causal, key_mask
        )
        with without_autocast(query):
            branch = coarse_attention(problem, value, self.coarse_sizes).to(out.dtype)
        return add_by_block(out, branch, structure, None if gate is None else gate.to(out.dtype))

    def _read(self, key_structure: SpatialStructure, device: torch.device) -> SpatialStructure:
        return key_structure if self.read is None else self.read(key_structure.to(device))

    def mask(
        self,
        structure: SpatialStructure,
        key_structure: SpatialStructure | None = None,
        query: Tensor | None = None,
        key: Tensor | None = None,
    ) -> Bool[Tensor, "groups n n_k"]:
        """The keys that these features make a query read; as `SaysMask.mask`.

        There is a group for each batch and selection head. A coarse branch reads every key.
        """
        query, key = _checks.features_for_mask("GPA", query, key)
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
        read = self._read(key_structure, query.device)
        sites = read.upsample(selection.blocks)
        sites = sites.flatten(0, 1).flatten(-2)  # (groups, C, y)
        reads = torch.zeros(
            *sites.shape[:2], key_structure.num_sites + 1, dtype=torch.bool, device=sites.device
        )
        reads = reads.scatter_(2, sites % reads.shape[2], value=True)[:, :, :-1]  # -1 is the last
        mask = reads[:, structure.cell_of_site] | (self.coarse is not None)
        seen = visible(structure, key_structure, self.causal)
        mask = mask if seen is None else mask & seen
        return mask if self.far is None else mask | far_mask(self.far, structure, read, self.causal)

"""Who is compared on a GPU: the inputs of a case, each contender's call, and the least work."""

from collections.abc import Callable
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from gpu_cases import Case, features
from gpu_device import Bench
from torch import Tensor
from torch.nn.attention import sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention

import ndgpa

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
FAR = {"attend, far site": "site", "attend, far block": "block"}


class NotLaunched(Exception):
    """A rehearsal has come to what a GPU alone can run."""


class Problem:
    """Inputs of a case on the device, and a selection for those who take one."""

    def __init__(self, case: Case, bench: Bench, lists: str) -> None:
        self.case, self.bench = case, bench
        self.space = case.space().to(bench.device)
        key = features(case, self.space, lists, bench.device)
        query = key if lists != "random" else features(case, self.space, lists, bench.device, 1)
        value = torch.randn_like(key)
        self.inputs = [query, key, value]
        self.truths: dict[str | None, Tensor] = {}

    @cached_property
    def selection(self) -> ndgpa.Selection:
        return self.select()

    def truth(self, who: str) -> Tensor:
        """What a contender computes, by the `torch` backend; the last is kept."""
        far = FAR.get(who)
        if far not in self.truths:
            with torch.no_grad():
                self.truths = {far: self.in_torch(*self.inputs, far=far)}
        return self.truths[far]

    def select(self) -> ndgpa.Selection:
        return ndgpa.select(*self.inputs[:2], self.space, self.case.kept)

    # Contenders

    def contender(self, who: str) -> tuple[Attention, bool]:
        """The call, and whether it takes inputs laid out block by block."""
        if who.startswith("dense "):
            return self.dense(who.removeprefix("dense ")), False
        plain = {"gpa": self.gpa, "attend": self.attend, "torch backend": self.in_torch}
        plain |= {name: partial(self.attend, far=far) for name, far in FAR.items()}
        if who in plain:
            return plain[who], False
        return {"flex": self.flex, "VSA": self.vsa}[who](), True

    def gpa(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        backend = self.bench.backend
        return ndgpa.gpa(query, key, value, self.space, self.case.kept, backend=backend)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, far: str | None = None) -> Tensor:
        given, backend = (query, key, value, self.selection, self.space), self.bench.backend
        return ndgpa.attend(*given, far=far, backend=backend)

    def in_torch(self, query: Tensor, key: Tensor, value: Tensor, far: str | None = None) -> Tensor:
        given = query, key, value, self.selection, self.space
        return ndgpa.attend(*given, far=far, backend="torch")

    def dense(self, name: str) -> Attention:
        def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            with sdpa_kernel(self.bench.dense[name]):
                return F.scaled_dot_product_attention(query, key, value)

        return run

    def flex(self) -> Attention:
        """FlexAttention over the same lists, tuned by the search of its compiler."""
        mask, options, search = self.flex_call()
        if not self.bench.is_gpu:
            raise NotLaunched("not launched: flex")
        torch._dynamo.reset()
        tuned = {"max_autotune": True, "max_autotune_flex_search_space": search}
        compiled = torch.compile(flex_attention, fullgraph=True, options=tuned)

        def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return compiled(query, key, value, block_mask=mask, kernel_options=options)

        return run

    def flex_call(self) -> tuple[BlockMask, dict[str, int], str]:
        """The lists, what its forward must be told, and the search space of its tiles.

        A tile is no larger than a block. None of the tiles of the forward has fewer than 32 keys,
        so blocks of 16 are named to it. The backward is told nothing: only tiles that divide the
        blocks before options apply are tried, and of those the exhaustive space alone has some.
        """
        if not self.space.is_even:
            raise ValueError("takes no ragged blocks")
        places, sites = self.space.cell_sites.shape[1], self.space.sites_per_block
        if self.bench.is_gpu and min(places, sites) < 16:
            raise ValueError("takes no cells or blocks of fewer than 16 sites")
        blocks = self.selection.blocks
        count = torch.full(blocks.shape[:3], blocks.shape[3], dtype=torch.int32)
        count = count.to(blocks.device)
        ids = blocks.new_zeros(*blocks.shape[:3], self.space.num_blocks)
        ids[..., : blocks.shape[3]] = blocks
        none = torch.zeros_like(count), torch.zeros_like(ids)
        mask = BlockMask.from_kv_blocks(*none, count, ids, BLOCK_SIZE=(places, sites))
        return mask, *flex_tuning(places, sites)

    def vsa(self) -> Attention:
        """VSA's block-sparse Triton kernel: cells and blocks of 64 sites, bfloat16."""
        from fastvideo_kernel.block_sparse_attn import block_sparse_attn_from_indices

        places, sites = self.space.cell_sites.shape[1], self.space.sites_per_block
        if self.bench.is_gpu and (places, sites, self.case.dtype) != (64, 64, torch.bfloat16):
            raise ValueError("takes cells and blocks of 64 sites in bfloat16")
        ids = self.selection.blocks.contiguous()
        count = torch.full(ids.shape[:3], ids.shape[3], dtype=torch.int32, device=ids.device)
        sizes = self.space.block_sizes.int()
        if not self.bench.is_gpu:
            raise NotLaunched("not launched: VSA")

        def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return block_sparse_attn_from_indices(query, key, value, ids, count, sizes)[0]

        return run

    def laid_out(self) -> list[Tensor]:
        """Query cell by cell, key and value block by block, for those who need it so."""
        query = self.space.partition(self.inputs[0]).flatten(2, 3)
        key, value = (self.space.by_block(x).flatten(2, 3) for x in self.inputs[1:])
        return [x.contiguous() for x in (query, key, value)]

    def composed(self, out: Tensor) -> Tensor:
        return self.space.compose(out.unflatten(2, self.space.cell_sites.shape))

    # The least work

    def pairs(self) -> float:
        """Selected (query, key) pairs, all heads."""
        seen = self.space.block_sizes[self.selection.blocks.clamp(min=0)]
        seen = seen.masked_fill(self.selection.blocks < 0, 0).sum(dim=-1)
        per_cell = (self.space.cell_sites >= 0).sum(dim=1)
        return float((seen * per_cell).sum())

    def operations(self, who: str, backward: bool) -> float:
        """Two products forward; five more backward (the logits are made again)."""
        query, blocks = self.inputs[0], self.space.num_blocks
        heads, sites = query.shape[:2].numel(), query.shape[2]
        if who.startswith("dense"):
            pairs = heads * sites**2
        else:  # a key of a bundle is a value besides, and each bundle one key to a site
            tangents = heads * (1.5 * blocks**2 + 16 * sites)
            of_far = {"site": heads * sites * blocks, "block": tangents}
            pairs = self.pairs() + of_far.get(FAR.get(who, ""), 0)
        return 2 * pairs * self.case.width * (7 if backward else 2)

    def traffic(self, backward: bool) -> float:
        """Read q, k, v, write out; then read them with out and its gradient, write three more."""
        return self.unit * (12 if backward else 4)

    def selection_work(self) -> tuple[float, float]:
        """One pass over the coarse scores, query and key read once."""
        heads, blocks = self.case.batch * self.case.heads, self.space.num_blocks
        return 2 * heads * blocks**2 * self.case.width, 2 * self.unit

    @property
    def unit(self) -> int:
        return self.inputs[0].nbytes


def flex_tuning(places: int, sites: int) -> tuple[dict[str, int], str]:
    """Options and search space of FlexAttention for cells and blocks of so many sites."""
    if places % 64 == 0 and sites % 64 == 0:
        return {}, "DEFAULT"
    return {"fwd_BLOCK_M": min(places, 64), "fwd_BLOCK_N": min(sites, 64)}, "EXHAUSTIVE"

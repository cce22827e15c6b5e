"""Sparse attention of language models: MoBA, Native Sparse Attention, XAttention."""

from ndgpa import arguments
from ndgpa.operators import GPA
from ndgpa.presets.base import Preset, check_multiple
from ndgpa.selection import Antidiagonal, Own, Rule, TopK
from ndgpa.structures import Sequence


def moba(length: int, chunk: int, top_k: int) -> Preset:
    """Build Mixture of Block Attention: each query reads its own chunk and the best past chunks.

    Causal. Chunks are compared by the logits of single queries and mean keys; a query's own chunk
    counts as one of `top_k`. A chunk longer than the sequence holds all of it.

    Source: Lu et al. 2025, "MoBA: Mixture of block attention for long-context LLMs".
    """
    arguments.positive_count("top_k", top_k)
    rule: Rule = Own() if top_k == 1 else TopK(top_k - 1, relevance="logit", force=Own())
    return _causal(rule, length, "chunk", chunk)


def nsa_selection(length: int, block: int = 64, top: int = 16) -> Preset:
    """Build the selection branch of Native Sparse Attention, causal, before its gate.

    The softmax over complete past blocks is taken for each query and head, then summed over the
    query heads of a key head, which share a selection. A query's own block counts as one of `top`.
    A block longer than the sequence holds all of it.

    Source: Yuan et al. 2025, "Native sparse attention".
    """
    arguments.positive_count("top", top)
    rule: Rule = Own() if top == 1 else TopK(top - 1, share="group", force=Own())
    return _causal(rule, length, "block", block)


def xattention(length: int, block: int = 128, stride: int = 16, threshold: float = 0.9) -> Preset:
    """Build XAttention, not causal: read blocks up to a share of the antidiagonal relevance.

    This follows the paper. The released code also reads block 0, by mistake: it overwrites the ids
    of dropped blocks with 0, then marks all ids as read. To reproduce that, use
    `GPA(Antidiagonal(stride, threshold) | Fixed((0,)))` on the same structures.

    Source: Xu et al. 2025, "XAttention: Block sparse attention with antidiagonal scoring".

    Args:
        length: Tokens, a multiple of `block`.
        block: Tokens of a block, a multiple of `stride`.
        stride: Tokens of a run.
        threshold: The share of relevance that the selected blocks reach.
    """
    check_multiple("xattention", "length", length, block)
    check_multiple("xattention", "block", block, stride)
    sequence = Sequence(length, block)
    return Preset(GPA(Antidiagonal(stride, threshold)), sequence, sequence)


def _causal(rule: Rule, length: int, name: str, block: int) -> Preset:
    """Build causal attention in which every token selects its own key blocks."""
    arguments.positive_count("length", length)
    arguments.positive_count(name, block)
    return Preset(GPA(rule, causal=True), Sequence(length, 1), Sequence(length, min(block, length)))

"""Biases and caps of models in transformers, said as `ndgpa.Scores`."""

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from torch import nn
from transformers import SwinConfig, T5Config
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.swin.modeling_swin import SwinAttention
from transformers.models.t5.modeling_t5 import T5Attention

import ndgpa
from tests.docs.pages import ROOT, examples

EXAMPLES = examples(ROOT / "docs" / "scores.md")
PAGE: dict[str, Any] = {}
exec(compile(EXAMPLES["A bias for each relative position"], "scores.md", "exec"), PAGE)


@torch.no_grad()
def test_the_table_of_swin_is_one_of_offsets() -> None:
    attention = SwinAttention(SwinConfig(), 32, 4, window_size=5).eval()
    table = attention.relative_position_bias.relative_position_bias_table
    nn.init.normal_(table)
    x = torch.randn(2, 25, 32)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    inputs = (project(x).unflatten(2, (4, 8)) for project in projections)
    scores, image = PAGE["from_swin"](table, 5), ndgpa.Image((5, 5), block=2)
    out = ndgpa.gpa(*inputs, image, 9, scores=scores, layout="bnhd")
    ours = attention.o_proj(out.flatten(2))
    torch.testing.assert_close(ours, attention(x)[0], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("decoder", [False, True])
def test_the_buckets_of_t5_are_a_table_of_offsets(decoder: bool) -> None:
    config = T5Config(
        d_model=32, d_kv=8, num_heads=4, relative_attention_num_buckets=8, is_decoder=decoder
    )
    attention = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    nn.init.normal_(attention.relative_attention_bias.weight)
    query, key, value = torch.randn(3, 1, 4, 40, 8)
    bias = attention.compute_bias(40, 40)
    if decoder:
        bias = bias.masked_fill(~torch.ones(40, 40).tril().bool(), -torch.inf)
    expected = (query @ key.mT + bias).softmax(dim=-1) @ value
    scores = PAGE["from_t5"](attention, 40, 40)
    sequence = ndgpa.Sequence(40, 8)
    out = ndgpa.gpa(query, key, value, sequence, 5, scale=1.0, causal=decoder, scores=scores)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


def test_the_cap_is_that_of_gemma() -> None:
    module = nn.Module().eval()
    module.num_key_value_groups = 2
    query, key, value = 5 * torch.randn(1, 4, 30, 8), *torch.randn(2, 1, 2, 30, 8)
    expected, _ = modeling_gemma2.eager_attention_forward(
        module, query, key, value, None, scaling=0.5, softcap=2.0
    )
    scores, sequence = ndgpa.Scores(softcap=2.0), ndgpa.Sequence(30, 4)
    out = ndgpa.gpa(query, key, value, sequence, 8, scale=0.5, scores=scores)
    torch.testing.assert_close(out.transpose(1, 2), expected, rtol=0, atol=1e-5)

"""Generation through a `GPACache` is dense generation where every block is kept."""

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from ndgpa.integrations.transformers_cache import NAME, GPACache


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval().double()
    model.set_attn_implementation(NAME)
    return model


def prompts() -> dict[str, torch.Tensor]:
    """Two of different lengths, padded on the left."""
    ids = torch.randint(1, 50, (2, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=["greedy", "beams"]
)
def test_every_block_kept_is_dense_generation(model: Any, options: dict[str, Any]) -> None:
    ours, dense = (
        model.generate(
            **prompts(),
            past_key_values=cache,
            max_new_tokens=12,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )
        for cache in (GPACache(100, block=3, cell=2), DynamicCache())
    )
    assert torch.equal(ours.sequences, dense.sequences)
    for mine, theirs in zip(ours.logits, dense.logits, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_few_blocks_kept_are_another_attention(model: Any) -> None:
    """So the test above does not compare dense with dense."""
    ids = prompts()["input_ids"][1:].repeat(1, 4)
    sparse, dense = (
        model(ids, past_key_values=cache).logits for cache in (GPACache(1, block=3), DynamicCache())
    )
    assert (sparse - dense).abs().max() > 1e-3


def test_dropped_drafts_are_forgotten(model: Any) -> None:
    """As assisted generation does: more tokens are tried than are kept."""
    ids = prompts()["input_ids"][1:]
    cache = GPACache(2, block=2)
    model(ids[:, :9], past_key_values=cache)
    cache.crop(-4)
    assert cache.get_seq_length() == 5
    again = model(ids[:, 5:], past_key_values=cache).logits
    fresh = GPACache(2, block=2)
    model(ids[:, :5], past_key_values=fresh)
    torch.testing.assert_close(again, model(ids[:, 5:], past_key_values=fresh).logits)


def test_without_such_a_cache_it_is_sdpa(model: Any) -> None:
    given = prompts()
    ours = model(**given).logits
    model.set_attn_implementation("sdpa")
    expected = model(**given).logits
    model.set_attn_implementation(NAME)
    torch.testing.assert_close(ours, expected)


@pytest.mark.bad_input
def test_misuse_is_named() -> None:
    with pytest.raises(TypeError, match="rule must be a Rule or an int; got str"):
        GPACache("x")  # type: ignore[arg-type]
    cache = GPACache(2)
    x = torch.randn(1, 1, 3, 4)
    cache.update(x, x, 0)
    with pytest.raises(NotImplementedError, match="GPACache is not offloaded"):
        cache.layers[0].offload()

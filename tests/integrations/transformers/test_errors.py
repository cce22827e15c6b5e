"""What cannot be done is refused in one sentence."""

from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

import transformers

import ndgpa
from ndgpa.integrations.transformers import enable
from tests.integrations.transformers.models import KINDS, PICTURE, SPEECH, TEXT, output, pictures

pytestmark = pytest.mark.bad_input


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=48, hidden_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    return transformers.BertModel(config).eval()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({}, ValueError, "enable needs either block, or a structure"),
        ({"block": 4, "structure": ndgpa.Grid(65, 4)}, ValueError, "enable needs either block, or"),
        ({"block": 0}, ValueError, "block must be at least 1; got 0"),
        ({"block": 2.0}, TypeError, "block must be an int or a tuple of ints; got 2.0"),
        ({"block": 4, "cell": ()}, ValueError, "cell must be at least 1"),
        ({"block": (4, 4, 4)}, ValueError, "block has 3 entries but the grid of ViTModel has 2"),
        ({"block": 4, "layers": [2]}, ValueError, "layers names layer 2 but the model has 2"),
        ({"block": 4, "rule": "few"}, TypeError, "rule must be a Rule or an int; got str"),
        ({"structure": 4}, TypeError, "structure must be a SpatialStructure; got int"),
    ],
)
def test_bad_arguments_change_nothing(options: dict[str, Any], error: type, text: str) -> None:
    model, _ = KINDS["ViT"]()
    with pytest.raises(error, match=text):
        enable(model, **{"rule": 2, **options})
    assert model.config._attn_implementation == "sdpa"
    assert not any("ndgpa" in name for x in model.modules() for name in vars(x))


def test_a_model_that_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="the grid of BertModel is not known, only those of ViTM"):
        enable(bert(), 2, block=4)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match="model must be a module; got str"):
        enable("bert", 2, block=4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Linear does not call transformers' AttentionInterface"):
        enable(nn.Linear(2, 2), 2, structure=ndgpa.Grid(4, 2))


def test_the_implementation_without_enable_is_refused() -> None:
    enable(KINDS["ViT"]()[0], 2, block=4)  # registers the name
    config = transformers.ViTConfig(**PICTURE)
    model = transformers.AutoModel.from_config(config, attn_implementation="ndgpa")
    with pytest.raises(ValueError, match="nothing is known about this ViTAttention: call ndgpa"):
        model(**pictures())


def test_a_video_of_which_tokens_are_left_out_is_refused() -> None:
    model, inputs = KINDS["VideoMAE"]()
    enable(model, 2, block=4)
    left_out = torch.zeros(2, 192, dtype=torch.bool)
    left_out[:, :50] = True
    with pytest.raises(ValueError, match="VideoMAEModel has 142 tokens but a grid of 3x8x8 and 0"):
        model(**inputs, bool_masked_pos=left_out)


def test_masks_of_pairs_are_refused() -> None:
    model, inputs = KINDS["Llama"]()
    enable(model, 2, block=4)
    packed = torch.cat([torch.arange(13), torch.arange(14)])[None].expand(2, -1)
    with pytest.raises(NotImplementedError, match="LlamaAttention was given a mask for pairs"):
        output(model, inputs, position_ids=packed, use_cache=False)
    pairs = torch.ones(2, 1, 27, 27, dtype=torch.bool)
    with pytest.raises(NotImplementedError, match="a mask of four axes"):
        output(model, inputs, attention_mask=pairs)


def test_sliding_windows_are_refused() -> None:
    config = transformers.MistralConfig(**TEXT, sliding_window=8)
    model = transformers.MistralForCausalLM(config)
    enable(model, 2, block=4)
    with pytest.raises(NotImplementedError, match="MistralAttention"):
        output(model, {"input_ids": torch.randint(3, 48, (1, 27))})


def test_weights_are_not_to_be_had() -> None:
    for kind in ("ViT", "Llama", "wav2vec2"):
        model, inputs = KINDS[kind]()
        enable(model, 2, block=4)
        with pytest.raises(NotImplementedError, match="the weights that output_attentions=True"):
            output(model, inputs, output_attentions=True)


def test_dropout_of_weights_is_refused_or_left_out() -> None:
    config = transformers.Wav2Vec2Config(**{**SPEECH, "attention_dropout": 0.1})
    model = transformers.Wav2Vec2Model(config)
    inputs = KINDS["wav2vec2"].inputs()
    enable(model, 2, block=4)
    model.eval()
    output(model, inputs)
    model.train()
    with pytest.raises(NotImplementedError, match=r"Wav2Vec2Attention drops out 0.1 of its weig"):
        output(model, inputs)
    enable(model, 2, block=4, ignore_dropout=True)
    output(model, inputs)


def test_a_structure_of_another_size_is_refused() -> None:
    model = bert()
    enable(model, 2, structure=ndgpa.Grid(30, 4))
    with pytest.raises(ValueError, match="query has 27 sites but structure has 30"):
        output(model, {"input_ids": torch.randint(3, 48, (1, 27))})

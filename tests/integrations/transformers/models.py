"""Tiny models of every kind that `enable` knows, with random weights, and inputs for them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
PICTURE: dict[str, Any] = {**SMALL, "image_size": 32, "patch_size": 4}
SPEECH: dict[str, Any] = {
    **SMALL,
    "conv_dim": (16, 16),
    "conv_kernel": (4, 4),
    "conv_stride": (4, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "attention_dropout": 0.0,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
}
TEXT: dict[str, Any] = {
    **SMALL,
    "vocab_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    `inputs` draws what a call takes. `axes` are those of the grid, `attention` the number of
    modules that attend on it.
    """

    model: Callable[[], torch.nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    axes: int
    attention: int = 2

    def __call__(self) -> tuple[torch.nn.Module, dict[str, Tensor]]:
        torch.manual_seed(1)
        model = self.model().eval()
        for parameter in model.parameters():  # layer scales of 1e-5 would hide any difference
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
        return model, self.inputs()


def pictures(height: int = 32, width: int = 32, batch: int = 2) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(batch, 3, height, width)}


def tokens(count: int = 27, batch: int = 2) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, 48, (batch, count))}


def _vit() -> torch.nn.Module:
    return transformers.ViTModel(transformers.ViTConfig(**PICTURE))


def _deit() -> torch.nn.Module:
    return transformers.DeiTModel(transformers.DeiTConfig(**PICTURE))


def _dinov2() -> torch.nn.Module:
    return transformers.Dinov2Model(transformers.Dinov2Config(**PICTURE))


def _dinov2_registers() -> torch.nn.Module:
    config = transformers.Dinov2WithRegistersConfig(**PICTURE, num_register_tokens=4)
    return transformers.Dinov2WithRegistersModel(config)


def _dinov3() -> torch.nn.Module:
    config = transformers.DINOv3ViTConfig(**PICTURE, num_register_tokens=3)
    return transformers.DINOv3ViTModel(config)


def _ast() -> torch.nn.Module:
    """The grid of the real one: 12 x 101, a prime."""
    config = transformers.ASTConfig(**SMALL, num_mel_bins=128, max_length=1024)
    return transformers.ASTModel(config)


def _videomae() -> torch.nn.Module:
    config = transformers.VideoMAEConfig(**PICTURE, num_frames=6, tubelet_size=2)
    return transformers.VideoMAEModel(config)


def _wav2vec2() -> torch.nn.Module:
    return transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**SPEECH))


def _hubert() -> torch.nn.Module:
    return transformers.HubertModel(transformers.HubertConfig(**SPEECH))


def _whisper() -> torch.nn.Module:
    config = transformers.WhisperConfig(
        vocab_size=48,
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_mel_bins=8,
        max_source_positions=40,
        max_target_positions=20,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return transformers.WhisperModel(config)


def _llama() -> torch.nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT))


def _qwen2() -> torch.nn.Module:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**TEXT))


def _qwen3() -> torch.nn.Module:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**TEXT, head_dim=8))


def _mistral() -> torch.nn.Module:
    config = transformers.MistralConfig(**TEXT, sliding_window=None)
    return transformers.MistralForCausalLM(config)


def _spectrogram() -> dict[str, Tensor]:
    return {"input_values": torch.randn(1, 1024, 128)}


def _video() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 6, 3, 32, 32)}


def sound(samples: int = 400, batch: int = 2) -> dict[str, Tensor]:
    return {"input_values": torch.randn(batch, samples)}


def _mel_and_text() -> dict[str, Tensor]:
    ids = torch.randint(3, 48, (2, 7))
    return {"input_features": torch.randn(2, 8, 80), "decoder_input_ids": ids}


KINDS = {
    "ViT": Kind(_vit, pictures, 2),
    "DeiT": Kind(_deit, pictures, 2),
    "DINOv2": Kind(_dinov2, pictures, 2),
    "DINOv2 with registers": Kind(_dinov2_registers, pictures, 2),
    "DINOv3": Kind(_dinov3, pictures, 2),
    "AST": Kind(_ast, _spectrogram, 2),
    "VideoMAE": Kind(_videomae, _video, 3),
    "wav2vec2": Kind(_wav2vec2, sound, 1),
    "HuBERT": Kind(_hubert, sound, 1),
    "Whisper": Kind(_whisper, _mel_and_text, 1),
    "Llama": Kind(_llama, tokens, 1),
    "Qwen2": Kind(_qwen2, tokens, 1),
    "Qwen3": Kind(_qwen3, tokens, 1),
    "Mistral": Kind(_mistral, tokens, 1),
}


def output(model: torch.nn.Module, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    """The features or logits of a model."""
    out = model(**inputs, **options)
    return out.logits if "logits" in out else out.last_hidden_state

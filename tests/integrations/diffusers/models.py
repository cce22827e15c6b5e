"""Tiny models of every known kind, with random weights, and what they are called with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

Kwargs = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """How to make a model and its inputs, of a batch of 2 and a size of the latent in tokens."""

    make: Callable[[], nn.Module]
    inputs: Callable[[tuple[int, ...]], Kwargs]
    sizes: tuple[tuple[int, ...], tuple[int, ...]]  # of equally many tokens where the library can
    block: Any
    layers: int

    def model(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        model = self.make()
        with torch.no_grad():
            for parameter in model.parameters():  # some begin at zero, and would hide attention
                parameter.copy_(torch.randn_like(parameter) * parameter[0].numel() ** -0.5)
        return model.eval()

    def call(self, model: nn.Module, size: tuple[int, ...], seed: int = 1) -> Tensor:
        torch.manual_seed(seed)
        return model(**self.inputs(size), return_dict=False)[0]


def timestep() -> Tensor:
    return torch.tensor([7, 300])


def wan(num_layers: int = 2) -> nn.Module:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=num_layers,
        rope_max_seq_len=32,
    )


def wan_inputs(size: tuple[int, ...]) -> Kwargs:
    frames, height, width = size
    return {
        "hidden_states": torch.randn(2, 4, frames, 2 * height, 2 * width),
        "timestep": timestep(),
        "encoder_hidden_states": torch.randn(2, 7, 16),
    }


def vace() -> nn.Module:
    return diffusers.WanVACETransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
        vace_layers=[0],
        vace_in_channels=6,
    )


def vace_inputs(size: tuple[int, ...]) -> Kwargs:
    frames, height, width = size
    control = torch.randn(2, 6, frames, 2 * height, 2 * width)
    return {**wan_inputs(size), "control_hidden_states": control}


def ltx() -> nn.Module:
    return diffusers.LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        num_layers=2,
        caption_channels=16,
    )


def ltx_inputs(size: tuple[int, ...]) -> Kwargs:
    frames, height, width = size
    return {
        "hidden_states": torch.randn(2, frames * height * width, 4),
        "encoder_hidden_states": torch.randn(2, 7, 16),
        "timestep": timestep(),
        "encoder_attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3]),
        "num_frames": frames,
        "height": height,
        "width": width,
    }


def hunyuan(**options: Any) -> nn.Module:
    return diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 4, 4),
        patch_size=2,
        guidance_embeds=False,
        **options,
    )


def hunyuan_inputs(size: tuple[int, ...]) -> Kwargs:
    frames, height, width = size
    return {
        "hidden_states": torch.randn(2, 4, frames, 2 * height, 2 * width),
        "timestep": timestep(),
        "encoder_hidden_states": torch.randn(2, 7, 16),
        "encoder_attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3]),
        "pooled_projections": torch.randn(2, 8),
    }


def cogvideox(**options: Any) -> nn.Module:
    return diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=2,
        sample_width=16,
        sample_height=16,
        sample_frames=13,
        max_text_seq_length=7,
        **{"use_rotary_positional_embeddings": True, **options},
    )


def cogvideox_inputs(size: tuple[int, ...]) -> Kwargs:
    frames, height, width = size
    angles = torch.randn(frames * height * width, 16)
    return {
        "hidden_states": torch.randn(2, frames, 4, 2 * height, 2 * width),
        "timestep": timestep(),
        "encoder_hidden_states": torch.randn(2, 7, 16),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


def flux() -> nn.Module:
    return diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        num_attention_heads=2,
        attention_head_dim=12,
        joint_attention_dim=16,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 4),
    )


def flux_inputs(size: tuple[int, ...]) -> Kwargs:
    height, width = size
    ids = torch.cartesian_prod(*(torch.arange(size) for size in (1, height, width))).float()
    return {
        "hidden_states": torch.randn(2, height * width, 4),
        "timestep": timestep() / 1000,
        "encoder_hidden_states": torch.randn(2, 7, 16),
        "pooled_projections": torch.randn(2, 8),
        "img_ids": ids,
        "txt_ids": torch.zeros(7, 3),
    }


def dit() -> nn.Module:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        num_layers=2,
        sample_size=24,
        num_embeds_ada_norm=5,
    )


def dit_inputs(size: tuple[int, ...]) -> Kwargs:
    height, width = size
    return {
        "hidden_states": torch.randn(2, 4, 2 * height, 2 * width),
        "timestep": timestep(),
        "class_labels": torch.tensor([1, 4]),
    }


def unet() -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def unet_inputs(size: tuple[int, ...]) -> Kwargs:
    return {
        "sample": torch.randn(2, 4, *size),
        "timestep": timestep(),
        "encoder_hidden_states": torch.randn(2, 7, 16),
    }


# The blocks of one size are others than those of the other, so that a stale grid shows.
VIDEO, IMAGE = ((4, 4, 8), (4, 8, 4)), ((12, 12), (8, 18))
KINDS = {
    "wan": Kind(wan, wan_inputs, VIDEO, (1, 4, 4), 2),
    "vace": Kind(vace, vace_inputs, VIDEO, (1, 4, 4), 3),
    "ltx": Kind(ltx, ltx_inputs, VIDEO, (1, 4, 4), 2),
    "hunyuan": Kind(hunyuan, hunyuan_inputs, VIDEO, (1, 4, 4), 2),
    "cogvideox": Kind(cogvideox, cogvideox_inputs, VIDEO, (1, 4, 4), 2),
    "flux": Kind(flux, flux_inputs, IMAGE, 4, 2),
    "dit": Kind(dit, dit_inputs, ((12, 12), (8, 8)), 4, 2),
    "unet": Kind(unet, unet_inputs, ((16, 16), (8, 32)), 4, 4),
}

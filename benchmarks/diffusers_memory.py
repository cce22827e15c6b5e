"""What does a training step of a diffusion model cost in memory and time with GPA, and densely?

    python benchmarks/diffusers_memory.py [--quick]

Small models of the classes of diffusers with random weights, a batch of one, float32; blocks of 16
tokens (video: 1x4x4), cells of 4 blocks, 12 kept. A step is a forward and a backward. "fused" is
the library as it comes: torch's fused kernel, which never has the affinities in memory; "plain" the
same with torch's MATH kernel, which has (what runs where no fused kernel fits). One thread; time is
processor time, in turns, on a machine that others use: look at the ratios.

Columns: `tokens` of the latent in the largest attention; `*_mib` the most that torch's allocator
held during a step, above what it held before, the least of two; `*_s` seconds of a step, the median
of three; `fused/gpa` and `plain/gpa` how many times more memory, `fused_s/gpa_s` how many times
more time.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import diffusers
import torch
from measure import write
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from ndgpa.analysis import peak_bytes
from ndgpa.integrations.diffusers import disable, enable

KEPT, HEADS, WIDTH, TEXT = 12, 4, 32, 64
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """A model with one or two layers of attention, and what it is called with."""

    make: Callable[[], nn.Module]
    inputs: Callable[[tuple[int, ...]], dict[str, Any]]
    size: tuple[int, ...]
    quick: tuple[int, ...]


def video(size: tuple[int, ...], channels: int = 4) -> torch.Tensor:
    frames, height, width = size
    return torch.randn(1, channels, frames, 2 * height, 2 * width)


def text() -> torch.Tensor:
    return torch.randn(1, TEXT, 16)


def now() -> torch.Tensor:
    return torch.tensor([300])


def wan() -> nn.Module:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=128,
        num_layers=1,
    )


def wan_inputs(size: tuple[int, ...]) -> dict[str, Any]:
    return {"hidden_states": video(size), "timestep": now(), "encoder_hidden_states": text()}


def ltx() -> nn.Module:
    return diffusers.LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH,
        cross_attention_dim=HEADS * WIDTH,
        num_layers=1,
        caption_channels=16,
    )


def ltx_inputs(size: tuple[int, ...]) -> dict[str, Any]:
    frames, height, width = size
    return {
        "hidden_states": torch.randn(1, frames * height * width, 4),
        "encoder_hidden_states": text(),
        "timestep": now(),
        "encoder_attention_mask": torch.ones(1, TEXT),
        "num_frames": frames,
        "height": height,
        "width": width,
    }


def hunyuan() -> nn.Module:
    return diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH,
        num_layers=1,
        num_single_layers=0,
        num_refiner_layers=1,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(8, 12, 12),
        guidance_embeds=False,
    )


def hunyuan_inputs(size: tuple[int, ...]) -> dict[str, Any]:
    return {
        **wan_inputs(size),
        "encoder_attention_mask": (torch.arange(TEXT) < TEXT // 2)[None].int(),
        "pooled_projections": torch.randn(1, 8),
    }


def cogvideox() -> nn.Module:
    return diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=1,
        max_text_seq_length=TEXT,
        use_rotary_positional_embeddings=True,
    )


def cogvideox_inputs(size: tuple[int, ...]) -> dict[str, Any]:
    angles = torch.randn(size[0] * size[1] * size[2], WIDTH)
    return {
        **wan_inputs(size),
        "hidden_states": video(size).transpose(1, 2),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


def flux() -> nn.Module:
    return diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=0,
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH,
        joint_attention_dim=16,
        pooled_projection_dim=8,
        axes_dims_rope=(8, 12, 12),
    )


def flux_inputs(size: tuple[int, ...]) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, size[0] * size[1], 4),
        "timestep": now() / 1000,
        "encoder_hidden_states": text(),
        "pooled_projections": torch.randn(1, 8),
        "img_ids": torch.cartesian_prod(*(torch.arange(n) for n in (1, *size))).float(),
        "txt_ids": torch.zeros(TEXT, 3),
    }


def dit() -> nn.Module:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH,
        in_channels=4,
        num_layers=1,
        sample_size=64,
        num_embeds_ada_norm=5,
    )


def dit_inputs(size: tuple[int, ...]) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, 4, 2 * size[0], 2 * size[1]),
        "timestep": now(),
        "class_labels": torch.tensor([1]),
    }


def unet() -> nn.Module:
    return diffusers.UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(HEADS * WIDTH, HEADS * WIDTH),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=HEADS,
    )


def unet_inputs(size: tuple[int, ...]) -> dict[str, Any]:
    return {
        "sample": torch.randn(1, 4, *size),
        "timestep": now(),
        "encoder_hidden_states": text(),
    }


VIDEO, IMAGE = ((4, 32, 32), (2, 16, 16)), ((64, 64), (16, 16))
CASES = {
    "Wan": Case(wan, wan_inputs, *VIDEO),
    "LTX-Video": Case(ltx, ltx_inputs, *VIDEO),
    "HunyuanVideo": Case(hunyuan, hunyuan_inputs, *VIDEO),
    "CogVideoX": Case(cogvideox, cogvideox_inputs, *VIDEO),
    "Flux": Case(flux, flux_inputs, *IMAGE),
    "DiT": Case(dit, dit_inputs, *IMAGE),
    "UNet2DCondition": Case(unet, unet_inputs, *IMAGE),
}


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    rows = [row(name, case, quick) for name, case in tqdm(CASES.items(), desc="models")]
    question = __doc__.splitlines()[0] if __doc__ else ""
    if not quick:
        write("diffusers_memory", question, rows, kappa=KEPT, heads=HEADS, width=WIDTH, seed=0)
    for line in rows:
        print(line)


def row(name: str, case: Case, quick: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    size = case.quick if quick else case.size
    model, inputs = case.make(), case.inputs(size)

    def step() -> None:
        model.zero_grad()
        model(**inputs, return_dict=False)[0].square().mean().backward()

    def sparse() -> AbstractContextManager[None]:
        flat = len(size) == 2
        enable(model, KEPT, block=4 if flat else (1, 4, 4), cell=2 if flat else (1, 2, 2))
        return nullcontext()

    def fused() -> AbstractContextManager[None]:
        disable(model)
        return nullcontext()

    def plain() -> AbstractContextManager[None]:
        disable(model)
        return sdpa_kernel(SDPBackend.MATH)

    ways = {"gpa": sparse, "fused": fused, "plain": plain}
    peaks: dict[str, list[int]] = {way: [] for way in ways}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(1 if quick else 3):
        for way, begin in ways.items():
            with begin():
                if turn < 2:
                    peaks[way].append(peak_bytes(step))
                start = time.process_time()
                step()
                times[way].append(time.process_time() - start)
    mib = {way: min(found) / MIB for way, found in peaks.items()}
    seconds = {way: median(found) for way, found in times.items()}
    tokens = 1
    for axis in size:
        tokens *= axis
    return {
        "model": name,
        "tokens": tokens,
        **{f"{way}_mib": mib[way] for way in ways},
        **{f"{way}_s": seconds[way] for way in ways},
        "fused/gpa": mib["fused"] / mib["gpa"],
        "plain/gpa": mib["plain"] / mib["gpa"],
        "fused_s/gpa_s": seconds["fused"] / seconds["gpa"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing written")
    main(parser.parse_args().quick)

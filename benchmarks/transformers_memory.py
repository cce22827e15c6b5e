"""How much memory does a training step of a vision transformer need, densely and with GPA?

    python benchmarks/transformers_memory.py [--quick]

The DINOv2 with registers of `finetune.py` (4 layers of 64 channels, 4 heads), one picture, forward
and backward, random weights. "eager" is transformers' own attention, which holds all weights;
"sdpa" torch's fused kernel, which holds none and computes them again; "GPA" after
`ndgpa.integrations.transformers.enable`: 9 blocks of 4x4 patches.

Columns: `patches`; `attention`; `peak_MB` the most that torch's allocator held in the step above
what was held before; `eager/` eager's over it; `step_s` seconds of processor time.
"""

import argparse
import time
from typing import Any

import torch
from finetune import PATCH, RULE, Segmenter, loss_of, peak_mb
from measure import write
from tqdm import tqdm

from ndgpa.integrations.transformers import enable

SIDES = (32, 64)


def rows(side: int) -> list[dict[str, Any]]:
    model, found = Segmenter(), []
    for attention in ("eager", "sdpa", "GPA"):
        if attention == "GPA":
            enable(model, RULE, block=4)
        else:
            model.backbone.set_attn_implementation(attention)
        found.append(
            {
                "patches": f"{side}x{side}",
                "attention": attention,
                "peak_MB": peak_mb(model, side, 1),
                "step_s": step_s(model, side),
            }
        )
    eager = found[0]["peak_MB"]
    return [{**row, "eager/": eager / row["peak_MB"]} for row in found]


def step_s(model: torch.nn.Module, side: int) -> float:
    picture = torch.randn(1, 1, side * PATCH, side * PATCH)
    label = torch.zeros(1, side * side, dtype=torch.int64)
    begin = time.process_time()
    loss_of(model, picture, label).backward()
    return time.process_time() - begin


def main(quick: bool) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    found = [row for side in tqdm(SIDES[:1] if quick else SIDES) for row in rows(side)]
    for line in found:
        print(line)
    if not quick:
        note = "the machine was shared by others; seconds are of the processor"
        question = __doc__.splitlines()[0] if __doc__ else ""
        write("transformers_memory", question, found, rule=repr(RULE), block=4, seed=0, note=note)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="smallest size, no result file")
    main(parser.parse_args().quick)

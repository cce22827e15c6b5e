"""Means with standard errors, as JSON and as a table."""

import math
import os
import platform
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Scores = dict[str, Float[Tensor, " n"]]  # by measure, one number a picture
Summary = dict[str, dict[str, float]]  # by measure: mean, standard error, count

FORMS = {"psnr": ".2f", "copyable_psnr": ".2f", "key_px": ".1f"}
TITLES = {
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "ssim_patn": "SSIM (PATN)",
    "l1": "L1",
    "copyable_psnr": "copyable PSNR dB",
    "copyable_ssim": "copyable SSIM",
    "texture": "texture distance",
    "perceptual": "perceptual distance",
    "key_px": "key distance px",
    "acc3": "keys within 3 px",
    "acc6": "keys within 6 px",
}


def summary(scores: Scores) -> Summary:
    """Of every measure; pictures for which it is not defined (NaN) are left out of it."""
    return {name: summary_of(values) for name, values in scores.items()}


def summary_of(values: Float[Tensor, " n"]) -> dict[str, float]:
    values = values[values.isfinite()].double()
    count = len(values)
    error = values.std().item() / math.sqrt(count) if count > 1 else math.nan
    return {"mean": values.mean().item(), "standard_error": error, "count": count}


def differences(scores: Scores, others: Scores) -> Scores:
    """Picture by picture, which takes out how hard the pictures are."""
    return {name: values - others[name] for name, values in scores.items() if name in others}


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """A table of summaries; a row for each name, a column for each measure."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [
        "| | " + " | ".join(TITLES.get(name, name) for name in names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for label, row in rows.items():
        cells = [cell(row.get(name), FORMS.get(name, ".3f")) for name in names]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(found: dict[str, float] | None, form: str) -> str:
    if found is None or not found["count"]:
        return "-"
    return f"{found['mean']:{form}} ± {found['standard_error']:{form}}"


def machine(device: str) -> str:
    """What the numbers were measured on."""
    said = f"{os.cpu_count()} cores ({processor()}), torch {torch.__version__}"
    return f"{torch.cuda.get_device_name()}, {said}" if "cuda" in device else said


def processor() -> str:
    """As the system names it."""
    about = Path("/proc/cpuinfo")
    for line in about.read_text().splitlines() if about.is_file() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()

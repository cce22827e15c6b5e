"""The table and the verdict."""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from examples.common.files import write_json, write_text
from examples.common.tables import markdown_table
from examples.images.copy_photo.data import Task
from examples.images.copy_photo.restore import Result


@dataclass(frozen=True)
class Case:
    """A photograph at one size, and what every method made of it; the last method is to win.

    `resampled` stands in the table beside the attentions.
    """

    photo: str
    task: Task
    results: list[Result]
    resampled: Result

    @property
    def size(self) -> int:
        return self.task.source.shape[-1]


def write_tables(out: Path, cases: list[Case]) -> str:
    """Write table.json and table.md; return the Markdown with the verdict."""
    rows = [_row(case, result) for case in cases for result in (*case.results, case.resampled)]
    text = f"{_markdown(rows)}\n\n{verdict(cases)}\n"
    write_json(out / "table.json", {"rows": rows, "verdict": verdict(cases)}, indent=2)
    write_text(out / "table.md", text)
    return text


def _row(case: Case, result: Result) -> dict[str, Any]:
    return {
        "photo": case.photo,
        "size": case.size,
        "method": result.method,
        "psnr_db": result.psnr_db,
        "ssim": result.ssim,
        "seconds": result.seconds,
        "attention_s": result.attention_s,
        "attention_mb": None if result.attention_bytes is None else result.attention_bytes / 1e6,
        "coverage": result.coverage,
    }


def _markdown(rows: list[dict[str, Any]]) -> str:
    heads = "photo", "size", "method", "PSNR dB", "SSIM", "seconds", "attention s", "MB", "coverage"
    forms = "", "", "", ".2f", ".4f", ".2f", ".2f", ".0f", ".3f"
    return markdown_table(
        heads, [[_cell(value, form) for value, form in zip(row.values(), forms)] for row in rows]
    )


def _cell(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)


def verdict(cases: list[Case]) -> str:
    """Say who won, by PSNR and by SSIM, in a sentence for each size."""
    sentences = []
    for size in sorted({case.size for case in cases}):
        here = [case for case in cases if case.size == size]
        last = here[0].results[-1].method
        wins = {
            name: sum(max(case.results, key=key) is case.results[-1] for case in here)
            for name, key in (("PSNR", lambda r: r.psnr_db), ("SSIM", lambda r: r.ssim))
        }
        others = [[case.results[place] for case in here] for place in (1, 2)]
        others.append([case.resampled for case in here])
        leads = [
            f"{mean(c.results[-1].psnr_db - o.psnr_db for c, o in zip(here, other)):+.1f} dB on "
            f"{other[0].method}"
            for other in others
        ]
        sentences.append(
            f"At {size}x{size} {last} is the best attention on {wins['PSNR']} of {len(here)} "
            f"photographs by PSNR and on {wins['SSIM']} of {len(here)} by SSIM; on average "
            f"{', '.join(leads)}."
        )
    return " ".join(sentences)

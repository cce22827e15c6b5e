"""Write the tables of the README and of docs from the committed result files.

python benchmarks/tables.py
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ranking_tables import ranking

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MORPHING = ROOT / "examples/images/pose_morphing/results/shipped/evaluation.json"
GRAPHS = ROOT / "examples/graphs/results"
DOCS = ROOT / "docs"
FAR_FIELD = ("errors", "adaptive", "time", "causal")
HELD_OUT = ("coffee", "cat", "rocket", "sound", "video", "points")  # nothing was tuned on them
PARALLEL = ("bytes", "real", "simulated")


def main() -> None:
    for page, tables in pages().items():
        temporary = page.with_suffix(".tmp")
        temporary.write_text(filled(page.read_text(), tables))
        temporary.replace(page)


def pages() -> dict[Path, dict[str, str]]:
    """The tables of every page that has some, by name."""
    return {
        ROOT / "README.md": {
            "pose_morphing": made(MORPHING, pose_morphing),
            "cpu_speed": made(RESULTS / "cpu_speed.json", cpu_speed),
            "gpu": gpus(),
        },
        DOCS / "graphs.md": {
            **{path.stem: path.read_text().strip() for path in GRAPHS.glob("*.md")},
            "coarsening": made(RESULTS / "coarsening.json", coarsening),
        },
        DOCS / "far_field.md": {
            **{f"far_{name}": plain(f"far_field_{name}") for name in FAR_FIELD},
            "finding": plain("finding"),
            "far_coverage": made(RESULTS / "far_field_coverage.json", coverage),
        },
        DOCS / "integrations" / "transformers.md": _plain("transformers_memory", "windows"),
        DOCS / "integrations" / "pyg.md": _plain("graph_layers"),
        DOCS / "integrations" / "compiling.md": _plain("full_graph"),
        DOCS / "integrations" / "diffusers.md": _plain("diffusers_memory"),
        DOCS / "distributed.md": _plain(*(f"parallel_{name}" for name in PARALLEL)),
        DOCS / "ranking.md": ranking(RESULTS),
    }


def filled(text: str, tables: dict[str, str]) -> str:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`."""
    for name, content in tables.items():
        block = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = block.sub(lambda m, c=content: f"{m[1]}{c}\n{m[2]}", text)
    return text


def _plain(*names: str) -> dict[str, str]:
    return {name: plain(name) for name in names}


def plain(name: str) -> str:
    """The machine and the table of a result file, as they stand in its Markdown."""
    path = RESULTS / f"{name}.md"
    return path.read_text().split("\n", 2)[2].strip() if path.exists() else "Not measured yet."


def made(path: Path, table: Callable[[dict[str, Any]], str]) -> str:
    """The table of a result file."""
    return table(json.loads(path.read_text())) if path.exists() else "Not measured yet."


def coarsening(result: dict[str, Any]) -> str:
    """Cuts and seconds of every graph at every size."""
    machine = result["machine"]
    methods = ("metis", "landmark", "kd")
    lines = [
        f"Blocks of {result['block']} nodes, cells of {result['cell']} blocks; "
        f"{machine['processor']}. Share of edges cut between blocks / "
        "between cells, and seconds of processor time.",
        "",
        "| graph | nodes | " + " | ".join(f"`{m}` | s" for m in methods) + " |",
        "|---" * (2 + 2 * len(methods)) + "|",
    ]
    for graph, nodes in dict.fromkeys((r["graph"], r["nodes"]) for r in result["rows"]):
        cells = [graph, f"{nodes:,}"]
        for method in methods:
            at = [
                r
                for r in result["rows"]
                if (r["graph"], r["nodes"], r["method"]) == (graph, nodes, method)
            ]
            cells += [f"{r['cut']:.2f} / {r['cell_cut']:.2f}" for r in at] or ["-"]
            cells += [f"{r['cpu_s']:.3g}" for r in at] or ["-"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def coverage(result: dict[str, Any]) -> str:
    """What rules find in blocks of 16 sites and cells of four, of 128 and of 16 keys."""
    found: dict[str, dict[str, str]] = {}
    for row in result["rows"]:
        if (row["sites a block"], row["blocks a cell"]) == (16, 4):
            both = (f"{row[share]:.3f}".removeprefix("0") for share in ("share_128", "share_16"))
            found.setdefault(row["rule"], {})[row["features"]] = " / ".join(both)
    lines = [" | ".join(["| rule", *HELD_OUT]) + " |", "|---" * (1 + len(HELD_OUT)) + "|"]
    for rule, shares in found.items():
        lines.append(" | ".join([f"| {rule}", *(shares[name] for name in HELD_OUT)]) + " |")
    return "\n".join(lines)


def pose_morphing(result: dict[str, Any]) -> str:
    """The flagship's measures on held-out people."""
    measures = {
        "psnr": ("PSNR, dB", ".1f"),
        "copyable_ssim": ("SSIM of what the source shows", ".3f"),
        "texture": ("texture distance", ".4f"),
        "key_px": ("key distance, pixels", ".1f"),
        "acc3": ("keys within 3 pixels", ".2f"),
    }
    titles = " | ".join(title for title, _ in measures.values())
    lines = [f"| | | {titles} |", "|---" * (len(measures) + 2) + "|"]
    for task, said in result["tasks"].items():
        for model, scores in said["scores"].items():
            cells = [f"{scores[name]['mean']:{form}}" for name, (_, form) in measures.items()]
            lines.append(f"| {task} | {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cpu_speed(result: dict[str, Any]) -> str:
    machine = result["machine"]
    lines = [
        f"One head of 64 channels, float32, kappa {result['kappa']}, medians on "
        f"{machine['cores']} cores ({machine['processor']}, torch {machine['torch']}). "
        "Dense is `scaled_dot_product_attention`; 256x256 is the paper's pivot.",
        "",
        "| space | forward | dense | times faster | forward+backward | dense | times faster |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = [
            row["shape"],
            _time(row["gpa_ms"]),
            _time(row["dense_ms"]),
            _ratio(row["dense/gpa"]),
            _time(row["gpa_fb_ms"]),
            _time(row["dense_fb_ms"]),
            _ratio(row["dense_fb/gpa_fb"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gpus() -> str:
    """A table for each GPU that has a result file."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    tables = [gpu(result) for result in results if _is_gpu(result)]
    if not tables:
        return (
            "No GPU has been measured yet: the kernels are tested in Triton's interpreter and "
            "compiled ahead of time only ([what they use of a chip]"
            "(benchmarks/results/kernel_resources.md)). `make gpu` measures, and writes this table."
        )
    return "\n\n".join(tables)


def _is_gpu(result: dict[str, Any]) -> bool:
    return "gpu" in result and any(row.get("who") == "gpa" for row in result["rows"])


def gpu(result: dict[str, Any]) -> str:
    """Times of GPA with its selection; of its rivals the fastest, on the same lists or dense."""
    lines = [
        f"{result['gpu']}, torch {result['machine']['torch']}; forward and backward, medians. "
        "FlexAttention reads the same blocks, its selection and layout not in the time.",
        "",
        "| case | lists | GPA | of it selection | dense | times faster | FlexAttention "
        "| times faster |",
        "|---" * 8 + "|",
    ]
    compared = [row for row in result["rows"] if not row["who"].startswith("dense")]
    for case, lists in dict.fromkeys((row["case"], row["lists"]) for row in compared):
        times = {
            (row["who"], row["phase"]): row["ms"]
            for row in result["rows"]
            if row["case"] == case and "ms" in row
            if row["lists"] == lists or row["who"].startswith("dense")
        }
        ours = times.get(("gpa", "forward+backward"))
        attend = times.get(("attend", "forward+backward"))
        flex = times.get(("flex", "forward+backward"))
        rivals = [
            ms
            for (who, phase), ms in times.items()
            if who.startswith("dense") and phase == "forward+backward"
        ]
        dense = min(rivals, default=None)
        cells = [case, lists, _time(ours), _time(times.get(("select", "forward"))), _time(dense)]
        cells += [_ratio(_over(dense, ours)), _time(flex), _ratio(_over(flex, attend))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _over(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def _time(ms: float | None) -> str:
    if ms is None:
        return "not run"
    return f"{ms / 1000:.2f} s" if ms >= 1000 else f"{ms:.3g} ms"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    main()

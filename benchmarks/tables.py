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
FAR_FIELD = ("errors", "adaptive", "coverage", "time", "causal")
PARALLEL = ("bytes", "real", "simulated")


def main() -> None:
    fill(
        ROOT / "README.md",
        {
            "pose_morphing": made(MORPHING, pose_morphing),
            "cpu_speed": made(RESULTS / "cpu_speed.json", cpu_speed),
            "gpu": gpus(),
        },
    )
    graphs = {path.stem: path.read_text().strip() for path in GRAPHS.glob("*.md")}
    graphs["coarsening"] = made(RESULTS / "coarsening.json", coarsening)
    fill(ROOT / "docs" / "graphs.md", graphs)
    far = {f"far_{k}": plain(RESULTS / f"far_field_{k}.md") for k in FAR_FIELD}
    fill(ROOT / "docs" / "far_field.md", far)
    models = {name: plain(RESULTS / f"{name}.md") for name in ("transformers_memory", "windows")}
    fill(ROOT / "docs" / "integrations" / "transformers.md", models)
    pyg = {"graph_layers": plain(RESULTS / "graph_layers.md")}
    fill(ROOT / "docs" / "integrations" / "pyg.md", pyg)
    graphs_of = {"full_graph": plain(RESULTS / "full_graph.md")}
    fill(ROOT / "docs" / "integrations" / "compiling.md", graphs_of)
    memory = {"diffusers_memory": plain(RESULTS / "diffusers_memory.md")}
    fill(ROOT / "docs" / "integrations" / "diffusers.md", memory)
    parallel = {f"parallel_{k}": plain(RESULTS / f"parallel_{k}.md") for k in PARALLEL}
    fill(ROOT / "docs" / "distributed.md", parallel)
    fill(ROOT / "docs" / "ranking.md", ranking(RESULTS))


def plain(path: Path) -> str:
    """The machine and the table of a result file, as they stand in its Markdown."""
    return path.read_text().split("\n", 2)[2].strip() if path.exists() else "Not measured yet."


def fill(page: Path, tables: dict[str, str]) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`."""
    text = page.read_text()
    for name, content in tables.items():
        block = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = block.sub(lambda m, c=content: f"{m[1]}{c}\n{m[2]}", text)
    temporary = page.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(page)


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

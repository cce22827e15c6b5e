"""Write the README's performance tables from the committed result files.

python benchmarks/tables.py
"""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    for name, table in (("cpu_speed", cpu_speed),):
        path = RESULTS / f"{name}.json"
        content = table(json.loads(path.read_text())) if path.exists() else "Not measured yet."
        block = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = block.sub(lambda m, c=content: f"{m[1]}{c}\n{m[2]}", text)
    temporary = readme.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(readme)


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


def _time(ms: float | None) -> str:
    if ms is None:
        return "not run"
    return f"{ms / 1000:.2f} s" if ms >= 1000 else f"{ms:.3g} ms"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    main()

"""The pictures of benchmarks/ranking.py: one a question, of the rows of its result file.

python benchmarks/ranking_plots.py     draws them again from benchmarks/results
"""

import json
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measure import RESULTS

Row = dict[str, Any]
KEYS = {1024: "o", 128: "s", 16: "^"}
OURS, OTHERS, YARDSTICKS = "tab:red", "tab:blue", "0.5"


def draw(question: str, rows: list[Row]) -> None:
    for name, (source, picture) in PICTURES.items():
        if source == question:
            figure = picture(rows)
            figure.savefig(RESULTS / f"ranking_{name}.png", dpi=110)
            plt.close(figure)


def errors(rows: list[Row]) -> Figure:
    """A panel for each features: the error of each method at three temperatures."""
    rows = [row for row in rows if "error_16" in row and row["attention"] not in EXACT]
    panels = list(dict.fromkeys(row["features"] for row in rows))
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(3.2 * len(panels) + 1.6, 6.4),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    names = ordered(rows)
    for ax, features in zip(axes[0], panels):
        here = [row for row in rows if row["features"] == features]
        for keys, marker in KEYS.items():
            values = {row["attention"]: row[f"error_{keys}"] for row in here}
            dots(ax, names, values, marker, f"{keys} keys")
        ax.set_xscale("log")
        ax.set_title(features)
        ax.set_xlabel("relative error")
    axes[0, 0].legend(title="attention shared by", loc="lower left", fontsize=8, title_fontsize=8)
    figure.tight_layout()
    return figure


def memory(rows: list[Row]) -> Figure:
    figure, ax = plt.subplots(figsize=(7, 6.4))
    names = ordered(rows)
    for features, marker in zip(dict.fromkeys(row["features"] for row in rows), "os^vD"):
        here = {r["attention"]: r["memory/tensors"] for r in rows if r["features"] == features}
        dots(ax, names, here, marker, features)
    ax.set_xscale("log")
    ax.set_xlabel("peak memory of forward and backward, over query, key, value and output")
    ax.legend(fontsize=8)
    figure.tight_layout()
    return figure


def learning(rows: list[Row]) -> Figure:
    figure, ax = plt.subplots(figsize=(7, 6))
    rows = sorted(rows, key=lambda row: -row["error"])
    for place, row in enumerate(rows):
        ax.plot([row["lowest"], row["highest"]], [place, place], color=colour(row["attention"]))
        ax.plot(row["error"], place, "o", color=colour(row["attention"]))
    ax.set_yticks(range(len(rows)), [row["attention"] for row in rows])
    ax.set_xlabel("relative error after training, mean and range of three seeds")
    ax.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    return figure


def ordered(rows: list[Row]) -> list[str]:
    """The methods as in the table, from below upwards."""
    return list(dict.fromkeys(row["attention"] for row in rows))[::-1]


def dots(ax: Axes, names: list[str], values: dict[str, float], marker: str, label: str) -> None:
    for place, name in enumerate(names):
        if name in values:
            ax.plot(values[name], place, marker, color=colour(name), markersize=5)
    ax.plot([], [], marker, color="black", markersize=5, label=label)
    ax.set_yticks(range(len(names)), names)
    ax.grid(alpha=0.3)


def colour(name: str) -> str:
    if name in (*EXACT, "none"):
        return YARDSTICKS
    return OURS if name.startswith("GPA") else OTHERS


EXACT = ("full", "full, causal")
PICTURES: dict[str, tuple[str, Callable[[list[Row]], Figure]]] = {
    "entries": ("entries", errors),
    "time": ("time", errors),
    "memory": ("cost", memory),
    "learning": ("learning", learning),
}


if __name__ == "__main__":
    for question in ("entries", "time", "learning", "cost"):
        path = RESULTS / f"ranking_{question}.json"
        if path.exists():
            draw(question, json.loads(path.read_text())["rows"])

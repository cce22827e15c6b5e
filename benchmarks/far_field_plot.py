"""How near is each operator to full attention, for how many entries a query?

    python benchmarks/far_field_plot.py

Draws results/far_field_errors.png from the rows that benchmarks/far_field.py wrote: a row of panels
for each of three features that nothing was developed on, a column for each temperature.
"""

import json
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from measure import RESULTS

HELD_OUT = {"coffee": "a photograph (coffee)", "sound": "sound", "points": "points"}
KEYS = (1024, 128, 16)
GOAL = "GPA(MultiLevel((64, 29), force=Own()), far=Bundles(32))"


def main() -> None:
    rows = json.loads((RESULTS / "far_field_errors.json").read_text())["rows"]
    figure, axes = plt.subplots(
        len(HELD_OUT), len(KEYS), figsize=(12, 9.5), sharex=True, sharey="row"
    )
    for line, (features, title) in zip(axes, HELD_OUT.items()):
        here = [row for row in rows if row["features"] == features]
        for ax, keys in zip(line, KEYS):
            panel(ax, here, keys)
            ax.set_title(f"{title}, {keys} keys share the attention", fontsize=9)
        line[0].set_ylabel("relative error")
    for ax in axes[-1]:
        ax.set_xlabel("entries a query")
    handles = {label: h for ax in axes.flat for h, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc="lower center", ncols=3, fontsize=8)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(RESULTS / "far_field_errors.png", dpi=110)


def panel(ax: Axes, rows: list[dict[str, Any]], keys: int) -> None:
    """A mark for each operator, and a line at half the error of the best that is no GPA."""
    for row in rows:
        error = row[f"error_{keys}"]
        ax.plot(row["entries/query"], min(error, 1.0), linestyle="", **style(row["operator"]))
    others = [row[f"error_{keys}"] for row in rows if not is_ours(row["operator"])]
    ax.axhline(min(others) / 2, color="0.6", linestyle=":", label="half of the best other operator")
    ax.axvline(304, color="0.6", linewidth=0.5)
    ax.set_xscale("log")
    ax.set_yscale("log")


def is_ours(operator: str) -> bool:
    return operator.startswith(("GPA", "attention to means"))


def style(operator: str) -> dict[str, Any]:
    """How an operator looks: ours in reds, others in blues, each with a mark of its own."""
    kind = operator.split("(")[0].split(",")[0]
    if operator == GOAL:
        return {"label": operator, "marker": "*", "color": "tab:red", "markersize": 13, "zorder": 3}
    marks = {"Nystrom": "s", "Performer": "D", "Neighborhood": "^", "Hydra": "v", "MultiAxis": "P"}
    if not is_ours(operator):
        return {"label": kind, "marker": marks.get(kind, "X"), "color": "tab:blue"}
    if kind == "attention to means":
        return {"label": operator, "marker": "x", "color": "tab:orange"}
    if "MultiLevel" in operator:
        forced = "Own" in operator
        label = "GPA(MultiLevel), far=Bundles" + (", its own block forced" if forced else "")
        return {"label": label, "marker": "o" if forced else "h", "color": "tab:red"}
    if "far" not in operator:
        return {"label": "GPA without far field", "marker": "<", "color": "tab:purple"}
    label, marker = ('far="site"', ">") if "site" in operator else ('far="block"', "d")
    return {"label": f"GPA(TopK), {label}", "marker": marker, "color": "tab:orange"}


if __name__ == "__main__":
    main()

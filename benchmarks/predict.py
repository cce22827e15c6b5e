"""How long must each kernel take on a GPU, from its instructions and bytes, and how long did it?

    PYTHONPATH=. python benchmarks/predict.py

No GPU is needed: kernels are compiled for sm_90 and their instructions counted, loop by loop
(`instructions`). Writes results/predicted.json and .md. Columns, in milliseconds: one for each unit
of a multiprocessor, were it the only one (`issue`: an instruction a cycle); `memory_bytes` and
`l2_bytes` the least bytes over the rates of the chip; `floor` the largest of all. No kernel is
faster; 60 to 75 % of it are to be expected. `measured` is what a GPU took, where `make gpu-profile`
has been run there with its rows committed (results/GPU-profile.json).

`loops` says how often loops run; how often those of the search for the k largest do is counted in
`search_rounds`, on features of photographs. Launches, and the sort of the inverse table (a
library's), are not in a floor. `predicted_sums` adds the floors up; `forward_tflops` is the work on
selected pairs over the floor of the forward, and `of_instructions` over its units alone.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import instructions
import kernel_resources
import measure
from ahead_of_time import Recorder, compile_for
from kernel_resources import FAR, HEADS, SHAPES, Shape

QUESTION = __doc__.splitlines()[0]
SELECTION = ("sum_blocks", "lse", "relevance", "top_k")


@dataclass(frozen=True)
class Chip:
    """Multiprocessors, their clock, and bytes per second from memory and from the second cache.

    The rates of bytes are those that copies reach [from memory, to be measured].
    """

    name: str
    processors: int
    clock_hz: float
    memory: float
    l2: float


H100 = Chip("H100", 132, 1.755e9, 3.0e12, 5.5e12)
H200 = Chip("H200", 132, 1.755e9, 4.3e12, 5.5e12)
PREDICTED = (
    "pivot 64",
    "video 49,152",
    "video 49,152, cells of 2",
    "video 16x96x96",
    "ChaL 512x256",
    *(shape.name for shape in FAR),
)


def predictions(shape: Shape, chip: Chip) -> list[dict[str, Any]]:
    """A row for each kernel of selection, forward and backward, all heads and launches."""
    return [_row(shape, chip, recorder) for recorder in recorded(shape)]


def recorded(shape: Shape) -> list[Recorder]:
    """Every kernel with its launches."""
    return kernel_resources.recorders(lambda: kernel_resources.run(shape), 90)


def _row(shape: Shape, chip: Chip, recorder: Recorder) -> dict[str, Any]:
    name = recorder.name
    args, options = recorder.launches[0]
    program = instructions.program(compile_for(recorder.kernel, args, options, 90).asm["cubin"])
    values = dict(zip(recorder.kernel.arg_names, args)) | options
    cycles = program_cycles(program, loops(name, shape, values))
    # A launch of sums is of the queries, and there is one of the keys.
    programs = recorder.programs * (2 if name == "sum_blocks" else 1)
    seconds = programs * options["num_warps"] / 4 / chip.processors / chip.clock_hz
    row = {unit: 1e3 * seconds * cycles[unit] for unit in instructions.UNITS}
    memory, l2 = traffic(name, shape, recorder.programs, values)
    row |= {"memory_bytes": 1e3 * memory / chip.memory, "l2_bytes": 1e3 * l2 / chip.l2}
    names = {"shape": shape.name, "chip": chip.name, "kernel": name}
    return {**names, **row, "floor": max(row.values())}


def program_cycles(program: instructions.Program, counts: list[float]) -> dict[str, float]:
    """Cycles of one warp; `counts` are for the loops in their order, 0 for those that are left."""
    total = instructions.cycles(program.once)
    counts = [*counts, *[0.0] * len(program.loops)]
    for loop, count in zip(program.loops, counts):
        for unit, cycles in loop.cycles.items():
            total[unit] += count * cycles
    return total


def loops(name: str, shape: Shape, values: dict[str, Any]) -> list[float]:
    """How often a program runs each of its loops."""
    readers = shape.cells * shape.kept / shape.blocks
    keys = shape.sites_per_block * shape.kept
    found: dict[str, Callable[[], list[float]]] = {
        "sum_blocks": lambda: [shape.sites_per_block],
        "lse": lambda: [shape.blocks / values["KEYS"]],
        "relevance": lambda: [min(values["KEY_TILES"], -(-shape.blocks // values["KEYS"]))],
        "top_k": lambda: search_rounds(shape.name, values["p_largest"] is not None),
        "forward": lambda: [keys / values["KEYS"]],
        "query_major": lambda: [keys / values["KEYS"]],
        "key_major": lambda: [readers * shape.places / values["ROWS"]],
        "add_parts": lambda: [],  # of blocks that many cells read
        "mark_selected": lambda: [shape.kept / 4],  # four slots a round
        "far_forward": lambda: [shape.blocks / values["KEYS"]],
        "far_query": lambda: [shape.blocks / values["KEYS"]],
        "far_key": lambda: [shape.sites / values["ROWS"]],
    }
    return found[name]()


def search_rounds(name: str, of_groups: bool) -> list[float]:
    """Rounds of the searches among the largest of groups, and among the scores that are read."""
    names = {"ChaL 512x256": "ChaL 4", "video 49,152, cells of 2": "video 49,152"}
    name = names.get(name, name)
    found = json.loads((measure.RESULTS / "search_rounds.json").read_text())["rows"]
    row = next(r for r in found if (r["case"], r["lists"]) == (name, "photographs"))
    return [row["groups"], row["scores"]] if of_groups else [row["scores"]]


def traffic(name: str, shape: Shape, programs: int, values: dict[str, Any]) -> tuple[float, float]:
    """The least bytes from memory, and bytes from the second cache."""
    if shape.far:
        return _far_traffic(name, shape, programs, values)
    size = shape.dtype.itemsize
    unit = HEADS * shape.sites * shape.width * size
    means = HEADS * shape.blocks * shape.width * 4
    scores = HEADS * shape.cells * shape.blocks * 4
    gathered = HEADS * shape.cells * shape.kept * 2 * shape.width * size

    def tiles() -> int:
        """Programs of a cell."""
        return -(-shape.places // values["ROWS"])

    found: dict[str, Callable[[], tuple[float, float]]] = {
        "sum_blocks": lambda: (2 * (unit + means), 0),
        "lse": lambda: (2 * means, programs * shape.blocks * shape.width * 4),
        "relevance": lambda: (2 * means + scores, _relevance_reads(shape, programs, values)),
        "top_k": lambda: (0, HEADS * shape.cells * _read(shape, values) * 4),
        "forward": lambda: (4 * unit, gathered * shape.sites_per_block * tiles()),
        "query_major": lambda: (6 * unit, gathered * shape.sites_per_block * tiles()),
        "key_major": lambda: (6 * unit, gathered * shape.places),
        "add_parts": lambda: (0, 0),
    }
    return found[name]()


def _far_traffic(
    name: str, shape: Shape, programs: int, values: dict[str, Any]
) -> tuple[float, float]:
    """As `traffic`: outputs are float32."""
    if name == "mark_selected":
        return 4 * HEADS * shape.cells * shape.blocks / 8, 0
    size, numbers = shape.dtype.itemsize, HEADS * shape.sites * shape.width
    row = 2 * shape.width * size
    found = {
        "far_forward": ((4 + size) * numbers, programs * shape.blocks * row),
        "far_query": ((4 + 3 * size) * numbers, programs * shape.blocks * row),
        "far_key": (2 * size * numbers, programs * shape.sites * row),
    }
    return found[name]


def _relevance_reads(shape: Shape, programs: int, values: dict[str, Any]) -> float:
    keys = min(values["KEY_TILES"] * values["KEYS"], shape.blocks)
    return programs * keys * shape.width * 4


def _read(shape: Shape, values: dict[str, Any]) -> int:
    """Scores of a cell that are read to find the largest."""
    if values["p_largest"] is None:
        return shape.blocks
    return values["T"] + values["GROUP"] * values["groups"]


def sums(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The floors of a shape added up, and what the selection and the forward are of it."""
    floor = {row["kernel"]: row["floor"] for row in rows}
    forward = next(row for row in rows if row["kernel"] in ("forward", "far_forward"))
    units = max(forward[unit] for unit in instructions.UNITS)
    shape = next(s for s in SHAPES if s.name == rows[0]["shape"])
    work = 2 * HEADS * _pairs(shape) * shape.width * 2
    selection = sum(floor.get(name, 0) for name in SELECTION)
    return {
        "shape": shape.name,
        "chip": rows[0]["chip"],
        "sum_ms": sum(floor.values()),
        "selection_ms": selection,
        "selection_share": selection / sum(floor.values()),
        "forward_tflops": work / forward["floor"] / 1e9,
        "of_instructions": work / units / 1e9,
    }


def _pairs(shape: Shape) -> int:
    """Queries by keys, of one head."""
    if shape.far:
        return shape.sites * shape.blocks
    return shape.cells * shape.places * shape.sites_per_block * shape.kept


def measured() -> dict[tuple[str, str, str], float]:
    """Milliseconds by chip, shape and kernel, of every profile that is committed."""
    found = {}
    for path in measure.RESULTS.glob("*-profile.json"):
        content = json.loads(path.read_text())
        chip = next((c.name for c in (H100, H200) if c.name in content["gpu"]), content["gpu"])
        for row in content["rows"]:
            if "ms" in row:
                found[chip, row["case"], row["kernel"]] = row["ms"]
    return found


def main() -> None:
    times, rows, totals = measured(), [], []
    for name in PREDICTED:
        shape = next(s for s in SHAPES if s.name == name)
        for chip in (H100, H200):
            of_shape = predictions(shape, chip)
            for row in of_shape:
                row["measured"] = times.get((chip.name, name, row["kernel"]))
            rows += of_shape
            totals.append(sums(of_shape))
    measure.write("predicted", QUESTION, rows, sums=totals)
    measure.write("predicted_sums", QUESTION, totals)
    print((measure.RESULTS / "predicted_sums.md").read_text())


if __name__ == "__main__":
    main()

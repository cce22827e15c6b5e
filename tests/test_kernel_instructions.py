"""Instructions of the selection's kernels on sm_90, counted in binaries compiled without a GPU.

Those of attention are pinned in tests/kernels/test_compiled.py.
"""

import json
from pathlib import Path
from unittest import mock

import pytest

pytestmark = pytest.mark.compiled

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
KERNELS = ("sum_blocks", "lse", "relevance", "top_k")
MARGIN = 1.1
# Shared memory of one program in KiB (CUDA C++ Programming Guide, table of compute capabilities;
# AMD CDNA3 instruction set reference).
CHIPS = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99, "gfx942": 64}


@pytest.fixture(scope="module")
def resources():
    pytest.importorskip("triton")
    import kernel_resources

    return kernel_resources


def _committed() -> dict:
    return json.loads((RESULTS / "kernel_instructions.json").read_text())


@pytest.mark.parametrize("name", ["pivot 64", "video 49,152"])
def test_no_loop_runs_more_than_the_committed_table_says(resources, name) -> None:
    table = _committed()
    if table["triton"] != resources.triton.__version__:
        pytest.skip("counted with another version of Triton")
    (shape,) = (s for s in resources.SHAPES if s.name == name)
    rows = {(r["shape"], r["kernel"], r["part"]): r for r in table["rows"]}
    for row in resources.instruction_rows(shape, KERNELS):
        counted = rows[row["shape"], row["kernel"], row["part"]]
        for unit in resources.instructions.UNITS:
            assert row[unit] <= MARGIN * counted[unit] + 8, (row, counted)


def test_the_loops_of_a_selection_are_bound_by_the_matrix_units() -> None:
    """At the paper's pivot nothing else takes as long, so that a faster kernel needs less work."""
    rows = [r for r in _committed()["rows"] if r["shape"] == "pivot 64" and r["part"] == "loop 0"]
    loops = {row["kernel"]: row for row in rows}
    for kernel in ("lse", "relevance"):
        units = ("issue", "integer", "float", "special", "memory")
        assert all(loops[kernel][unit] < loops[kernel]["matrix"] for unit in units)


def test_the_predicted_floors_meet_the_goals() -> None:
    """At most 6 ms at the pivot, a third of it selection."""
    sums = json.loads((RESULTS / "predicted_sums.json").read_text())["rows"]
    pivot = [row for row in sums if row["shape"] == "pivot 64"]
    assert len(pivot) == 2
    for row in pivot:
        assert row["sum_ms"] <= 6
        assert row["selection_share"] <= 1 / 3
    video = [row for row in sums if row["shape"] == "video 49,152"]
    assert all(row["of_instructions"] >= 700 for row in video)


FAST = (90, "gfx942")


@pytest.mark.parametrize(
    "chip", [chip if chip in FAST else pytest.param(chip, marks=pytest.mark.slow) for chip in CHIPS]
)
@pytest.mark.parametrize(
    "name", ["pivot 64", pytest.param("pivot 160", marks=pytest.mark.slow), "pivot 64 float32"]
)
def test_a_selection_compiles_for_every_chip_and_spills_nothing(resources, name, chip) -> None:
    """AMD's compiler has no products in tf32x3; on sm_100 the relevance once spilled 424 bytes."""
    from ahead_of_time import compile_for, registers_and_spills

    (shape,) = (s for s in resources.SHAPES if s.name == name)
    amd = isinstance(chip, str)

    def run() -> None:
        with (
            mock.patch(
                "torch.cuda.get_device_capability", return_value=(9, 4) if amd else divmod(chip, 10)
            ),
            mock.patch("torch.version.hip", "6.2" if amd else None),
        ):
            resources._selection(shape)

    for kernel, args, options in resources.record(run, 90):
        compiled = compile_for(kernel, args, options, chip)
        assert compiled.metadata.shared <= CHIPS[chip] * 1024, kernel
        if not amd:
            assert registers_and_spills(compiled.asm["cubin"])[1] <= 16, kernel


def test_the_units_of_instructions_are_told_apart() -> None:
    pytest.importorskip("triton")
    import instructions

    counted = instructions.cycles(
        (
            "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24",
            "HMMA.16816.F32.BF16 R4, R8, R12, R4",
            "HMMA.1688.F32.TF32 R4, R8, R12, R4",
            "MUFU.EX2 R1, R2",
            "LDGSTS.E.BYPASS.128 [R1], desc[UR2][R4.64]",
            "FFMA R1, R2, R3, R4",
            "IMAD.WIDE R2, R3, 0x4, R4",
            "FMNMX R1, R2, R3, !PT",
            "BAR.SYNC.DEFER_BLOCKING 0x0",
        )
    )
    wanted = {"issue": 9, "matrix": 32 + 4 + 4, "special": 8, "memory": 4, "float": 5, "integer": 2}
    assert counted == wanted

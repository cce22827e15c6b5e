"""The attention kernels compiled for chips that are not here: limits, widths, pinned loops.

Compiled, so in a process without the interpreter.
"""

import re

import pytest
import torch

from ndgpa import Clusters, Grid

pytestmark = pytest.mark.compiled

CHIPS = (80, 86, 89, 90, 100, 120, "gfx942")
# Instructions that a warp runs in the inner loop on sm_90, in all and of each unit.
LOOPS = {
    ("pivot 64", "key_major"): {
        "issue": 281,
        "integer": 70,
        "float": 65,
        "special": 8,
        "memory": 49,
        "matrix": 16,
    },
    ("pivot 64", "query_major"): {
        "issue": 361,
        "integer": 72,
        "float": 158,
        "special": 32,
        "memory": 23,
        "matrix": 12,
    },
    ("pivot 64", "forward"): {
        "issue": 368,
        "integer": 103,
        "float": 135,
        "special": 34,
        "memory": 32,
        "matrix": 8,
    },
    ("video 49,152", "key_major"): {
        "issue": 784,
        "integer": 292,
        "float": 196,
        "special": 32,
        "memory": 83,
        "matrix": 32,
    },
    ("video 49,152", "query_major"): {
        "issue": 458,
        "integer": 83,
        "float": 191,
        "special": 32,
        "memory": 32,
        "matrix": 20,
    },
    ("video 49,152", "forward"): {
        "issue": 476,
        "integer": 125,
        "float": 195,
        "special": 34,
        "memory": 44,
        "matrix": 12,
    },
    ("pivot 64, far site", "far_query"): {
        "issue": 641,
        "integer": 319,
        "float": 180,
        "special": 32,
        "memory": 34,
        "matrix": 12,
    },
    ("pivot 64, far site", "far_key"): {
        "issue": 841,
        "integer": 349,
        "float": 284,
        "special": 41,
        "memory": 68,
        "matrix": 16,
    },
    ("pivot 64, far site", "far_forward"): {
        "issue": 509,
        "integer": 221,
        "float": 143,
        "special": 34,
        "memory": 44,
        "matrix": 8,
    },
}
PINNED = {shape for shape, _ in LOOPS}
MARGIN = 1.15


@pytest.fixture(scope="module")
def resources():
    pytest.importorskip("triton")
    import kernel_resources

    return kernel_resources


@pytest.fixture(scope="module")
def compiled(resources):
    """The three kernels at the pivot and at the video shape, and of the far field, for sm_90."""
    from ahead_of_time import compile_for

    return {
        (shape.name, _name(kernel)): compile_for(kernel, args, options, 90)
        for shape in resources.SHAPES
        if shape.name in PINNED
        for kernel, args, options in _launches(lambda s=shape: resources.attend(s), 90)
        if _name(kernel) not in ("add_parts", "mark_selected")
    }


def _name(kernel) -> str:
    return kernel.__name__.removesuffix("_kernel")


def _launches(run, chip):
    from kernel_sweep import launches

    return launches(run, chip)


def _attention(
    resources, structure, width, dtype=torch.bfloat16, even=False, heads=2, biased=False
):
    meta, n, cells = resources.meta, structure.num_sites, structure.num_cells
    x, rows = meta(1, heads, n, width, dtype=dtype), meta(1, heads, n)
    given = resources.Inputs(
        x,
        x,
        x,
        slot_bias=meta(1, heads, cells, 4) if biased else None,
        key_bias=meta(1, heads, n) if biased else None,
        blocks=meta(1, heads, cells, 4, dtype=torch.int32),
        cell_sites=structure.to("meta").cell_sites,
        key_sites=structure.to("meta").blocks,
        query_time=None,
        key_time=None,
        scale=0.1,
        even=even,
    )
    resources.run_attention(given.laid_out(), x, rows, meta(1, 2, heads, n), longest=2)


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "width", [pytest.param(64, marks=slow), pytest.param(128, marks=slow), 160]
)
@pytest.mark.parametrize("chip", [c if c == 86 else pytest.param(c, marks=slow) for c in CHIPS])
def test_every_chip_has_the_shared_memory_that_is_asked_for(resources, chip, width):
    import kernel_sweep
    from ahead_of_time import compile_for

    space = Grid((32, 32), 4, 2)
    for kernel, args, options in _launches(
        lambda: _attention(resources, space, width, even=True), chip
    ):
        used = compile_for(kernel, args, options, chip)
        shared_kib = used.metadata.shared / 1024
        assert shared_kib <= kernel_sweep.CHIPS[chip], (kernel, shared_kib)


@slow
@pytest.mark.parametrize("chip", CHIPS)
def test_every_kernel_fits_every_chip(resources, chip):
    """Selection, attention and far field; no forward spills where it matters most."""
    import kernel_sweep

    found = list(kernel_sweep.kernels(chip))
    names = {row["kernel"] for row in found}
    assert {"sum_blocks", "lse", "relevance", "top_k", "forward", "key_major"} <= names
    assert {"far_forward", "far_query", "far_key", "mark_selected"} <= names
    for row in found:
        assert row["shared_kib"] <= kernel_sweep.CHIPS[chip], row
        if chip in (80, 90) and row["kernel"] in kernel_sweep.FORWARD:
            assert row["spilled_bytes"] == 0, row


def test_ragged_batches_of_other_sizes_compile_nothing_new(resources):
    """The sites of the largest cell and block differ, and how many there are of each."""
    from ahead_of_time import specialize

    def keys(largest, blocks):
        """Blocks of 15 sites and one of more, three to a cell."""
        sizes = torch.tensor([largest] + [15] * (blocks - 1))
        numbers = torch.arange(blocks)
        space = Clusters(numbers.repeat_interleave(sizes), numbers // 3)
        found = _launches(lambda: _attention(resources, space, 64, biased=True), 90)
        return {_name(kernel): specialize(kernel, args, options) for kernel, args, options in found}

    wanted, found = keys(17, 48), keys(18, 57)
    assert set(found) == {"forward", "query_major", "key_major", "add_parts"}
    assert found == wanted


def test_offsets_of_sites_and_heads_are_64_bit(compiled):
    """128 heads of 4096x4096 sites are 2^31 rows: no product with a stride is taken in 32 bit."""
    for name, kernel in compiled.items():
        products = re.findall(r"arith\.muli (.*) : i32", kernel.asm["ttir"])
        wrong = [line for line in products if re.search(r"%(n|n_k|n_out|s_\w+)\b", line)]
        assert not wrong, (name, wrong)


def test_inner_loops_are_no_longer_than_they_were(compiled):
    from instructions import counts, program

    loops = {name: program(kernel.asm["cubin"]).inner_loop for name, kernel in compiled.items()}
    found = {name: counts(loop.instructions) for name, loop in loops.items()}
    assert set(found) == set(LOOPS), found
    for name, of_unit in found.items():
        for unit, count in of_unit.items():
            assert count <= MARGIN * LOOPS[name][unit], (name, unit, found)


def test_a_loop_by_hand(resources):
    from instructions import counts

    text = "FFMA R0, R1, R2", "IADD3 R0", "MUFU.EX2 R1", "LDS R2", "HGMMA.64x64x16.F32", "BRA x"
    each = dict.fromkeys(("integer", "float", "special", "memory", "matrix"), 1)
    assert counts(text) == {"issue": 6, **each}

"""The attention kernels compiled for chips that are not here: limits, widths, pinned loops.

Compiled, so in a process without the interpreter.
"""

import re
from unittest import mock

import pytest
import torch

from ndgpa import Clusters, Grid
from tests.kernels.machine_code import inner_loop, kinds

pytestmark = pytest.mark.compiled

# Shared memory of one program in KiB (CUDA C++ Programming Guide, table of compute capabilities;
# AMD CDNA3 instruction set reference).
CHIPS = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99, "gfx942": 64}
# Instructions that a warp runs in the inner loop on sm_90, by what runs them.
LOOPS = {
    ("pivot 64", "key_major"): {
        "all": 281,
        "matrix": 16,
        "special": 8,
        "memory": 56,
        "integer": 80,
        "float": 40,
    },
    ("pivot 64", "query_major"): {
        "all": 361,
        "matrix": 12,
        "special": 32,
        "memory": 26,
        "integer": 73,
        "float": 144,
    },
    ("pivot 64", "forward"): {
        "all": 368,
        "matrix": 8,
        "special": 34,
        "memory": 36,
        "integer": 79,
        "float": 160,
    },
    ("video 49,152", "key_major"): {
        "all": 784,
        "matrix": 32,
        "special": 32,
        "memory": 89,
        "integer": 299,
        "float": 160,
    },
    ("video 49,152", "query_major"): {
        "all": 458,
        "matrix": 20,
        "special": 32,
        "memory": 36,
        "integer": 117,
        "float": 144,
    },
    ("video 49,152", "forward"): {
        "all": 476,
        "matrix": 12,
        "special": 34,
        "memory": 48,
        "integer": 128,
        "float": 192,
    },
}
MARGIN = 1.15


@pytest.fixture(scope="module")
def resources():
    pytest.importorskip("triton")
    import kernel_resources

    return kernel_resources


@pytest.fixture(scope="module")
def compiled(resources):
    """The three kernels at the pivot and at the video shape, for sm_90."""
    from ahead_of_time import compile_for

    shapes = {s.name: s for s in resources.SHAPES if s.name in ("pivot 64", "video 49,152")}
    return {
        (name, _name(kernel)): compile_for(kernel, args, options, 90)
        for name, shape in shapes.items()
        for kernel, args, options in _launches(
            resources, lambda s=shape: resources._attention(s), 90
        )
        if _name(kernel) != "add_parts"
    }


def _name(kernel) -> str:
    return kernel.__name__.removesuffix("_kernel")


def _launches(resources, run, chip):
    """The launches on a chip, `chip` being a compute capability or the name of AMD's."""
    amd = isinstance(chip, str)

    def on_chip():
        capability = (9, 4) if amd else divmod(chip, 10)
        with (
            mock.patch("torch.cuda.get_device_capability", return_value=capability),
            mock.patch("torch.version.hip", "6.2" if amd else None),
        ):
            run()

    return resources.record(on_chip, 90)


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
    from ahead_of_time import compile_for

    space = Grid((32, 32), 4, 2)
    for kernel, args, options in _launches(
        resources, lambda: _attention(resources, space, width, even=True), chip
    ):
        used = compile_for(kernel, args, options, chip)
        assert used.metadata.shared <= CHIPS[chip] * 1024, (kernel, used.metadata.shared)


def test_ragged_batches_of_other_sizes_compile_nothing_new(resources):
    """The sites of the largest cell and block differ, and how many there are of each."""
    from ahead_of_time import specialize

    def keys(largest, blocks):
        """Blocks of 15 sites and one of more, three to a cell."""
        sizes = torch.tensor([largest] + [15] * (blocks - 1))
        numbers = torch.arange(blocks)
        space = Clusters(numbers.repeat_interleave(sizes), numbers // 3)
        found = _launches(resources, lambda: _attention(resources, space, 64, biased=True), 90)
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
    found = {name: kinds(inner_loop(kernel.asm["cubin"])) for name, kernel in compiled.items()}
    assert set(found) == set(LOOPS), found
    for name, counts in found.items():
        for kind, count in counts.items():
            assert count <= MARGIN * LOOPS[name][kind], (name, kind, found)


def test_a_loop_by_hand():
    text = [
        "FFMA R0, R1, R2",
        "IMAD.WIDE R0",
        "MUFU.EX2 R1",
        "LDS R2",
        "HGMMA.64x64x16.F32",
        "BRA x",
    ]
    assert kinds(text) == {
        "all": 6,
        "matrix": 1,
        "special": 1,
        "memory": 1,
        "integer": 1,
        "float": 1,
    }

"""What the kernels use of a GPU, read from binaries compiled without one."""

import json
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.compiled

TABLE = Path(__file__).parent.parent / "benchmarks" / "results" / "kernel_resources.json"
REGISTERS = 255


@pytest.fixture(scope="module")
def resources():
    pytest.importorskip("triton")
    import kernel_resources

    return kernel_resources


@pytest.mark.parametrize("capability", [80, 90])
def test_forward_of_every_shape_spills_nothing_and_multiplies_on_matrix_units(
    resources, capability
) -> None:
    """Of what is selected; `test_every_kernel_fits_every_chip` has the far field's."""
    for shape in resources.SHAPES:
        if shape.far:
            continue
        (row,) = resources.rows(shape, capability, only=("forward",))
        assert row.spilled_bytes == 0, row
        assert row.shared_kib <= row.shared_limit_kib, row
        if shape.dtype.itemsize == 2:
            wide = capability == 90 and shape.places >= 64
            assert row.matrix == ("wgmma" if wide else "mma"), row


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", ["pivot 64", "video 49,152"])
def test_every_kernel_compiles_within_the_limits_of_the_chip(resources, name, capability) -> None:
    (shape,) = (s for s in resources.SHAPES if s.name == name)
    found = {row.kernel: row for row in resources.rows(shape, capability)}
    multiplying = {"relevance", "forward", "query_major", "key_major"}
    if shape.cells < shape.blocks:  # a cell of one block needs no log-sum-exp
        multiplying |= {"lse"}
    assert set(found) == multiplying | {"sum_blocks", "top_k", "add_parts"}
    for row in found.values():
        assert row.registers <= REGISTERS, row
        assert row.shared_kib <= row.shared_limit_kib, row
        assert row.spilled_bytes <= 64, row
        assert (row.matrix != "none") == (row.kernel in multiplying), row


def _attention(
    resources, dtype, d, dv, heads, key_heads, selection_heads, places, sites, slots, partition=True
):
    """Forward and backward with every option on: biases, causal, ragged, grouped heads."""
    meta, cells, blocks, n = resources.meta, 7, 11, 1000
    query, out = meta(2, heads, n, d, dtype=dtype), meta(2, heads, n, dv, dtype=dtype)
    key, value = meta(2, key_heads, n, d, dtype=dtype), meta(2, key_heads, n, dv, dtype=dtype)
    given = resources.Inputs(
        query,
        key,
        value,
        slot_bias=meta(2, selection_heads, cells, slots),
        key_bias=meta(2, key_heads, n),
        blocks=meta(2, selection_heads, cells, slots, dtype=torch.int32),
        cell_sites=meta(cells, places, dtype=torch.int64),
        key_sites=meta(blocks, sites, dtype=torch.int64),
        query_time=meta(n, dtype=torch.int64),
        key_time=meta(n, dtype=torch.int64),
        scale=0.1,
        partition=partition,
    )
    resources.run_attention(given, out, meta(2, heads, n), meta(2, 2, heads, n), longest=2)


def _selection(resources, relevance, d, heads, key_heads, selection_heads, places, blocks):
    """Means, relevance and top-k with every option on: masks, biases, ragged, groups, times."""
    meta, cells = resources.meta, 9
    x = meta(2, heads, 1000, d, dtype=torch.float16)
    table, out = meta(blocks, 5, dtype=torch.int64), meta(2, heads, blocks, d)
    resources.triton_means.sum_blocks(x, meta(2, 1000, dtype=torch.bool), table, out)
    coarse = resources.CoarseCells(
        query=meta(2, heads, cells, places, d),
        key=meta(2, key_heads, blocks, d),
        bias=meta(2, key_heads, blocks),
        log_size=meta(2, blocks),
        weight=meta(2, cells, places),
        cell_group=meta(cells, dtype=torch.int64),
        key_group=meta(blocks, dtype=torch.int64),
        cell_time=meta(cells, dtype=torch.int64),
        key_time=meta(blocks, dtype=torch.int64),
        scale=0.1,
    )
    resources.triton_top_k.select(coarse, None, 6, relevance, selection_heads)


def _second_look(resources, d, heads, key_heads, selection_heads, queries, parts, width):
    from ndgpa.selection.triton_second_look import write_mass

    meta, cells, blocks = resources.meta, 9, 300
    kept = (2, selection_heads, cells, width)
    write_mass(
        meta(*kept),
        meta(2, heads, cells, queries, d),
        meta(2, key_heads, blocks, parts, d),
        meta(2, key_heads, blocks, parts),
        meta(*kept, dtype=torch.int32),
        meta(2, cells, queries),
        0.1,
    )


def _kernels(run, options):
    """Those that a form launches."""
    if run is _second_look:
        return {"second_look"}
    if run is _selection:
        relevance, _, heads, _, selection_heads, places, _ = options
        summed = relevance == "mass" and heads * places > selection_heads
        return {"sum_blocks", "relevance", "top_k"} | ({"lse"} if summed else set())
    return {"forward", "query_major", "key_major", "add_parts"} | (
        {"add_places"} if options[-1] is False else set()
    )


FORMS = {
    "grouped heads, ragged widths": (_attention, torch.float16, 40, 24, 4, 2, 2, 12, 6, 5),
    "a selection for each head": (_attention, torch.bfloat16, 64, 64, 4, 2, 4, 64, 16, 3),
    "one selection, blocks of 128": (_attention, torch.float16, 64, 64, 2, 2, 1, 256, 128, 2),
    "eight small cells": (_attention, torch.float16, 64, 64, 2, 2, 2, 2, 4, 12),
    "sampled keys": (_attention, torch.bfloat16, 24, 40, 2, 2, 2, 4, 16, 12, False),
    "blocks of one site": (_attention, torch.bfloat16, 16, 16, 1, 1, 1, 1, 1, 4),
    "widest heads": (_attention, torch.bfloat16, 256, 256, 1, 1, 1, 64, 27, 4),
    "widest heads in float32": (_attention, torch.float32, 256, 200, 1, 1, 1, 64, 16, 4),
    "mass over grouped heads": (_selection, "mass", 40, 4, 2, 1, 3, 70),
    "mass over large cells": (_selection, "mass", 200, 1, 1, 1, 150, 5000),
    "logits": (_selection, "logit", 64, 4, 2, 2, 4, 300),
    "a second look": (_second_look, 64, 4, 2, 2, 16, 4, 48),
    "a second look at all sites, widest heads": (_second_look, 128, 1, 1, 1, 150, 64, 24),
    "one block a cell": (_selection, "mass", 256, 2, 2, 2, 1, 40),
}


@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.slow), 90])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_every_kernel_compiles(resources, form, capability) -> None:
    """The compiler asks for more than the interpreter does: one type for a name, for one."""
    run, *options = FORMS[form]
    launches = resources.record(lambda: run(resources, *options), capability)
    names = {kernel.__name__.removesuffix("_kernel") for kernel, _, _ in launches}
    assert names == _kernels(run, options)
    for kernel, args, chosen in launches:
        used = resources.compile_launch(kernel, args, chosen, capability)
        assert used.shared_bytes <= resources.SHARED_LIMIT[capability], (kernel, used)


def test_the_committed_table_holds_the_limits(resources) -> None:
    rows = json.loads(TABLE.read_text())["rows"]
    assert {row["capability"] for row in rows} == {80, 90}
    forward = [row for row in rows if row["kernel"] == "forward"]
    shapes = [shape.name for shape in resources.SHAPES if not shape.far]
    assert sorted(row["shape"] for row in forward) == sorted(2 * shapes)
    assert all(row["spilled_bytes"] == 0 for row in forward)
    assert all(row["shared_kib"] <= row["shared_limit_kib"] for row in rows)

"""What the kernels use of a GPU, read from binaries compiled without one."""

import json
from pathlib import Path

import pytest

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
    for shape in resources.SHAPES:
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
    multiplying = {"lse", "relevance", "forward", "query_major", "key_major"}
    assert set(found) == multiplying | {"sum_blocks", "top_k", "add_parts"}
    for row in found.values():
        assert row.registers <= REGISTERS, row
        assert row.shared_kib <= row.shared_limit_kib, row
        assert row.spilled_bytes <= 64, row
        assert (row.matrix != "none") == (row.kernel in multiplying), row


def test_the_committed_table_holds_the_limits() -> None:
    rows = json.loads(TABLE.read_text())["rows"]
    assert {row["capability"] for row in rows} == {80, 90}
    forward = [row for row in rows if row["kernel"] == "forward"]
    assert len(forward) == 16
    assert all(row["spilled_bytes"] == 0 for row in forward)
    assert all(row["shared_kib"] <= row["shared_limit_kib"] for row in rows)

"""What `FlopCounterMode` counts for the operators: every product that their plain bodies make."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ndgpa
from ndgpa.attention.chunked import attend_chunked, attend_chunked_backward
from ndgpa.attention.far_chunked import far_chunked, far_chunked_backward
from ndgpa.attention.features import attend_by_features, attend_by_features_backward
from ndgpa.attention.tiles import attend_tiles, attend_tiles_backward
from ndgpa.attention.triton.far_ops import far_triton, far_triton_backward
from ndgpa.attention.triton.ops import attend_triton, attend_triton_backward
from ndgpa.selection.second_look import second_look
from ndgpa.selection.select_blocks import select_top_k
from ndgpa.selection.select_by_codes import select_by_codes
from ndgpa.selection.select_children import select_children

pytestmark = pytest.mark.compiled  # the shape checks would count their own reading


def counted(run: Callable[[], Any]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def normal(*shape: int) -> Tensor:
    return torch.randn(shape)


def ids(most: int, *shape: int) -> Tensor:
    return torch.randint(most, shape, dtype=torch.int32)


QUERY, KEY, VALUE = normal(2, 4, 5, 6, 7), normal(2, 2, 8, 3, 7), normal(2, 2, 8, 3, 9)
CHUNKED = (ids(8, 2, 4, 5, 2), *14 * [None], 0, 0.0, 0.3)
Q, K, V = normal(2, 4, 12, 7), normal(2, 2, 10, 7), normal(2, 2, 10, 9)
TILES = (None, None, torch.arange(12).view(3, 4), ids(10, 3, 5).long(), None, None, None, 0.3)
FEATURES = (None, normal(11, 7), 0.3, 1e-3)
FAR = (
    *(Q, normal(2, 2, 8, 7), normal(2, 2, 8, 9), normal(2, 2, 8)),
    *(ids(8, 2, 4, 5, 2), torch.arange(12) % 5, None, None, None, None, 0.3),
)
CELLS = (
    normal(2, 4, 5, 3, 7),
    normal(2, 2, 8, 7),
    None,
    None,
    torch.ones(2, 5, 3),
    None,
    None,
    None,
)
CHILDREN = torch.arange(24).view(8, 3)

CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "chunked": (attend_chunked, (QUERY, KEY, VALUE, *CHUNKED)),
    "chunked, backward": (
        attend_chunked_backward,
        (normal(2, 4, 5, 6, 9), normal(2, 4, 5, 6), QUERY, KEY, VALUE, *CHUNKED),
    ),
    "far": (far_chunked, FAR),
    "far, backward": (
        far_chunked_backward,
        (*(normal(2, 4, 12, 9), normal(2, 4, 12)) * 2, *FAR),
    ),
    **{
        f"second look, {heads} selections": (
            second_look,
            (
                *(normal(2, 4, 5, 6, 7), normal(2, 2, 8, 3, 7), torch.zeros(2, 2, 8, 3)),
                *(ids(8, 2, heads, 5, 4), torch.ones(2, 5, 6), 0.3),
            ),
        )
        for heads in (1, 2, 4)
    },
    **{
        f"codes, {share}, {'all alike' if time is None else 'causal'}": (
            select_by_codes,
            (
                *(normal(2, 4, 30, 7), normal(2, 2, 24, 7), ids(24, 2, 1, 6), None, votes, None),
                *(torch.arange(30).view(5, 6), CHILDREN, 3, share, 0.3, "dot"),
                *(torch.zeros(5, dtype=torch.int64), torch.zeros(8, dtype=torch.int64)),
                *(None, None, time, None if time is None else torch.arange(8), None),
            ),
        )
        for share in ("head", "all")
        for time, votes in ((None, None), (torch.arange(5), torch.ones(2, 5, 6).bool()))
    },
    "tiles": (attend_tiles, (Q, K, V, *TILES)),
    "tiles, backward": (attend_tiles_backward, (normal(2, 4, 12, 9), Q, K, V, *TILES)),
    **{
        f"features, {kernel}": (attend_by_features, (Q, K, V, *FEATURES, kernel))
        for kernel in ("softmax", "relu")
    },
    **{
        f"features, {kernel}, backward": (
            attend_by_features_backward,
            (normal(2, 4, 12, 9), Q, K, V, *FEATURES, kernel),
        )
        for kernel in ("softmax", "relu")
    },
    **{
        f"{kind}, {share}": (select_top_k, (*CELLS, 3, kind, share, 0.3))
        for kind in ("mass", "logit")
        for share in ("head", "group", "all")
    },
    "children": (
        select_children,
        (
            normal(2, 4, 5, 3, 7), normal(2, 2, 8, 3, 7), torch.zeros(2, 8, 3), ids(8, 2, 2, 5, 2),
            torch.ones(2, 5, 3), None, CHILDREN, 4, "group", 0.3, None, None,
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_an_operator_counts_as_the_products_of_its_body(name: str) -> None:
    op, args = CALLS[name]
    plain = counted(lambda: op._init_fn(*args))
    assert plain > 0
    assert counted(lambda: op(*args)) == plain


def test_the_kernels_count_as_the_same_attention_in_plain_torch() -> None:
    """On tensors without values: 2 cells of 3 sites that read 2 blocks of 4, 4 heads of 7 and 9."""
    structure, keys = ndgpa.Sequence(6, 3, 1).to("meta"), ndgpa.Sequence(20, 4, 1).to("meta")
    query, key = (torch.empty(2, h, n, 7, device="meta") for h, n in ((4, 6), (2, 20)))
    value = torch.empty(2, 2, 20, 9, device="meta")
    blocks = torch.empty(2, 1, 2, 2, dtype=torch.int32, device="meta")
    tables = (structure.cell_sites, keys.blocks, None, None, 0.3)
    given = (query, key, value, None, None, blocks)
    out, lse, norm = attend_triton(*given, *tables)
    one, pairs = torch.empty(8, 3, 7, device="meta"), 2 * 4 * 2 * 3 * 2 * 4

    def literal() -> None:
        for _ in range(2):  # cells
            logits = one @ torch.empty(8, 7, 8, device="meta")
            logits @ torch.empty(8, 8, 9, device="meta")

    forward = counted(lambda: attend_triton(*given, *tables))
    assert forward == counted(literal) == 2 * pairs * (7 + 9)
    backward = counted(lambda: attend_triton_backward(out, lse, out, norm, *given, *tables))
    assert backward == 2 * pairs * (3 * 7 + 2 * 9)


def test_the_kernels_of_the_far_field_count_as_it_does_in_torch() -> None:
    """On tensors without values."""
    given = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in FAR]
    out, lse, norm = far_triton(*given)
    assert counted(lambda: far_triton(*given)) == counted(lambda: far_chunked(*given))
    assert counted(lambda: far_triton_backward(out, lse, out, norm, *given)) == counted(
        lambda: far_chunked_backward(out, lse, out, lse, *given)
    )


def test_a_training_step_counts_forward_and_two_and_a_half_times_as_much() -> None:
    space = ndgpa.Grid((6, 6), 2, 1)
    x = normal(1, 1, 36, 8).requires_grad_()
    selection = ndgpa.select(x, x, space, 2)

    def step() -> None:
        ndgpa.attend(x, x, x, selection, space).sum().backward()

    forward = 2 * 36 * 8 * (8 + 8)
    assert counted(step) == forward + 5 * forward // 2


def test_the_counter_may_be_imported_before() -> None:
    """This file imports it after."""
    code = """if 1:
        import torch.utils.flop_counter
        import torch, ndgpa
        from torch.utils.flop_counter import FlopCounterMode
        x = torch.zeros(1, 1, 8, 2)
        with FlopCounterMode(display=False) as counter:
            ndgpa.gpa(x, x, x, ndgpa.Sequence(8, 2, 1), 2)
        assert counter.get_total_flops() == 2 * 4 * 4 * 2 + 2 * 8 * 4 * 4, counter.get_total_flops()
    """
    subprocess.run([sys.executable, "-c", code], check=True)

import pytest
import torch
from torch import Tensor

import ndgpa
from ndgpa.nn import SpatialAttention
from ndgpa.operators import MultiAxis, Operator
from ndgpa.testing import OperatorContract


class TestMultiAxis(OperatorContract):
    def operator(self, heads: int, width: int) -> Operator:
        return MultiAxis()


class TestMultiAxisWithBlocksOfItsOwn(OperatorContract):
    structure = ndgpa.Grid((5, 7), block=1)
    tiny = ndgpa.Grid((3, 4), block=1)

    def operator(self, heads: int, width: int) -> Operator:
        return MultiAxis(block=(2, 3))


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def hit_blocks(x: Tensor, h: int, w: int, p: int) -> Tensor:
    """HiT's blocking: (b, h*w, c) -> (b, blocks, p*p, c), blocks and pixels in row-major order."""
    b, _, c = x.shape
    x = x.view(b, h // p, p, w // p, p, c).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * w // p**2, p * p, c)


@pytest.mark.parametrize(("h", "w", "p"), [(8, 8, 4), (6, 9, 3), (4, 8, 2)])
def test_pixels_lie_in_blocks_as_hit_lays_them(h: int, w: int, p: int) -> None:
    image = ndgpa.Image((h, w), p)
    site = torch.arange(h * w)[None, :, None].double()
    blocked = hit_blocks(site, h, w, p)[0, :, :, 0]
    assert torch.equal(blocked.long(), image.blocks)
    for y in range(h):
        for x in range(w):
            assert blocked[(y // p) * (w // p) + x // p, (y % p) * p + x % p] == y * w + x
    back = torch.empty(h * w)
    back[image.blocks] = blocked.float()
    assert torch.equal(back, site[0, :, 0].float())


def test_it_equals_attention_along_the_two_axes_of_blocks() -> None:
    h, w, p = 8, 12, 4
    query, key, value = normal(2, 4, h * w, 6), normal(2, 1, h * w, 6), normal(2, 1, h * w, 5)
    out = MultiAxis()(query, key, value, ndgpa.Image((h, w), p))
    for head in range(4):
        q, k, v = (hit_blocks(x, h, w, p) for x in (query[:, head], key[:, 0], value[:, 0]))
        if head >= 2:  # along the blocks, at one place within them
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        expected = (q @ k.mT / 6**0.5).softmax(-1) @ v
        if head >= 2:
            expected = expected.transpose(1, 2)
        torch.testing.assert_close(hit_blocks(out[:, head], h, w, p), expected)


@pytest.mark.parametrize("shape", [(12,), (6, 8), (4, 6, 4)])
def test_halves_see_their_block_and_their_place_only(shape: tuple[int, ...]) -> None:
    grid = ndgpa.Grid(shape, 2)
    mask = MultiAxis().mask(grid)
    at = torch.cartesian_prod(*(torch.arange(n) for n in shape)).view(-1, len(shape))
    block, place = at // 2, at % 2
    assert torch.equal(mask[0], (block[:, None] == block).all(dim=2))
    assert torch.equal(mask[1], (place[:, None] == place).all(dim=2))


def test_a_pixel_outside_does_not_move_the_half_that_cannot_see_it() -> None:
    grid, inputs = ndgpa.Image((8, 8), 4), [normal(1, 4, 64, 3) for _ in range(3)]
    before = MultiAxis()(*inputs, grid)
    other = [x.clone() for x in inputs]
    for x in other[1:]:
        x[:, :, 63] += 1.0  # block 3, place 15
    after = MultiAxis()(*other, grid)
    moved = (before != after).any(dim=-1)[0]
    assert torch.equal(moved[0], grid.block_of_site == 3)
    place = torch.empty(64, dtype=torch.int64)
    place[grid.blocks] = torch.arange(16).expand(4, 16)
    assert torch.equal(moved[3], place == 15)


def test_irregular_blocks_pair_by_rank() -> None:
    space = ndgpa.Clusters(torch.tensor([0, 1, 1, 0, 1]), torch.tensor([0, 0]))
    across = MultiAxis().mask(space)[1]
    assert across.nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 2], [2, 3], [3, 2],
                                         [3, 3], [4, 4]]  # fmt: skip


def test_groups_larger_than_a_tile_are_cut() -> None:
    inputs = [normal(1, 2, 600, 2) for _ in range(3)]
    out = MultiAxis()(*inputs, ndgpa.Grid(600, 600))
    torch.testing.assert_close(
        out[:, :1], ndgpa.Full()(*(x[:, :1] for x in inputs), ndgpa.Grid(600, 1))
    )
    torch.testing.assert_close(out[:, 1:], inputs[2][:, 1:])


def test_multi_query_layers_have_one_head_of_keys_and_values() -> None:
    layer = SpatialAttention(32, heads=4, key_heads=1, operator=MultiAxis())
    assert layer.to_key.weight.shape == (8, 32)
    assert layer.to_value.weight.shape == (8, 32)
    assert layer(torch.randn(2, 64, 32), ndgpa.Image((8, 8), 4)).shape == (2, 64, 32)


@pytest.mark.bad_input
def test_errors_say_what_was_wanted() -> None:
    x, y = torch.zeros(1, 3, 12, 2), torch.zeros(1, 2, 12, 2)
    with pytest.raises(ValueError, match="MultiAxis needs an even number of query heads; got 3"):
        MultiAxis()(x, x, x, ndgpa.Grid(12, 3))
    with pytest.raises(ValueError, match="structure has 4 and key_structure 6"):
        MultiAxis()(y, y, y, ndgpa.Grid(12, 3), ndgpa.Grid(12, 2))
    with pytest.raises(ValueError, match="structure has 4 sites per block and key_structure 5"):
        MultiAxis()(y, y, y, ndgpa.Grid(12, 4), ndgpa.Grid(12, 5))
    with pytest.raises(ValueError, match="block must be at least 1; got 0"):
        MultiAxis(0)
    with pytest.raises(TypeError, match="needs a Grid as structure; got Clusters"):
        MultiAxis(2)(y, y, y, ndgpa.Clusters(torch.arange(12) // 3, torch.arange(4)))
    with pytest.raises(ValueError, match="heads must be a multiple of the 3 key heads; got 4"):
        SpatialAttention(32, heads=4, key_heads=3)

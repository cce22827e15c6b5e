import pytest
import torch
from torch import Tensor

import ndgpa
from ndgpa.attention.dense import attend_to_all
from ndgpa.operators import Nystrom, Operator
from ndgpa.operators.nystrom import pseudo_inverse, run_sums
from ndgpa.testing import OperatorContract


class TestNystrom(OperatorContract):
    def operator(self, heads: int, width: int) -> Operator:
        return Nystrom(7 if width == 8 else 3)


class TestNystromOverBlocks(OperatorContract):
    def operator(self, heads: int, width: int) -> Operator:
        return Nystrom("blocks")


class TestNystromWithConvolution(OperatorContract):
    def operator(self, heads: int, width: int) -> Operator:
        return Nystrom(4, conv_kernel=3, heads=heads)


class TestNystromOnTwoSpaces(OperatorContract):
    key_structure = ndgpa.Sequence(70, 4)

    def operator(self, heads: int, width: int) -> Operator:
        return Nystrom(5)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def plain(query: Tensor, key: Tensor, value: Tensor, runs: int, iterations: int = 6) -> Tensor:
    """The formula of one head, landmarks by slices, the inverse iterated on the whole matrix."""

    def means(x: Tensor) -> Tensor:
        length, longer = divmod(len(x), runs)
        sizes = [length] * (runs - longer) + [length + 1] * longer
        return torch.stack([part.mean(dim=0) for part in x.split(sizes)])

    scale = query.shape[1] ** -0.5
    few, few_keys = means(query), means(key)
    first = (scale * query @ few_keys.T).softmax(1)
    a = (scale * few @ few_keys.T).softmax(1)
    last = (scale * few @ key.T).softmax(1)
    inverse = a.T / (a.sum(0).max() * a.sum(1).max())
    eye = torch.eye(runs, dtype=a.dtype)
    for _ in range(iterations):
        az = a @ inverse
        inverse = inverse @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az))) / 4
    return first @ inverse @ last @ value


@pytest.mark.parametrize(("n", "n_k", "runs"), [(48, 48, 8), (50, 50, 7), (30, 71, 9), (40, 13, 5)])
def test_it_equals_the_plain_formula(n: int, n_k: int, runs: int) -> None:
    query, key, value = normal(2, 4, n, 6), normal(2, 2, n_k, 6), normal(2, 2, n_k, 3)
    out = Nystrom(runs)(query, key, value, ndgpa.Grid(n, 1), ndgpa.Grid(n_k, 1))
    for b in range(2):
        for h in range(4):
            expected = plain(query[b, h], key[b, h // 2], value[b, h // 2], runs)
            torch.testing.assert_close(out[b, h], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("n", "n_k", "landmarks"), [(20, 20, 20), (20, 50, 20), (50, 20, 30)])
def test_landmarks_that_are_all_sites_give_full_attention(n: int, n_k: int, landmarks: int) -> None:
    query, key, value = normal(1, 2, n, 4), normal(1, 2, n_k, 4), normal(1, 2, n_k, 4)
    spaces = ndgpa.Grid(n, 1), ndgpa.Grid(n_k, 1)
    expected = ndgpa.Full()(query, key, value, *spaces)
    torch.testing.assert_close(Nystrom(landmarks)(query, key, value, *spaces), expected)


def test_more_landmarks_come_closer_to_full_attention() -> None:
    """Measured: .74, .63, .48, .30 and .11. More iterations would amplify noise: 12 give 2.7."""
    inputs = [normal(32, 1, 64, 16) for _ in range(3)]
    space = ndgpa.Grid(64, 1)
    exact = ndgpa.Full()(*inputs, space)
    errors = [
        float((Nystrom(m)(*inputs, space) - exact).norm() / exact.norm())
        for m in (8, 16, 32, 48, 60)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.8
    assert errors[4] < 0.2


def test_a_sample_does_not_depend_on_its_batch_at_all() -> None:
    """The released code divides by a norm over the whole batch; here each matrix has its own."""
    inputs = [normal(2, 2, 64, 8) for _ in range(3)]
    changed = [x.clone() for x in inputs]
    for x in changed:
        x[1] *= 20
    operator, space = Nystrom(16), ndgpa.Grid(64, 1)
    assert torch.equal(operator(*inputs, space)[0], operator(*changed, space)[0])


def test_the_pseudo_inverse_converges() -> None:
    a = normal(16, 16, 16).softmax(-1)
    after_12, after_20 = pseudo_inverse(a, 12), pseudo_inverse(a, 20)
    assert (a @ after_12 @ a - a).abs().max() < 1e-4
    torch.testing.assert_close(after_20, torch.linalg.inv(a), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n", [4096, 16384])
def test_runs_that_do_not_divide_grow_at_the_end(n: int) -> None:
    sizes = run_sums(torch.ones(n, 1), 708)[:, 0]
    assert (sizes[: 708 - n % 708] == n // 708).all()
    assert (sizes[708 - n % 708 :] == n // 708 + 1).all()
    assert sizes.sum() == n


def test_blocks_of_an_image_are_landmarks() -> None:
    """Renumbered block by block, the blocks of an image are runs."""
    image = ndgpa.Image((4, 6), 2)
    inputs = [normal(1, 1, 24, 4) for _ in range(3)]
    order = image.blocks.flatten()
    by_run = Nystrom(6)(*(x[:, :, order] for x in inputs), ndgpa.Grid(24, 1))
    torch.testing.assert_close(Nystrom("blocks")(*inputs, image)[:, :, order], by_run)


def test_blocks_of_a_graph_are_landmarks_too() -> None:
    space = ndgpa.Clusters(torch.randint(0, 5, (40,)).sort().values, torch.zeros(5).int())
    inputs = [normal(1, 2, 40, 4) for _ in range(3)]
    assert Nystrom("blocks")(*inputs, space).isfinite().all()


def test_the_convolution_is_added_head_by_head() -> None:
    operator = Nystrom(4, conv_kernel=5, heads=2).double()
    assert operator.conv is not None
    query, key, value = normal(1, 2, 20, 3), normal(1, 1, 20, 3), normal(1, 1, 20, 3)
    space = ndgpa.Grid(20, 1)
    added = operator(query, key, value, space) - Nystrom(4)(query, key, value, space)
    padded = torch.nn.functional.pad(value[0, 0], (0, 0, 2, 2))
    for h in range(2):
        weight = operator.conv.weight[h, 0].detach()
        expected = sum((weight[t] * padded[t : t + 20] for t in range(5)), torch.zeros(20, 3))
        torch.testing.assert_close(added[0, h], expected.double())
    assert set(operator.state_dict()) == {"conv.weight"}


@pytest.mark.parametrize(("n", "n_k"), [(5, 5000), (600, 40), (3, 2048)])
def test_attention_to_all_cuts_long_spaces(n: int, n_k: int) -> None:
    query, key, value = normal(2, 2, n, 4), normal(2, 1, n_k, 4), normal(2, 1, n_k, 3)
    mask = torch.rand(2, n_k) < 0.5
    mask[1, 100:] = False  # a whole run of keys is hidden
    out = attend_to_all(query, key, value, scale=0.7, key_mask=mask)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, mask[:, None, None], scale=0.7, enable_gqa=True
    )
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.bad_input
def test_errors_say_what_was_wanted() -> None:
    with pytest.raises(ValueError, match="landmarks must be at least 1; got 0"):
        Nystrom(0)
    with pytest.raises(ValueError, match="unknown landmarks 'cells'"):
        Nystrom("cells")
    with pytest.raises(ValueError, match="conv_kernel must be odd; got 4"):
        Nystrom(4, conv_kernel=4, heads=2)
    with pytest.raises(ValueError, match="conv_kernel needs heads"):
        Nystrom(4, conv_kernel=3)
    x, y = torch.zeros(1, 2, 12, 2), torch.zeros(1, 2, 9, 2)
    with pytest.raises(ValueError, match="conv_kernel needs queries and keys on one structure"):
        Nystrom(4, 6, 3, heads=2)(x, y, y, ndgpa.Grid(12, 1), ndgpa.Grid(9, 1))
    with pytest.raises(ValueError, match="structure has 4 and key_structure 3"):
        Nystrom("blocks")(x, y, y, ndgpa.Grid(12, 3), ndgpa.Grid(9, 3))
    grouped = ndgpa.Clusters(torch.arange(12) // 6, torch.arange(2), group=torch.arange(2))
    with pytest.raises(
        NotImplementedError, match="Nystrom does not support structures with groups"
    ):
        Nystrom(4)(x, x, x, grouped)

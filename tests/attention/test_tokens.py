"""Special tokens on every backend that runs without a GPU."""

import pytest
import torch

import ndgpa
from ndgpa.attention import token_reads
from ndgpa.attention.token_merge import formula, merge_tokens
from ndgpa.attention.token_reads import read_in_runs
from ndgpa.testing import TokensContract


class TestReference(TokensContract):
    backend = "reference"


class TestTorch(TokensContract):
    backend = "torch"


class TestManyRuns(TokensContract):
    """Tokens that read seven keys at a time."""

    backend = "torch"

    @pytest.fixture(autouse=True)
    def _short_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(token_reads, "_KEYS", 7)


def _inputs() -> tuple[torch.Tensor, ...]:
    shapes = (1, 2, 9, 3), (1, 1, 4, 3), (1, 1, 4, 5), (1, 1, 4)
    return tuple(torch.randn(shape, requires_grad=True) for shape in shapes)


def test_the_operators_pass_opcheck() -> None:
    query, key, value, bias = _inputs()
    near, lse = (torch.randn(shape, requires_grad=True) for shape in ((1, 2, 9, 5), (1, 2, 9)))
    times = torch.arange(9), torch.tensor([-1, 4, 2, 9])
    torch.library.opcheck(read_in_runs, (query, key, value, bias, *times, 0.5))
    torch.library.opcheck(merge_tokens, (near, lse, query, key, value, bias, *times, 0.5))


def test_they_are_mapped() -> None:
    near, lse = torch.randn(3, 1, 2, 9, 5), torch.randn(3, 1, 2, 9)
    query, key, value, bias = (x.detach().expand(3, *x.shape) for x in _inputs())

    def each(*xs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return merge_tokens(*xs, None, None, 0.5)

    given = near, lse, query, key, value, bias
    mapped = torch.vmap(each)(*given)
    for place in range(3):
        alone = formula(*(x[place] for x in given), None, None, 0.5)
        for mine, theirs in zip(mapped, alone):
            torch.testing.assert_close(mine[place], theirs)


def test_sixteen_bits_err_as_their_rounding_does() -> None:
    query, key, value, bias = (x.detach().double() for x in _inputs())
    exact, _ = token_reads.read_everything(query, key, value, bias, None, None, 0.5)
    low = [x.bfloat16() for x in (query, key, value)]
    out, lse = token_reads.read_everything(*low, bias.float(), None, None, 0.5)
    assert out.dtype == torch.bfloat16
    assert lse.dtype == torch.float32
    assert (out.double() - exact).norm() < 0.02 * exact.norm()


def test_tokens_make_the_backward_keep_no_second_copy_of_the_sites() -> None:
    """Queries, keys, values and the near field are kept: four tensors, and little beside them."""
    space = ndgpa.with_tokens(ndgpa.Image((32, 32), block=4, cell=2), prefix=3, suffix=2)
    query, key, value = (torch.randn(1, 2, 1029, 16, requires_grad=True) for _ in range(3))
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = ndgpa.gpa(query, key, value, space, 4)
    assert out.requires_grad
    assert sum(kept.values()) < 4.7 * query.nbytes

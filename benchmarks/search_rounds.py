"""How long does the search for the k largest scores take, and do means in two parts change it?

    PYTHONPATH=. python benchmarks/search_rounds.py

How long is counted in rounds. Relevance is computed on the CPU, of one head and 400 cells of cases
of `gpu_cases`, for features of photographs and for random ones. Columns: `groups` and `scores` are
mean rounds of the two searches of `selection.triton_top_k`, the first among the largest of every 16
blocks, the second among the scores that are read, from the bound that the first has found;
`from_least` those of the second without it. `ids_two`, `ids_float32` are the shares of selected ids
that differ from float64 where products are made of means in two parts of bfloat16 (of which three
are added up), and in float32.
"""

from dataclasses import replace

import measure
import torch
import torch.nn.functional as F
from gpu_cases import CASES, Case, features
from torch import Tensor

from ndgpa.selection.triton_relevance import GROUP
from ndgpa.structures.means import in_two

NAMES = ("pivot 64", "video 49,152", "video 16x96x96", "ChaL 4")
CELLS = 400


def ordered_bits(x: Tensor) -> Tensor:
    bits = torch.where(x == 0, 0.0, x).view(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()


def search(scores: Tensor, k: int, low: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rounds for each row, and the bound that is found, as the kernel does it."""
    bits = ordered_bits(scores)
    low = bits.amin(dim=1) if low is None else low
    high = bits.amax(dim=1) + 1
    count = (bits >= low[:, None]).sum(dim=1)
    rounds = torch.zeros_like(count)
    while (active := (count != k) & (low + 1 < high)).any():
        middle = (low + high) // 2
        reach = (bits >= middle[:, None]).sum(dim=1)
        up, down = active & (reach >= k), active & (reach < k)
        low, count = torch.where(up, middle, low), torch.where(up, reach, count)
        high = torch.where(down, middle, high)
        rounds += active
    return rounds, low


def row(case: Case, lists: str) -> dict[str, float | str]:
    query, key = means(case, lists)
    scale, k = case.width**-0.5, case.kept
    scores = logits(query, key) * scale
    scores = scores.softmax(dim=-1).sum(dim=1) if scores.shape[1] > 1 else scores[:, 0]
    grouped = F.pad(scores, (0, -scores.shape[1] % GROUP), value=-torch.finfo().max)
    grouped = grouped.unflatten(1, (-1, GROUP))
    found, bound, read = torch.zeros(1), None, scores
    if 2 * k < grouped.shape[1]:
        largest = grouped.amax(dim=2)
        found, bound = search(largest, k)
        ids = largest.topk(k, dim=1).indices[:, :, None].expand(-1, -1, GROUP)
        read = grouped.gather(1, ids).flatten(1)
    exact = selected(logits(query.double(), key.double()) * scale, k)
    return {
        "case": case.name,
        "lists": lists,
        "groups": float(found.float().mean()),
        "scores": float(search(read, k, bound)[0].float().mean()),
        "from_least": float(search(read, k)[0].float().mean()),
        "ids_two": differ(selected(logits_of_two(query, key) * scale, k), exact),
        "ids_float32": differ(selected(logits(query, key) * scale, k), exact),
    }


def means(case: Case, lists: str) -> tuple[Tensor, Tensor]:  # (cells, P, d), (B, d)
    case, cpu = replace(case, batch=1, heads=1), torch.device("cpu")
    space = case.space()
    key = space.downsample(features(case, space, lists, cpu).float())
    query = key
    if lists == "random":
        query = space.downsample(features(case, space, lists, cpu, 1).float())
    cells = torch.randperm(space.num_cells, generator=torch.Generator().manual_seed(0))[:CELLS]
    return query[0, 0, space.cells[cells]], key[0, 0]


def logits(query: Tensor, key: Tensor) -> Tensor:
    return query @ key.T


def logits_of_two(query: Tensor, key: Tensor) -> Tensor:
    (q, q_low), (k, k_low) = (in_two(x).float().unbind(-2) for x in (query, key))
    return q_low @ k.T + q @ k_low.T + q @ k.T


def selected(scores: Tensor, k: int) -> Tensor:
    return scores.double().softmax(dim=-1).sum(dim=1).topk(k, dim=1).indices


def differ(ids: Tensor, exact: Tensor) -> float:
    """The share of ids that the other has not."""
    return 1 - float((ids[:, :, None] == exact[:, None]).any(dim=2).float().mean())


def main() -> None:
    cases = [next(c for c in CASES if c.name == name) for name in NAMES]
    rows = [row(case, lists) for case in cases for lists in case.lists]
    measure.write("search_rounds", __doc__.splitlines()[0], rows, cells=CELLS)
    print((measure.RESULTS / "search_rounds.md").read_text())


if __name__ == "__main__":
    main()

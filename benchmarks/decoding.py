"""What does a decoding step with `Cache` cost as the sequence grows, and dense attention beside it?

    python benchmarks/decoding.py [--quick]

One batch, 8 heads of 64 channels, float32, blocks of 16 sites, cells of one block, 8 kept blocks.
The cache holds n sites; then 48 more come one at a time: three cells. After each, the same query
goes to `scaled_dot_product_attention` over all keys and values, so both are timed in turns on the
same machine in the same state. One thread; on a shared machine look at the ratios.

Columns: `n` sites held; `*_ms` milliseconds a site: `step_ms` the median of append and attend,
`begin_ms` the median of those that begin a cell, which select, `mean_ms` over all 48, `dense_ms`
the median of dense attention; `dense/step` and `dense/mean` how many times faster the cache is;
`least_ms` the time that reading the kept keys and values takes at the machine's own measured rate.
"""

import argparse
import time
from collections.abc import Callable
from statistics import fmean, median
from typing import Any

import torch
import torch.nn.functional as F
from measure import limits, write
from torch import Tensor
from tqdm import tqdm

import ndgpa

HEADS, CHANNELS, BLOCK, KEPT = 8, 64, 16, 8
SIZES = [4096, 16384, 32768]
SITES = 3 * BLOCK


def main(quick: bool) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rates = limits()
    read = 2 * 4 * HEADS * CHANNELS * BLOCK * (KEPT + 1)
    least = rates.least_seconds(read / 2, read)  # a product and a sum for every number
    rows = [row(n, least) for n in tqdm(SIZES[:1] if quick else SIZES, desc="decoding")]
    about = {"copy_bytes_per_s": rates.bytes, "kappa": KEPT, "block": BLOCK, "seed": 0}
    question = __doc__.splitlines()[0] if __doc__ else ""
    if not quick:
        write("decoding", question, rows, **about)
    for line in rows:
        print(line)


def row(n: int, least: float) -> dict[str, Any]:
    cache, steps, dense = held(n), [], []
    keys, values = (torch.randn(1, HEADS, n + SITES, CHANNELS) for _ in range(2))
    for end in range(n + 1, n + SITES + 1):
        query, key, value = features(1)
        steps.append(seconds(lambda x=(query, key, value): step(cache, *x)))
        given = query, keys[:, :, :end], values[:, :, :end]
        dense.append(seconds(lambda x=given: F.scaled_dot_product_attention(*x)))
    middle, mean = median(steps), fmean(steps)
    return {
        "n": n,
        "step_ms": 1e3 * middle,
        "begin_ms": 1e3 * median(steps[::BLOCK]),
        "mean_ms": 1e3 * mean,
        "dense_ms": 1e3 * median(dense),
        "dense/step": median(dense) / middle,
        "dense/mean": median(dense) / mean,
        "least_ms": 1e3 * least,
    }


def held(n: int) -> ndgpa.Cache:
    """A cache of n sites, whose room has grown already.

    The prompt is short, for its own attention is not the question.
    """
    cache = ndgpa.Cache(BLOCK, 1, KEPT)
    query, key, value = features(BLOCK)
    cache.append(key, value)
    cache.attend(query)
    for count in (n - 2 * BLOCK, BLOCK):
        query, key, value = features(count)
        cache.append(key, value)
        cache.attend(query)
    return cache


def step(cache: ndgpa.Cache, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    cache.append(key, value)
    return cache.attend(query)


def features(count: int) -> list[Tensor]:
    return [torch.randn(1, HEADS, count, CHANNELS) for _ in range(3)]


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="smallest size, no result file")
    main(parser.parse_args().quick)

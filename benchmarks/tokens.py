"""What do special tokens beside a space cost, beside no tokens, other ways to say them, and dense?

    python benchmarks/tokens.py [--quick]

Two heads of 64 channels, float32, blocks of 4x4 pixels, cells of 2x2 blocks, kappa 12, one thread.
`none` is the image alone; `tokens` the image `with_tokens` of that many prefix tokens; `forced` the
same said as `Clusters`, whose cells are forced to read a block of the tokens (a token then reads
only the blocks that it selects: another result); `dense` is `scaled_dot_product_attention`.

Columns: medians of processor time in milliseconds, of runs taken in turn, `fb` forward and
backward; `tokens/none` what tokens cost; `dense/tokens` how many times faster than dense; `error`
the largest difference of `tokens` from dense, all blocks kept, on an image of 16x16; `own error`
and `forced own error` those of what the tokens themselves are given, at kappa 12 on this image.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from measure import write
from torch import Tensor
from tqdm import tqdm

import ndgpa

HEADS, CHANNELS, KEPT, ROUNDS = 2, 64, 12, 5
CASES = [(32, 5), (64, 1), (64, 5), (64, 64), (96, 5)]

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def main(quick: bool) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = [row(*case) for case in tqdm(CASES[:1] if quick else CASES, desc="tokens")]
    question = __doc__.splitlines()[0] if __doc__ else ""
    about = {
        "kappa": KEPT,
        "heads": HEADS,
        "channels": CHANNELS,
        "rounds": ROUNDS,
        "seed": 0,
        "loaded": True,
    }
    if not quick:
        write("tokens", question, rows, **about, others_ran=True)
    for line in rows:
        print(line)


def row(side: int, tokens: int) -> dict[str, Any]:
    ways = ways_of(side, tokens)
    forward, both = (measured(ways, backward) for backward in (False, True))
    return {
        "image": f"{side}x{side}",
        "tokens": tokens,
        **{f"{name}_ms": 1e3 * seconds for name, seconds in forward.items()},
        **{f"{name}_fb_ms": 1e3 * seconds for name, seconds in both.items()},
        "tokens/none": forward["tokens"] / forward["none"],
        "fb tokens/none": both["tokens"] / both["none"],
        "dense/tokens": forward["dense"] / forward["tokens"],
        "fb dense/tokens": both["dense"] / both["tokens"],
        "error": error(tokens),
        **errors_of_tokens(ways, tokens),
    }


def ways_of(side: int, tokens: int) -> dict[str, tuple[int, Attend]]:
    """How many sites each way has, and what it calls."""
    image = ndgpa.Image((side, side), 4, 2)
    space = ndgpa.with_tokens(image, tokens)
    forced = ndgpa.Clusters(
        torch.cat([torch.full((tokens,), image.num_blocks), image.block_of_site]),
        torch.cat([image.cell_of_block, torch.tensor([image.num_cells])]),
    )
    rule = ndgpa.TopK(KEPT, force=ndgpa.Fixed((image.num_blocks,)))
    n = image.num_sites
    return {
        "none": (n, lambda *x: ndgpa.gpa(*x, image, KEPT)),
        "tokens": (n + tokens, lambda *x: ndgpa.gpa(*x, space, KEPT)),
        "forced": (n + tokens, lambda *x: ndgpa.gpa(*x, forced, rule)),
        "dense": (n + tokens, F.scaled_dot_product_attention),
    }


@torch.no_grad()
def errors_of_tokens(ways: dict[str, tuple[int, Attend]], tokens: int) -> dict[str, float]:
    inputs = torch.randn(3, 1, HEADS, ways["tokens"][0], CHANNELS).unbind()
    given, forced, dense = (
        ways[x][1](*inputs)[:, :, :tokens] for x in ("tokens", "forced", "dense")
    )
    return {
        "own error": float((given - dense).abs().max()),
        "forced own error": float((forced - dense).abs().max()),
    }


def measured(ways: dict[str, tuple[int, Attend]], backward: bool) -> dict[str, float]:
    """Median seconds of each way, taken in turn, the first round not counted; of dense fewer."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, (sites, attend) in ways.items():
            if name == "dense" and turn > 1:
                continue
            times[name].append(seconds(attend, sites, backward))
    return {name: median(found[1:]) for name, found in times.items()}


def seconds(attend: Attend, sites: int, backward: bool) -> float:
    shape = 1, HEADS, sites, CHANNELS
    query, key, value = (torch.randn(shape, requires_grad=backward) for _ in range(3))
    start = time.process_time()
    out = attend(query, key, value)
    if backward:
        out.sum().backward()
    return time.process_time() - start


def error(tokens: int) -> float:
    space = ndgpa.with_tokens(ndgpa.Image((16, 16), 4, 2), tokens)
    query, key, value = torch.randn(3, 1, HEADS, space.num_sites, CHANNELS)
    dense = F.scaled_dot_product_attention(query, key, value)
    return float((ndgpa.gpa(query, key, value, space, 16) - dense).abs().max())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    main(parser.parse_args().quick)

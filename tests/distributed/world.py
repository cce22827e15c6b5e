"""Several processes on this machine that talk over gloo, and what each of them returned or raised.

One server imports torch once and forks the processes of every world from there.
"""

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from filelock import FileLock

TIMEOUT_S = 60.0


def world(
    ranks: int, job: Callable[..., Any], *args: Any, timeout_s: float = TIMEOUT_S
) -> list[Any]:
    """Run `job(*args)` in every process of a world; return what each returned, or its error's text.

    Args:
        job: At the top of a module, so that it can be found there.
        timeout_s: How long a process waits for another one.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.distributed.world", "ndgpa.distributed"])
    with tempfile.TemporaryDirectory() as folder:
        ends, processes = [], []
        for rank in range(ranks):
            mine, theirs = context.Pipe(duplex=False)
            given = (theirs, ranks, rank, str(Path(folder) / "store"), timeout_s, job, args)
            processes.append(context.Process(target=_one, args=given, daemon=True))
            processes[-1].start()
            theirs.close()
            ends.append(mine)
        found = [_received(end, 3 * timeout_s) for end in ends]
        for process in processes:
            process.join(1)  # it has answered
            if process.is_alive():
                process.kill()
    return found


def world_once(
    factory: pytest.TempPathFactory, name: str, ranks: int, job: Callable[..., Any], *args: Any
) -> list[Any]:
    """As `world`, once for all workers of pytest-xdist, which share a folder."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return world(ranks, job, *args)
    path = factory.getbasetemp().parent / f"{name}.pickle"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            path.write_bytes(pickle.dumps(world(ranks, job, *args)))
        found: list[Any] = pickle.loads(path.read_bytes())
    return found


def _received(end: Any, seconds: float) -> Any:
    if not wait([end], seconds):
        return "Hung"
    try:
        return end.recv()
    except EOFError:
        return "Died"


def _one(
    end: Any,
    ranks: int,
    rank: int,
    store: str,
    timeout_s: float,
    job: Callable[..., Any],
    args: Any,
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, ranks),
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=timeout_s),
    )
    dist.barrier()  # a job that ends its process at once must not do so while others still connect
    try:
        end.send(job(*args))
    except Exception as error:
        end.send(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        return
    dist.destroy_process_group()

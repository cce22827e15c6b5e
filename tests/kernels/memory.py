"""Every address that a kernel reads and writes in Triton's interpreter, by program."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder


@dataclass
class Watch:
    """What went wrong, as (kernel, fault), and which kernels ran."""

    faults: set[tuple[str, str]] = field(default_factory=set)
    kernels: set[str] = field(default_factory=set)


@dataclass
class _Launch:
    """One launch: where its tensors begin and end, who wrote what, who read what."""

    kernel: str
    begins: np.ndarray
    ends: np.ndarray
    watch: Watch
    writer: dict[int, Any] = field(default_factory=dict)
    readers: dict[int, set[Any]] = field(default_factory=lambda: defaultdict(set))

    def fault(self, text: str) -> None:
        self.watch.faults.add((self.kernel, text))

    def access(self, program: Any, pointers: Any, mask: Any, is_store: bool) -> None:
        kept = np.broadcast_to(np.asarray(mask.data), pointers.data.shape).ravel().astype(bool)
        addresses = np.asarray(pointers.data).ravel().astype(np.int64)[kept]
        size = max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
        row = np.searchsorted(self.begins, addresses, side="right") - 1
        if not ((row >= 0) & (addresses + size <= self.ends[np.maximum(row, 0)])).all():
            self.fault("writes beyond its tensors" if is_store else "reads beyond its tensors")
        distinct = np.unique(addresses).tolist()
        if not is_store:
            for address in distinct:
                self.readers[address].add(program)
            return
        if len(distinct) < len(addresses):
            self.fault("writes an address twice at once")
        for address in distinct:
            if self.writer.setdefault(address, program) != program:
                self.fault("two programs write one address")

    def finish(self) -> None:
        for address, program in self.writer.items():
            if self.readers.get(address, {program}) != {program}:
                self.fault("a program reads what another one writes")


@contextmanager
def watched() -> Iterator[Watch]:
    """Watch every launch in the block. Without a mask, the interpreter makes one of ones."""
    watch, running = Watch(), []
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    execute = GridExecutor.__call__

    def note(builder: Any, pointers: Any, mask: Any, is_store: bool) -> None:
        running[-1].access(builder.grid_idx, pointers, mask, is_store)

    def masked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        note(self, pointers, mask, False)
        return load(self, pointers, mask, *rest)

    def masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note(self, pointers, mask, True)
        return store(self, pointers, value, mask, *rest)

    def call(self: Any, *args: Any, **options: Any) -> Any:
        tensors = [x for x in (*args, *options.values()) if hasattr(x, "untyped_storage")]
        spans = sorted({(s.data_ptr(), s.nbytes()) for s in (x.untyped_storage() for x in tensors)})
        begins = np.array([begin for begin, _ in spans], dtype=np.int64)
        ends = begins + np.array([size for _, size in spans], dtype=np.int64)
        running.append(_Launch(self.fn.__name__, begins, ends, watch))
        watch.kernels.add(self.fn.__name__.removesuffix("_kernel"))
        execute(self, *args, **options)
        running.pop().finish()

    with (
        mock.patch.object(InterpreterBuilder, "create_masked_load", masked_load),
        mock.patch.object(InterpreterBuilder, "create_masked_store", masked_store),
        mock.patch.object(GridExecutor, "__call__", call),
    ):
        yield watch

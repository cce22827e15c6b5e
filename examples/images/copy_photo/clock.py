"""How long a call takes."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """Return the result and the seconds that it took."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start

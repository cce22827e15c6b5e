"""What every command of the examples does alike: its errors, its end, its options, its lock.

    if __name__ == "__main__":
        command(lambda: main(tyro.cli(Options)))

A bad input or option, and a file that cannot be written, ends with one sentence on stderr and exit
code 2; Ctrl-C with what was saved and exit code 130.
"""

import math
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from examples.common.files import written
from examples.common.untrusted import BadInput, sentence

BAD_INPUT, STOPPED = 2, 130


class DivergedError(RuntimeError):
    """A loss or a parameter is no longer a number; the last good checkpoint stands."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C, with a text that says what was saved."""


def command(main: Callable[[], object]) -> None:
    """Run a program and exit as this file says.

    ValueError counts as bad input, as the library raises it for arguments of the user's.

    Raises:
        SystemExit: The program ended early.
    """
    token = written.set([])
    try:
        main()
    except (ValueError, OSError, MemoryError, DivergedError, torch.OutOfMemoryError) as error:
        _leave(f"error: {told(error)}", BAD_INPUT, error)
    except KeyboardInterrupt as error:
        _leave(f"stopped: {str(error) or saved_so_far()}", STOPPED, error)
    finally:
        written.reset(token)


def _leave(text: str, code: int, error: BaseException) -> None:
    print(text, file=sys.stderr)
    raise SystemExit(code) from error


def told(error: BaseException) -> str:
    """Put an error into one sentence; of a file that cannot be written, which and why."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "there is not enough memory for this"
    return sentence(error)


def saved_so_far() -> str:
    finished = written.get()
    return f"{', '.join(map(str, finished))} saved" if finished else "nothing was saved"


# Options


def check_count(option: str, value: int, least: int = 1, most: int = 10**9) -> None:
    """Refuse a count outside its bounds."""
    if not least <= value <= most:
        bound = f"at least {least}" if value < least else f"at most {most}"
        raise BadInput(f"{option} must be {bound}, got {value}")


def check_number(
    option: str,
    value: float,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: bool = False,
) -> None:
    """Refuse NaN, infinity and a number outside its bounds; `above`: the least is left out."""
    if not math.isfinite(value):
        raise BadInput(f"{option} must be a finite number, got {value}")
    if value < least or (above and value == least):
        raise BadInput(
            f"{option} must be {'above' if above else 'at least'} {least:g}, got {value}"
        )
    if value > most:
        raise BadInput(f"{option} must be at most {most:g}, got {value}")


def check_seed(seed: int) -> None:
    """Refuse a seed that torch's generators, shifted by the step, cannot take."""
    check_count("--seed", seed, 0, 2**31 - 1)


def check_device(name: str) -> None:
    """Refuse a device that torch does not have on this machine."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadInput(f"--device {name} is no device; expected cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise BadInput(f"--device {name} cannot run this; expected cpu, cuda or cuda:N")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise BadInput(f"--device {name}: torch finds none here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadInput(
            f"--device {name}: torch finds {torch.cuda.device_count()} CUDA devices here; "
            "use --device cpu"
        )


def set_threads(count: int) -> None:
    """Set how many threads torch uses on the CPU; 0 leaves that to torch."""
    check_count("--threads", count, 0, 1024)
    if count:
        torch.set_num_threads(count)


# Processes


def ignore_interrupts() -> None:
    """Leave Ctrl-C to the parent: the initializer of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a training folder for this process alone.

    The system releases the lock when the process dies in whatever way, so none is ever stale.

    Raises:
        BadInput: Another process trains there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise BadInput(
            f"another process is training in {folder}; wait for it or name another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()

"""Words for bad arguments."""

from typing import Any


def _check_parts(given: Any) -> None:
    if len(given) == 0:
        raise ValueError("parts is empty; Hydra needs at least one operator")
    for part in given:
        if not callable(part):
            raise TypeError(f"parts must be operators; got {type(part).__name__}")


def _paired_lists(kernels: Any, dilations: Any) -> tuple[list[Any], list[Any]]:
    """Both lists at the length of the longer; a list of one serves all."""
    _check_length = max(len(kernels), len(dilations))
    for name, given in (("kernels", kernels), ("dilations", dilations)):
        if len(given) not in (1, _check_length):
            raise ValueError(f"{name} has {len(given)} entries; expected 1 or {_check_length}")
    whole = [list(x) * (_check_length if len(x) == 1 else 1) for x in (kernels, dilations)]
    return whole[0], whole[1]

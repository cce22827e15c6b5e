"""Learning rates, as factors of the largest one."""

import math


def warm_up_cosine(
    step: int, total: int, warm_up: int = 1, hold: float = 0.0, least: float = 0.0
) -> float:
    """Rise linearly over `warm_up` steps, stay, then fall along half a cosine.

    Args:
        step: From 0.
        total: Steps of the training.
        hold: The share of them before the fall; 1: there is none.
        least: What the factor falls to.
    """
    late = max(0.0, (step / total - hold) / (1 - hold)) if hold < 1 else 0.0
    cosine = least + (1 - least) * (1 + math.cos(math.pi * late)) / 2
    return min(1, (step + 1) / warm_up) * cosine

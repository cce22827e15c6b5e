"""How long a step of training takes: what runs of equal processor time have to know first."""

import time
from pathlib import Path
from statistics import median

from tqdm import tqdm

from examples.common.files import write_json
from examples.common.untrusted import read_json
from examples.images.pose_morphing.train import Trainer
from examples.images.pose_morphing.train_options import TrainConfig
from examples.people.pictures import Pictures

TURNS = 5
TIMED_STEPS = 3  # a turn and phase


def step_seconds(
    path: Path, configs: dict[str, TrainConfig], pictures: Pictures
) -> dict[str, float]:
    """Measure the processor seconds of a step with each of `configs`; keep them in a file.

    In turns, so that all meet the same machine, and the median of those. Processor time, not the
    clock's: other programs do not count.

    Args:
        path: Keeps what was measured; a name that it has is not measured again.
        configs: By name.
        pictures: Of the training.
    """
    known = read_json(path) if path.is_file() else {}
    missing = {name: config for name, config in configs.items() if name not in known}
    if missing:
        turns = [
            {name: mean_step_s(Trainer(config, pictures)) for name, config in missing.items()}
            for _ in tqdm(range(TURNS), desc="a step")
        ]
        known |= {name: median(turn[name] for turn in turns) for name in missing}
        write_json(path, known)
    return {name: float(seconds) for name, seconds in known.items()}


def mean_step_s(trainer: Trainer) -> float:
    """Measure a step in each phase, and weigh by how long that lasts."""
    config = trainer.config
    ends = (config.coarse_first, config.gan_from, 1.0)
    begins = (0.0, *ends[:-1])
    return sum(
        (end - begin) * median_step_s(trainer, int(config.steps * (begin + end) / 2))
        for begin, end in zip(begins, ends, strict=True)
    )


def median_step_s(trainer: Trainer, step: int) -> float:
    """Measure this step, after one to warm up."""
    times = []
    for _ in range(1 + TIMED_STEPS):
        start = time.process_time()
        trainer.advance(step)
        times.append(time.process_time() - start)
    return median(times[1:])

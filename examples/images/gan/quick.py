"""Training that a CPU finishes: the settings that all comparisons share."""

from pathlib import Path

from examples.images.gan.systems import Regularizers
from examples.images.gan.train import TrainConfig

RATES = {  # of generator and discriminator
    "hit": (1.5e-3, 1e-3),
    "ylg": (4e-4, 8e-4),
    "sagan": (4e-4, 8e-4),
    "stylenat": (1e-3, 1e-3),
    "stylegan2": (6e-3, 4e-3),
}
LAZY_R1 = Regularizers(r1=0.3, r1_every=16)  # in place of each system's own
GPA = "GPA(4, far=block)"


def quick(
    out: Path,
    system: str,
    data: str,
    steps: int,
    *,
    attention: str | None = None,
    preset: str = "tiny32",
    seed: int = 0,
) -> TrainConfig:
    """Return options for a small network on one core of a CPU.

    Learning rates are higher than where the systems come from, since networks and batches are
    small, and do not depend on `steps`: a run can be extended. All systems have the same penalty.
    """
    return TrainConfig(
        out,
        system,
        preset,
        data,
        attention,
        steps,
        batch=16,
        rates=RATES[system],
        added=LAZY_R1,
        ema_share=0.1,
        device="cpu",
        threads=1,
        seed=seed,
    )

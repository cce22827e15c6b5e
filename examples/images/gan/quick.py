"""Training that a CPU finishes: the settings that all comparisons share."""

from pathlib import Path

from examples.images.gan.systems import Regularizers
from examples.images.gan.train import TrainConfig

FASTER = {"hit": 5.0, "ylg": 5.0, "sagan": 5.0, "stylenat": 10.0, "stylegan2": 1.0}
LAZY_R1 = Regularizers(r1=1.0, r1_every=16)  # in place of each system's own
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

    Learning rates are those of the system times `FASTER`, since networks are small and runs short.
    Of what systems add to their losses, R1 stays, in every 16th step; hinge losses have none.
    """
    hinge = system in ("ylg", "sagan")
    return TrainConfig(
        out,
        system,
        preset,
        data,
        attention,
        steps,
        batch=8,
        faster=FASTER[system],
        added=Regularizers() if hinge else LAZY_R1,
        ema=0.995,
        device="cpu",
        threads=1,
        seed=seed,
    )

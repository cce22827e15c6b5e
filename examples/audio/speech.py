"""Make the spoken recordings of this folder with espeak-ng (Debian's package of that name).

    python -m examples.audio.speech

They are kept in `recordings/`, so only who wants others runs this. `training-*.ogg` are trained on;
`refrain.ogg`, of another voice and text, is held out.
"""

import io
import shutil
import subprocess
from pathlib import Path

import soundfile
import torch

from examples.audio.files import at_rate, write_recording
from examples.audio.recordings import OWN
from examples.audio.spectrum import RATE
from examples.common.commands import command
from examples.common.untrusted import BadInput

TRAINING = {
    "training-1": (
        "en-gb",
        "The tide came in before the boats were ready. A red kite turned above the harbour wall. "
        "Nobody had counted the ropes, and nobody had counted the lamps. Seven lamps, nine ropes, "
        "and a bell without a clapper. We carried the bell up the hill, past the mill and the "
        "school, and hung it from the oldest oak. When the wind blew, it made no sound at all.",
    ),
    "training-2": (
        "en-us+f3",
        "Attention please. The train from platform four will leave from platform eleven. "
        "Passengers for the coast change at the next station. Mind the doors, mind the step, and "
        "keep your tickets. One, two, three, four, five, six, seven, eight, nine, ten. Monday, "
        "Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday. Thank you for your patience.",
    ),
}
REFRAIN = (
    "en-gb-scotland+m4",
    "The river runs, the river bends, and carries all it can. "
    "A miller sold his horse to friends, and home on foot he ran. "
    "The river runs, the river bends, and carries all it can. "
    "His sister kept a dozen hens, a kettle and a pan. "
    "The river runs, the river bends, and carries all it can. "
    "And where it goes, and how it ends, was never in the plan. "
    "The river runs, the river bends, and carries all it can.",
)


def main() -> None:
    if shutil.which("espeak-ng") is None:
        raise BadInput("espeak-ng is not installed")
    OWN.mkdir(exist_ok=True)
    for name, (voice, text) in {**TRAINING, "refrain": REFRAIN}.items():
        say(OWN / f"{name}.ogg", voice, text)


def say(path: Path, voice: str, text: str) -> None:
    command = ["espeak-ng", "-v", voice, "-s", "150", "--stdout", text]
    spoken = subprocess.run(command, capture_output=True, check=True).stdout
    wave, rate = soundfile.read(io.BytesIO(spoken), dtype="float32", always_2d=True)
    write_recording(path, at_rate(torch.from_numpy(wave.T), rate, RATE), RATE)


if __name__ == "__main__":
    command(main)

"""A small network that knows figures: it finds key points and tells people apart.

Its features compare pictures where no network trained on photographs is at hand. Two come with the
example, for figures of 64x32: "loss", for a perceptual loss, and "judge", for measures. They were
trained from different seeds, so that no network is judged by the features that it learnt from.

    python -m examples.people.recogniser.train --data FOLDER --out FOLDER
"""

from examples.people.recogniser.network import Recogniser, load, shipped

__all__ = ["Recogniser", "load", "shipped"]

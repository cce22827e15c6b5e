"""Two UNets and the copy attention between them; the discriminator; presets."""

from examples.images.pose_morphing.model.config import PRESETS, ModelConfig
from examples.images.pose_morphing.model.discriminator import Discriminator
from examples.images.pose_morphing.model.generator import Generator, Level, Morph

__all__ = ["PRESETS", "Discriminator", "Generator", "Level", "ModelConfig", "Morph"]

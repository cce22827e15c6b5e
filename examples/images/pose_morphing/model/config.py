"""What a generator is made of, and the presets: the paper's two and smaller ones."""

from dataclasses import dataclass

from examples.images.pose_morphing.model.attention_names import parse


@dataclass(frozen=True)
class ModelConfig:
    """Options of the generator; tuples go from the finest level to the coarsest.

    The defaults are the paper's. Where it is silent: noise is on, with strengths that begin at 0;
    the decoder concatenates the encoder's features; the attention follows the convolution of its
    block and comes before its RGB; the style is the mean of the UNet's own last encoder layer.
    """

    size: tuple[int, int]  # pixels, height and width
    channels: tuple[int, ...]  # of encoders and decoders at each level
    attention: str = "GPA1024_12_64"  # as `attention_names.parse` reads it
    affinity: str = "dot"
    query_width: int | None = None  # features of queries and keys; None: as many as the level has
    fusion: str = "concat"  # or "residual"
    fusion_kernel: int = 1  # side of the convolution that fuses by "concat"
    style: bool = True  # modulate the decoders by the mean of the last encoder layer
    noise: bool = True
    smooth: bool = True  # resample with the filter of StyleGAN2, else bilinearly
    weight_lr: float = 1.0  # learning-rate multiplier of convolutions, see `layers.Conv`
    pyramid: bool = False  # queries and keys add to those of the coarser level, enlarged
    coordinates: bool = False  # queries and keys see where they are
    temperature: bool = False  # learnt, one a level
    copy_rgb: bool = False  # source pixels among the values, blended into the output by a mask

    def __post_init__(self) -> None:
        steps = 2 ** (len(self.channels) - 1)
        if any(x % steps for x in self.size):
            raise ValueError(
                f"{len(self.channels)} levels need a size that {steps} divides, got {self.size}"
            )
        if self.fusion not in ("concat", "residual"):
            raise ValueError(f"fusion must be 'concat' or 'residual', got {self.fusion!r}")
        if self.pyramid and self.query_width is None:
            raise ValueError("a pyramid of queries needs one query_width for all levels")
        name = parse(self.attention)
        for size in self.sizes:
            name.structure(size)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Pixels of each level."""
        return [(self.size[0] >> i, self.size[1] >> i) for i in range(len(self.channels))]


def learnable(size: tuple[int, int], channels: tuple[int, ...], attention: str) -> ModelConfig:
    """The variant that learns to copy within minutes; each option is explained in the README."""
    return ModelConfig(
        size,
        channels,
        attention,
        affinity="euclidean",
        query_width=16,
        fusion_kernel=3,
        style=False,
        noise=False,
        smooth=False,
        weight_lr=12.0,
        pyramid=True,
        coordinates=True,
        temperature=True,
        copy_rgb=True,
    )


PRESETS = {
    # Tables 2 and 3 of the paper
    "df256": ModelConfig((256, 256), (160, 320, 640, 640, 640, 640)),
    # Table 4
    "chal512": ModelConfig((512, 256), (128, 256, 512, 768, 768, 768), "GPA2048_4_32"),
    "tiny64": learnable((64, 32), (16, 32, 64, 96), "GPA128_4_8"),
    "small128": learnable((128, 64), (16, 32, 64, 96, 128), "GPA512_4_16"),
    # for a GPU; small enough to ship in half precision
    "figures256": learnable((256, 128), (32, 64, 96, 128, 160, 160), "GPA2048_4_32"),
}

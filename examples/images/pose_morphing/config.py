"""Options of the generator, the presets, and the paper's names of attentions."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

from examples.images.pose_morphing.euclidean import EuclideanByDot
from ndgpa import GPA, Full, Image, PerturbedTopK, Refine, Rule, SoftTopK, StraightThrough, TopK
from ndgpa.attention.far_field import FAR, Far
from ndgpa.operators import NoAttention, Nystrom, Operator, Performer

COUNT = r"([1-9]\d*)"
GPA_NAME, LOW_RANK_NAME = rf"(GPA){COUNT}_{COUNT}_{COUNT}", rf"(NYF|PER){COUNT}_{COUNT}"
PLAIN = "FULL|SKIP|PARTS|FLOW|BFT"
PATTERN = re.compile(rf"{GPA_NAME}|{LOW_RANK_NAME}|(FULL|NO|XING)_(\d+)|({PLAIN})")
QUICK = 12.0  # learning-rate multiplier of convolutions: see `layers.Conv`
CANDIDATES = 4  # times kappa, for a second look
SLOTS = 2  # times kappa, for what may have a weight below 1
RULES: dict[str, Callable[[int], Rule]] = {
    "logit": lambda kappa: TopK(kappa, relevance="logit"),
    "through": lambda kappa: StraightThrough(TopK(kappa)),
    "soft": lambda kappa: SoftTopK(kappa, at_most=SLOTS * kappa),
    "perturbed": lambda kappa: PerturbedTopK(kappa, at_most=SLOTS * kappa),
    "refine": lambda kappa: Refine(TopK(CANDIDATES * kappa), keep=kappa),
}


@dataclass(frozen=True)
class AttentionName:
    """What a name says.

    * `GPA<m>_<kappa>_<s>`: m cells, kappa key blocks each, Phase 1 where the short side is s;
    * `NYF<r>_<s>`, `PER<r>_<s>`: Nystromformer with r landmarks, Performer with r features;
    * `NO_<s>`: nothing; `FULL_<s>`: full attention, there in the wiring of the others;
    * `FULL`: full attention at every size;
    * `SKIP`, `PARTS`, `FLOW`, `BFT`, `XING_<s>`: what stands in `rivals/` instead of an attention.

    After a GPA may follow `+site` or `+block`, the far field of that name, and one of the rules
    that `RULES` names: `GPA128_4_8+site+soft`.

    Full attention is used while the short side of a level is at most s, the named one above it.
    Source: Jetchev et al. 2021, section 3.1, with s counted along the short side.
    """

    kind: str
    rank: int = 0
    cells: int = 0
    kappa: int = 0
    full_until: int = 0
    far: Far | None = None
    rule_name: str = ""  # of RULES; "" for the paper's hard choice

    def is_full(self, size: tuple[int, int]) -> bool:
        return (self.kind == "FULL" and not self.full_until) or min(size) <= self.full_until

    def factor(self, size: tuple[int, int]) -> int:
        """Pixels along each side of a block, the paper's d; 1 where nothing is downsampled."""
        return min(size) // self.full_until if self.kind == "GPA" and not self.is_full(size) else 1

    @property
    def rule(self) -> Rule | int:
        return RULES[self.rule_name](self.kappa) if self.rule_name else self.kappa

    def structure(self, size: tuple[int, int]) -> Image:
        """Build the space of a level of `size` pixels.

        Raises:
            ValueError: The level does not divide into blocks and square cells as the name says.
        """
        factor = self.factor(size)
        if factor == 1:
            return Image(size, block=1)
        blocks = (size[0] // factor) * (size[1] // factor)
        side = round((blocks / self.cells) ** 0.5)
        fits = all(x % (factor * max(side, 1)) == 0 for x in size)
        if not fits or side**2 * self.cells != blocks:
            raise ValueError(
                f"{self.cells} square cells do not tile a level of {size[0]}x{size[1]} pixels "
                f"whose Phase 1 has a short side of {self.full_until}"
            )
        return Image(size, block=factor, cell=side)

    def operator(self, size: tuple[int, int], affinity: str, width: int) -> Operator:
        """Build the attention of a level, for queries of `width` features, temperature included."""
        if self.is_full(size):
            return Full(scale=1.0, affinity=affinity)
        if self.kind == "GPA":
            return GPA(self.rule, scale=1.0, affinity=affinity, far=self.far)
        if self.kind == "NO":
            return NoAttention()
        euclidean = affinity == "euclidean"
        operators: dict[str, Callable[[], Operator]] = {
            "NYF": lambda: Nystrom(self.rank, scale=1.0),
            "PER": lambda: Performer(width + euclidean, self.rank, scale=1.0),
            "FULL": lambda: Full(scale=1.0),
        }
        operator = operators[self.kind]()
        return EuclideanByDot(operator) if euclidean else operator


def parse(name: str) -> AttentionName:
    """Read a name.

    Raises:
        ValueError: It is none of those that `AttentionName` lists.
    """
    head, *extras = name.split("+")
    found = PATTERN.fullmatch(head)
    if found is None:
        raise ValueError(
            f"unknown attention {name!r}; expected GPA<m>_<kappa>_<s>, NYF<r>_<s>, PER<r>_<s>, "
            "NO_<s>, FULL_<s>, FULL or one of rivals/, for example GPA1024_12_64"
        )
    gpa, cells, kappa, s, low_rank, rank, low_rank_s, until, until_s, plain = found.groups()
    far, rules = [x for x in extras if x in FAR], [x for x in extras if x in RULES]
    if extras != far + rules or len(far) > 1 or len(rules) > 1 or (extras and not gpa):
        raise ValueError(
            f"unknown attention {name!r}; after a GPA may follow one of "
            f"{', '.join(f'+{x}' for x in FAR)}, then one of {', '.join(f'+{x}' for x in RULES)}"
        )
    if gpa:
        return AttentionName(
            "GPA",
            cells=int(cells),
            kappa=int(kappa),
            full_until=int(s),
            far=cast("Far", far[0]) if far else None,
            rule_name=rules[0] if rules else "",
        )
    if low_rank:
        return AttentionName(low_rank, rank=int(rank), full_until=int(low_rank_s))
    return AttentionName(plain) if plain else AttentionName(until, full_until=int(until_s))


@dataclass(frozen=True)
class ModelConfig:
    """Options of the generator; tuples go from the finest level to the coarsest.

    The defaults are the paper's. Where it is silent: noise is on, with strengths that begin at 0;
    the decoder concatenates the encoder's features between its two convolutions; the attention
    follows the block's convolutions and comes before its RGB; the style is the mean of the UNet's
    own last encoder layer.
    """

    size: tuple[int, int]  # pixels, height and width
    channels: tuple[int, ...]  # of encoders and decoders at each level
    attention: str = "GPA1024_12_64"  # as `parse` reads it
    affinity: str = "dot"
    query_width: int | None = None  # features of queries and keys; None: as many as the level has
    heads: int = 1
    fusion: str = "concat"  # or "residual"
    fusion_kernel: int = 1  # side of the convolution that fuses by "concat"
    style: bool = True  # modulate the decoders by the mean of the last encoder layer
    noise: bool = True
    stylegan2: bool = True  # its blocks and resampling; else lighter blocks, bilinear
    weight_lr: float = 1.0  # learning-rate multiplier of convolutions, see `layers.Conv`
    pyramid: bool = False  # queries and keys add to those of the coarser level, enlarged
    coordinates: bool = False  # queries and keys see where they are
    body: int = 0  # short side of the level that says where on the body a pixel is: surface.py
    body_length: float = 3.5  # of what is told, in spreads of surface points
    body_seen: float = 0.6  # factor of what is seen where a person is and the surface is told
    temperature: bool = False  # learnt, one a level
    sharper: float = 1.0  # times, of logits of attentions that select, on top of the temperature
    copy_rgb: bool = False  # source pixels among the values, blended into the output by a mask
    stems: int = 1  # levels that see the picture themselves, from the finest: growth, see growth.py

    def __post_init__(self) -> None:
        steps = 2 ** (len(self.channels) - 1)
        if any(x % steps for x in self.size):
            raise ValueError(
                f"{len(self.channels)} levels need a size that {steps} divides, got {self.size}"
            )
        if not 1 <= self.stems <= len(self.channels):
            raise ValueError(f"{len(self.channels)} levels cannot have {self.stems} stems")
        if not self.sharper > 0 or (self.sharper != 1 and not self.temperature):
            raise ValueError(f"sharper {self.sharper} must be above 0, and 1 without temperature")
        if self.fusion not in ("concat", "residual"):
            raise ValueError(f"fusion must be 'concat' or 'residual', got {self.fusion!r}")
        if self.pyramid and self.query_width is None:
            raise ValueError("a pyramid of queries needs one query_width for all levels")
        if self.body and (self.heads > 1 or not self.pyramid):
            raise ValueError("body needs a pyramid of queries, and one head")
        if any(x % self.heads for x in (*self.channels, self.query_width or 0)):
            raise ValueError(
                f"{self.heads} heads must divide the channels {self.channels} and the query_width "
                f"{self.query_width}"
            )
        name = parse(self.attention)
        if self.attention != "FULL" and name.is_full(self.size):
            raise ValueError(
                f"{self.attention} is full attention at every level of {self.size[0]}x"
                f"{self.size[1]} pixels: {name.full_until}, where its name ends, must be below "
                f"{min(self.size)}; for full attention say FULL"
            )
        for size in self.sizes:
            name.structure(size)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Pixels of each level."""
        return [(self.size[0] >> i, self.size[1] >> i) for i in range(len(self.channels))]


def learnable(size: tuple[int, int], channels: tuple[int, ...], attention: str) -> ModelConfig:
    """Build the variant that learns to copy within minutes; the README explains each option."""
    return ModelConfig(
        size,
        channels,
        attention,
        affinity="euclidean",
        query_width=16,
        fusion_kernel=3,
        style=False,
        noise=False,
        stylegan2=False,
        weight_lr=QUICK,
        pyramid=True,
        coordinates=True,
        temperature=True,
        copy_rgb=True,
    )


def preset(name: str) -> ModelConfig:
    """Look a preset up.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


SMALL128 = learnable((128, 64), (16, 32, 64, 96, 128), "GPA512_4_16")
PRESETS = {
    # Tables 2 and 3 of the paper
    "df256": ModelConfig((256, 256), (160, 320, 640, 640, 640, 640)),
    # Table 4
    "chal512": ModelConfig((512, 256), (128, 256, 512, 768, 768, 768), "GPA2048_4_32"),
    # the same in small, for thousands of steps on a CPU
    "paper64": ModelConfig((64, 32), (16, 32, 64, 64), "GPA128_4_8", weight_lr=QUICK),
    "tiny64": learnable((64, 32), (16, 32, 64, 96), "GPA128_4_8"),
    "small128": SMALL128,
    # `small128` that is told where on the body a pixel is: surface.py
    "body128": replace(SMALL128, body=64),
    # for a GPU; small enough to ship in half precision
    "figures256": learnable((256, 128), (32, 64, 96, 128, 160, 160), "GPA2048_4_32"),
    # `small128` with a finer level; may grow from 64x32 pixels
    "grow256": replace(
        learnable((256, 128), (16, 16, 32, 64, 96, 128), "GPA512_4_16"),
        stems=3,
        body=64,
        body_length=4.2,
        body_seen=0.4,
    ),
}

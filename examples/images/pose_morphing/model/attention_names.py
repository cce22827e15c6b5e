"""The paper's names of attentions, such as GPA1024_12_64, and what they mean at each size."""

import re
from dataclasses import dataclass

from ndgpa import GPA, Full, Image, Nothing, Nystrom, Performer
from ndgpa.operators import Operator

KINDS = ("GPA", "NYF", "PER", "FULL", "NO")
COUNT = r"([1-9]\d*)"
PATTERN = re.compile(rf"(GPA){COUNT}_{COUNT}_{COUNT}|(NYF|PER){COUNT}_{COUNT}|(FULL)|(NO)_(\d+)")


@dataclass(frozen=True)
class AttentionName:
    """What a name says.

    * `GPA<m>_<kappa>_<s>`: m cells, kappa key blocks each, Phase 1 where the short side is s;
    * `NYF<r>_<s>`, `PER<r>_<s>`: Nystromformer with r landmarks, Performer with r features;
    * `NO_<s>`: nothing; `FULL`: full attention at every size.

    Full attention is used while the short side of a level is at most s, the named one above it.
    Source: Jetchev et al. 2021, section 3.1, with s counted along the short side.
    """

    kind: str
    rank: int = 0
    cells: int = 0
    kappa: int = 0
    full_until: int = 0

    def is_full(self, size: tuple[int, int]) -> bool:
        return self.kind == "FULL" or min(size) <= self.full_until

    def factor(self, size: tuple[int, int]) -> int:
        """Pixels along each side of a block, the paper's d; 1 where nothing is downsampled."""
        return min(size) // self.full_until if self.kind == "GPA" and not self.is_full(size) else 1

    def structure(self, size: tuple[int, int]) -> Image:
        """The space of a level of `size` pixels.

        Raises:
            ValueError: The level does not divide into blocks and square cells as the name says.
        """
        factor = self.factor(size)
        if factor == 1:
            return Image(size, downsample=1)
        blocks = (size[0] // factor) * (size[1] // factor)
        side = round((blocks / self.cells) ** 0.5)
        fits = all(x % (factor * max(side, 1)) == 0 for x in size)
        if not fits or side**2 * self.cells != blocks:
            raise ValueError(
                f"{self.cells} square cells do not tile a level of {size[0]}x{size[1]} pixels "
                f"whose Phase 1 has a short side of {self.full_until}"
            )
        return Image(size, downsample=factor, cell=side)

    def operator(self, size: tuple[int, int], affinity: str, width: int) -> Operator:
        """The attention of a level, for queries of `width` features that carry their temperature.

        The low-rank ones know dot products only, whatever the affinity of the others.
        """
        if self.is_full(size):
            return Full(scale=1.0, affinity=affinity)
        match self.kind:
            case "GPA":
                return GPA(self.kappa, scale=1.0, affinity=affinity)
            case "NYF":
                return Nystrom(self.rank, scale=1.0)
            case "PER":
                return Performer(width, self.rank, scale=1.0)
        return Nothing()


def parse(name: str) -> AttentionName:
    """Read a name.

    Raises:
        ValueError: It is none of those that `AttentionName` lists.
    """
    found = PATTERN.fullmatch(name)
    if found is None:
        raise ValueError(
            f"unknown attention {name!r}; expected GPA<m>_<kappa>_<s>, NYF<r>_<s>, PER<r>_<s>, "
            "NO_<s> or FULL, for example GPA1024_12_64"
        )
    gpa, cells, kappa, s, low_rank, rank, low_rank_s, full, _, no_s = found.groups()
    if gpa:
        return AttentionName("GPA", cells=int(cells), kappa=int(kappa), full_until=int(s))
    if low_rank:
        return AttentionName(low_rank, rank=int(rank), full_until=int(low_rank_s))
    return AttentionName("FULL") if full else AttentionName("NO", full_until=int(no_s))

"""The generator as two graphs for onnxruntime: one for each source, one for each redraw."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from examples.common.files import replacing
from examples.images.pose_morphing.data import SIGMA
from examples.images.pose_morphing.model import Generator, selecting
from examples.people.keypoints import heat_maps
from ndgpa import Problem, Rule, Selection, TopK, select
from ndgpa.functional import as_rule
from ndgpa.selection.relevance import Relevance
from ndgpa.selection.select_blocks import most_relevant

MOST = 16  # key blocks that the slider goes to


@dataclass(frozen=True)
class UpTo(Rule):
    """As `TopK`, with a k that is a tensor: an input of the graph, of at most `most`."""

    most: int
    k: Int[Tensor, " 1"]
    relevance: Relevance

    def select(self, problem: Problem) -> Selection:
        counts = self.k.expand(problem.structure.num_cells)
        blocks = most_relevant(problem, self.most, self.relevance, counts=counts)
        k = self.k.item()
        torch._check(k >= 1)
        torch._check(k <= self.most)
        return Selection(blocks[..., :k])  # whose empty slots are last


class Read(nn.Module):
    """What a source is turned into once: see `Generator.read`."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(
        self, source: Float[Tensor, "1 3 h w"], source_points: Float[Tensor, "1 18 3"]
    ) -> tuple[Float[Tensor, "1 c k l"], ...]:
        """Read a picture of -1 to 1 with key points in pixels, -1, -1 and 0 for a missing one."""
        return tuple(self.generator.read(source, maps_of(self.generator, source_points)))


class Redraw(nn.Module):
    """The morph from key points, with kappa as an input, and what its lines are drawn from.

    Args:
        generator: With GPA of the rule `TopK` at its finest level, one head.
        most: The largest kappa.

    Raises:
        ValueError: The generator has another attention there.
    """

    def __init__(self, generator: Generator, most: int = MOST) -> None:
        super().__init__()
        if generator.attentions[0] not in selecting(generator):
            raise ValueError(f"{generator.config.attention} has no key blocks to count")
        rule = as_rule(generator.attentions[0].operator.rule)
        if not isinstance(rule, (TopK, UpTo)):
            raise ValueError(f"{generator.config.attention} counts key blocks by another rule")
        self.generator, self.most, self.relevance = generator, most, rule.relevance

    def forward(
        self,
        source: Float[Tensor, "1 3 h w"],
        source_points: Float[Tensor, "1 18 3"],
        target_points: Float[Tensor, "1 18 3"],
        kappa: Int[Tensor, " 1"],
        *features: Float[Tensor, "1 c k l"],
    ) -> tuple[
        Float[Tensor, "1 3 h w"],
        Float[Tensor, "1 n d"],
        Float[Tensor, "1 n d"],
        Int[Tensor, "1 C K"],
    ]:
        """Render the person of `source` in another pose.

        Args:
            source, source_points, target_points: As for `Read`.
            kappa: Key blocks that each cell reads.
            features: From `Read`.

        Returns:
            The picture; queries and keys of the finest attention, whose logits are -|q-k|^2; and
            the key blocks that each of its cells reads, -1 for none.
        """
        rule = UpTo(self.most, kappa, self.relevance)
        for attention in selecting(self.generator):
            attention.operator = replace(attention.operator, rule=rule)
        maps = (maps_of(self.generator, points) for points in (source_points, target_points))
        morph = self.generator(source, *maps, features=features)
        finest = morph.levels[0]
        selection = select(
            finest.query, finest.key, finest.structure, rule, scale=1.0, affinity="euclidean"
        )
        return morph.image, finest.query[:, 0], finest.key[:, 0], selection.blocks[:, 0]


def maps_of(generator: Generator, points: Float[Tensor, "1 18 3"]) -> Float[Tensor, "1 18 h w"]:
    size = generator.config.size
    return heat_maps(points, size, SIGMA * size[0])


def export(generator: Generator, folder: Path) -> None:
    """Write read.onnx and redraw.onnx."""
    h, w = generator.config.size
    source, points, kappa = torch.zeros(1, 3, h, w), torch.ones(1, 18, 3), torch.tensor([4])
    features = tuple(x.detach() for x in Read(generator)(source, points))
    names = [f"features_{i}" for i in range(len(features))]
    write(
        Read(generator),
        (source, points),
        ["source", "source_points"],
        names,
        folder / "read.onnx",
    )
    write(
        Redraw(generator),
        (source, points, points.clone(), kappa, *features),
        ["source", "source_points", "target_points", "kappa", *names],
        ["image", "query", "key", "blocks"],
        folder / "redraw.onnx",
    )


def write(
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    path: Path,
) -> None:
    program = torch.onnx.export(
        module.eval(),
        example,
        dynamo=True,
        input_names=inputs,
        output_names=outputs,
        verbose=False,
    )
    assert program is not None
    with replacing(path) as part:
        program.save(part, external_data=False)

"""Build the page on which one drags the pose: a folder that any file server can serve.

    make page
    python -m examples.images.pose_morphing.page.build --runtime FOLDER/onnxruntime-web/dist

Exports a trained generator to ONNX, draws people whom it never saw, and puts both beside the page
and onnxruntime-web. Then `python -m http.server -d build/page`, and open what it says.
"""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import tyro
from jaxtyping import Float

from examples.common.commands import check_count, command
from examples.common.files import check_folder, write_text
from examples.images.pose_morphing.demo import SHIPPED, STRANGERS
from examples.images.pose_morphing.model import Generator
from examples.images.pose_morphing.page.graph import MOST, export
from examples.images.pose_morphing.trained import load_trained
from examples.people import open_pictures
from examples.people.figures.cache import Options as FigureOptions, build as draw
from examples.people.keypoints import LIMBS
from ndgpa import GPA, TopK

HERE = Path(__file__).parent
WRITTEN = ("index.html", "style.css", *(f"{x}.js" for x in ("app", "lines", "morpher")))
WRITTEN += tuple(f"{x}.js" for x in ("pictures", "skeleton", "worker"))
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
SHOWN_PX = 512  # height of a canvas


@dataclass(frozen=True)
class Options:
    """What the page shows."""

    runtime: Path  # folder `dist` of the npm package onnxruntime-web
    model: Path = SHIPPED / "gpa128"  # a training run, or one checkpoint's JSON
    out: Path = Path("build/page")
    people: int = 8


def main(options: Options) -> None:
    check_count("--people", options.people, most=28)
    check_folder(options.out)
    check_runtime(options.runtime)
    generator = load_trained(options.model).generator
    kappa = kappa_of(generator)
    for name in ("model", "people", "runtime"):
        (options.out / name).mkdir(parents=True, exist_ok=True)
    for name in WRITTEN:
        shutil.copy(HERE / name, options.out / name)
    for name in RUNTIME:
        shutil.copy(options.runtime / name, options.out / "runtime" / name)
    export(generator, options.out / "model")
    standing = draw_people(options.out / "people", generator.config.size, options.people)
    said = describe(generator, kappa) | {"standing": standing}
    write_text(options.out / "model" / "model.json", json.dumps(said) + "\n")
    size = sum(x.stat().st_size for x in options.out.rglob("*") if x.is_file())
    print(f"{size / 1e6:.1f} MB; look at it with: python -m http.server -d {options.out}")


def check_runtime(folder: Path) -> None:
    """Look for the files of onnxruntime-web before anything is made.

    Raises:
        ValueError: One is missing.
    """
    for name in RUNTIME:
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} has no {name}; --runtime is the folder dist of the npm package "
                "onnxruntime-web"
            )


def kappa_of(generator: Generator) -> int:
    """How many key blocks the finest level reads.

    Raises:
        ValueError: It has no GPA with the paper's rule.
    """
    operator = generator.attentions[0].operator
    rule = operator.rule if isinstance(operator, GPA) else None
    kappa = rule.k if isinstance(rule, TopK) else rule
    if not isinstance(kappa, int) or generator.config.heads != 1:
        raise ValueError(
            f"the page draws GPA<m>_<kappa>_<s> of one head, not {generator.config.attention}"
        )
    return kappa


def describe(generator: Generator, kappa: int) -> dict[str, object]:
    """What the page has to know about the graphs."""
    structure, size = generator.attentions[0].structure, generator.config.size
    return {
        "size": size,
        "scale": SHOWN_PX // size[0],
        "kappa": kappa,
        "most": max(MOST, kappa),
        "block": structure.block_shape,
        "cell": structure.cell_shape,
        "limbs": LIMBS,
    }


def draw_people(folder: Path, size: tuple[int, int], count: int) -> list[list[float]]:
    """Draw strangers into a folder and list them; return the joints of the one most upright."""
    listed = []
    with tempfile.TemporaryDirectory() as place:
        draw(Path(place), FigureOptions(size, 30, 2, STRANGERS, truth=False), workers=0)
        figures = open_pictures(Path(place), "train", size)
        for number, row in enumerate(frontal(figures.points)[:count]):
            PIL.Image.fromarray(figures.image(row)).save(folder / f"{number}.png")
            joints = figures.points[row].astype(float).round(2).tolist()
            name = f"figure {number + 1}"
            listed.append({"name": name, "picture": f"{number}.png", "joints": joints})
    write_text(folder / "people.json", json.dumps(listed) + "\n")
    return max((person["joints"] for person in listed), key=joints_seen)


def frontal(points: Float[np.ndarray, "n 18 3"]) -> list[int]:
    """Of each person, two rows of `points`, the one with more joints; the most joints first."""
    better = [
        max((row, row + 1), key=lambda i: points[i, :, 2].sum()) for row in range(0, len(points), 2)
    ]
    return sorted(better, key=lambda row: -points[row, :, 2].sum())


def joints_seen(joints: list[list[float]]) -> float:
    return sum(joint[2] for joint in joints)


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))

"""Which models with GPA compile as one graph, and does a new size cost one more?

    PYTHONPATH=. python benchmarks/full_graph.py [--only NAME ...]

Tiny models of every kind that `ndgpa.integrations` knows, as its tests make them, with random
weights; `torch.compile(fullgraph=True)`, which raises where a graph would break. "eager" runs what
was captured, so this counts what dynamo does, not what inductor makes of it. The slow tests
`tests/integrations -k graph` hold each of them to it.

Columns: `sizes` of the input that were tried, one after the other and then the first again;
`graphs` after each; `largest error` of the compiled model; `seconds` of the processor for the first
call.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from measure import write
from torch import Tensor, nn
from tqdm import tqdm

from ndgpa.integrations import diffusers, transformers
from tests.integrations.diffusers.models import KINDS as DIFFUSERS
from tests.integrations.transformers import models

TEXT = ("Llama", "Qwen2", "Qwen3", "Mistral")
Run = Callable[[nn.Module, dict[str, Any]], Tensor]
Case = tuple[str, str, nn.Module, list[dict[str, Any]], list[str], Run]


def text(count: int) -> dict[str, Tensor]:
    mask = torch.ones(2, count, dtype=torch.int64)
    mask[0, -3:] = 0
    return {**models.tokens(count), "attention_mask": mask, "use_cache": False}  # type: ignore[dict-item]


def whisper(tokens: int) -> dict[str, Tensor]:
    ids = torch.randint(3, 48, (2, tokens))
    return {"input_features": torch.randn(2, 8, 80), "decoder_input_ids": ids}


def sizes_of(name: str) -> dict[str, dict[str, Any]]:
    """Inputs by what is said of their size; a model of one size has one."""
    if name in TEXT:
        return {f"{n} tokens": text(n) for n in (27, 20)}
    if name in ("wav2vec2", "HuBERT"):
        return {f"{n} samples": models.sound(n) for n in (400, 250)}
    if name.startswith("DINO"):
        return {f"{h}x{w}": models.pictures(h, w) for h, w in ((32, 32), (16, 64))}
    if name == "Whisper":
        return {f"40 frames, {n} tokens": whisper(n) for n in (7, 9)}
    return {"the one it has": models.KINDS[name]()[1]}


def of_transformers() -> Iterator[Case]:
    for name in models.KINDS:
        inputs = sizes_of(name)
        model, _ = models.KINDS[name]()
        transformers.enable(model, 2, block=3)
        yield "transformers", name, model, [*inputs.values()], [*inputs], features


def features(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    return models.output(model, inputs)


def of_diffusers() -> Iterator[Case]:
    for name, kind in DIFFUSERS.items():
        model = kind.model()
        diffusers.enable(model, 2, block=kind.block)
        inputs = [kind.inputs(size) for size in kind.sizes]
        if name == "flux":  # whose grid is in the values of a tensor
            for x, size in zip(inputs, kind.sizes):
                x["joint_attention_kwargs"] = {"ndgpa_grid": size}
        said = ["x".join(map(str, size)) for size in kind.sizes]
        yield "diffusers", type(model).__name__, model, inputs, said, denoised


def denoised(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    return model(**inputs, return_dict=False)[0]


@torch.no_grad()
def row(case: Case) -> dict[str, Any]:
    library, name, model, inputs, said, run = case
    torch.compiler.reset()
    graphs: list[Any] = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, fullgraph=True, backend=count)
    counts, worst, first = [], 0.0, 0.0
    try:
        for number, x in enumerate([*inputs, inputs[0]]):
            begin = time.process_time()
            out = run(compiled, x)
            first = first or time.process_time() - begin
            counts.append(len(graphs))
            if number < len(inputs):
                worst = max(worst, float((out - run(model, x)).abs().max()))
    except torch._dynamo.exc.Unsupported as error:
        return {
            "library": library,
            "model": name,
            "graphs": f"breaks: {str(error).splitlines()[0]}",
        }
    return {
        "library": library,
        "model": name,
        "sizes": ", then ".join(said),
        "graphs": ", ".join(map(str, counts)),
        "largest error": worst,
        "seconds": first,
    }


def main(only: list[str]) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = []
    for case in tqdm([*of_transformers(), *of_diffusers()]):
        if not only or case[1] in only:
            rows.append(row(case))
            print(rows[-1], flush=True)
    if not only:
        question = __doc__.splitlines()[0] if __doc__ else ""
        write("full_graph", question, rows, seed=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="*", default=[], help="models to try; nothing is written")
    main(parser.parse_args().only)

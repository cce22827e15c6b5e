"""Make torchvision importable beside torch's build for the CPU, whose kernels it cannot load.

The registry's torchvision is built for CUDA. What it defines without its kernels is enough for
timm. These tests run in a process of their own (`make test`): transformers imports torchvision too
where it is installed.
"""

import re
from importlib.util import find_spec
from pathlib import Path

import torch

_kept = []  # a library's definitions live as long as it does


def _define_operators() -> None:
    found = find_spec("torchvision")
    if found is None or found.origin is None:
        return
    try:
        torch.ops.load_library(str(Path(found.origin).with_name("_C.so")))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        source = Path(found.origin).with_name("_meta_registrations.py").read_text()
        for name in re.findall(r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"', source):
            library.define(f"{name}(Tensor x) -> Tensor")
        _kept.append(library)


_define_operators()

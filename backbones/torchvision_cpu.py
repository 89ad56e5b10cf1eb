"""Make PyPI's torchvision importable beside a CPU-only torch, by being imported first.

On Linux, PyPI's torchvision is a CUDA build. Beside a CPU torch its C++ library does not load, the operators which that
library defines are missing, and ``import torchvision`` fails with "operator torchvision::nms does not exist"; with it
fail open_clip, timm, transformers and peft. Defining the schemas of the two operators that torchvision describes to
torch while it is being imported is enough: transforms and models work, box operators stay absent.

Where the library does load it defines the operators itself. It is therefore tried first: a library that finds its
operators already defined ends the process.
"""

from __future__ import annotations

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

import torch

_SCHEMAS = ("nms", "qnms")
_definitions: torch.library.Library | None = None  # torch forgets the schemas when this object goes


def make_torchvision_importable() -> bool:
    """Define torchvision's two schemas where its own library cannot; importing this module has done it already.

    Nothing is done, however often it is called, where torchvision is absent, imported or has its operators, nor beside
    a CUDA or ROCm torch, nor outside Linux, where PyPI's torchvision is a CPU build. Torchvision is not imported.

    Returns:
        Whether this call defined the schemas.
    """
    global _definitions
    if sys.platform != "linux" or torch.version.cuda is not None or torch.version.hip is not None:
        return False
    if "torchvision" in sys.modules or _is_defined("nms"):
        return False
    folder = _package_folder("torchvision")
    if folder is None or _library_loads(folder):
        return False
    _definitions = torch.library.Library("torchvision", "FRAGMENT")
    for name in _SCHEMAS:
        if not _is_defined(name):
            _definitions.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return True


def _is_defined(name: str) -> bool:
    return hasattr(torch.ops.torchvision, name)


def _package_folder(name: str) -> Path | None:
    """Find a package without importing it."""
    spec = find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _library_loads(folder: Path) -> bool:
    """Load torchvision's library ``_C``; torchvision loads the same file again, which then does nothing."""
    libraries = [folder / f"_C{suffix}" for suffix in EXTENSION_SUFFIXES]
    library = next((path for path in libraries if path.is_file()), None)
    if library is None:
        return False
    try:
        torch.ops.load_library(str(library))
    except OSError:
        return False
    return True


make_torchvision_importable()

"""Fix that makes PyPI's torchvision importable beside a CPU-only torch. It has to be imported first.

On Linux, PyPI's torchvision is a CUDA build. Beside a CPU torch, its C++ library does not load and its operators are
missing. ``import torchvision`` then fails with "operator torchvision::nms does not exist", and with it open_clip, timm,
transformers and peft. Defining the schemas of two operators, which torchvision registers fake versions of at import, is
enough. Transforms and models then work, and box operators stay unavailable.

If the library loads, it defines the operators itself. Loading is therefore tried first, because the process ends if
the operators are already defined when the library loads.
"""

from __future__ import annotations

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

import torch

_SCHEMAS = ("nms", "qnms")
_definitions: torch.library.Library | None = None  # torch removes the schemas when this object is deleted


def make_torchvision_importable() -> bool:
    """Define torchvision's two schemas if its own library cannot. Importing this module calls this function.

    Do nothing if torchvision is absent, already imported or has its operators. Do nothing beside a CUDA or ROCm torch,
    or outside Linux, where PyPI's torchvision is a CPU build. Repeated calls are harmless, and torchvision is not
    imported.

    Returns:
        True if this call defined the schemas.
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
    """Return the folder of a package without importing it, or None."""
    spec = find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _library_loads(folder: Path) -> bool:
    """Load torchvision's library ``_C`` and return True on success. Loading it again later has no effect."""
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

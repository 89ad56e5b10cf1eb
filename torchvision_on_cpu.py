"""Fix for environments in which PyPI's torchvision stands beside a CPU-only torch.

On Linux, PyPI's torchvision is a CUDA build. Beside a CPU torch, its C++ library does not load and its operators are
missing. ``import torchvision`` then fails with "operator torchvision::nms does not exist", and with it open_clip, timm,
transformers and peft. Defining the schemas of two operators, which torchvision registers fake versions of at import, is
enough. Transforms and models then work, and box operators stay unavailable.

``import dmgal`` installs a hook that waits for the first import of torchvision, and does nothing else. Start-up stays
fast: torch is imported when a program imports torchvision. For programs that import other libraries before dmgal,
``python torchvision_on_cpu.py`` copies this file into the environment of the running interpreter, together with one
line that Python executes at start-up. The Makefile runs this if it is necessary.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.library import Library

NAME = "dmgal_torchvision"
"""Name of the copy."""
_SCHEMAS = ("nms", "qnms")
_definitions: Library | None = None  # torch removes the schemas when this object is deleted


def make_torchvision_importable() -> bool:
    """Define torchvision's two schemas if its own library cannot, and return True if this call defined them.

    Do nothing if torchvision is absent, already imported or has its operators. Do nothing beside a CUDA or ROCm torch,
    or outside Linux, where PyPI's torchvision is a CPU build. Repeated calls are harmless, and torchvision is not
    imported. Loading the library is tried first, because the process ends if the operators are already defined then.
    """
    import torch

    global _definitions
    if sys.platform != "linux" or torch.version.cuda is not None or torch.version.hip is not None:
        return False
    if "torchvision" in sys.modules or hasattr(torch.ops.torchvision, "nms"):
        return False
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None or _library_loads(Path(spec.origin).parent):
        return False
    _definitions = torch.library.Library("torchvision", "FRAGMENT")
    for name in _SCHEMAS:
        if not hasattr(torch.ops.torchvision, name):
            _definitions.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return True


def _library_loads(folder: Path) -> bool:
    """Load torchvision's library ``_C`` and return True on success. Loading it again later has no effect."""
    import torch

    libraries = [folder / f"_C{suffix}" for suffix in EXTENSION_SUFFIXES]
    library = next((path for path in libraries if path.is_file()), None)
    if library is None:
        return False
    try:
        torch.ops.load_library(str(library))
    except OSError:
        return False
    return True


class _BeforeTorchvision(MetaPathFinder):
    """A finder that finds no module. It only notices that torchvision is about to be imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == "torchvision" and self in sys.meta_path:
            sys.meta_path.remove(self)
            make_torchvision_importable()
        return None


def install() -> None:
    """Install the hook that waits for the first import of torchvision in this process. Later calls do nothing."""
    is_late = "torchvision" in sys.modules or any(isinstance(finder, _BeforeTorchvision) for finder in sys.meta_path)
    if sys.platform == "linux" and not is_late:
        sys.meta_path.insert(0, _BeforeTorchvision())


def main(folder: Path) -> None:
    """Write a copy of this file and the start-up line into a folder of site packages."""
    import shutil  # not needed by ``import dmgal``

    shutil.copyfile(__file__, folder / f"{NAME}.py")
    (folder / f"{NAME}.pth").write_text(f"import {NAME}; {NAME}.install()\n")
    print(f"written: {folder / NAME}.pth")


if __name__ == "__main__":
    import sysconfig

    main(Path(sysconfig.get_path("purelib")))

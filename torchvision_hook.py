"""Start-up hook that makes PyPI's torchvision importable beside a CPU-only torch, in every program of an environment.

``python -m dmgal.torchvision_hook`` writes one line that Python executes at start-up. ``accelerate launch``, ``timm``
and other programs then work too, without importing dmgal. Start-up stays fast: nothing else is imported until a program
imports torchvision. ``backbones/torchvision_cpu.py`` explains the problem and the fix.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

START_UP_FILE = "dmgal_torchvision.pth"


class _BeforeTorchvision(MetaPathFinder):
    """A finder that finds no module. It only notices that torchvision is about to be imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == "torchvision" and self in sys.meta_path:
            sys.meta_path.remove(self)
            from .backbones import torchvision_cpu  # noqa: F401  (importing it defines the schemas)
        return None


def install() -> None:
    """Install the hook that waits for the first import of torchvision in this process."""
    sys.meta_path.insert(0, _BeforeTorchvision())


def main() -> None:
    """Write the start-up file into the environment of the running interpreter."""
    path = Path(sysconfig.get_path("purelib")) / START_UP_FILE
    path.write_text("import dmgal.torchvision_hook; dmgal.torchvision_hook.install()\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()

"""Mends PyPI's torchvision beside a CPU-only torch for every program of an environment, not only for ours.

``python -m dmgal.torchvision_hook`` writes one line that Python reads when it starts. From then on
``accelerate launch``, ``timm`` and others work there, too, without importing dmgal. The start costs nothing: until
somebody imports torchvision, nothing else is imported. ``backbones/torchvision_cpu.py`` tells what is mended and how.
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
    """Finds no module; it only notices that torchvision is about to be imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == "torchvision" and self in sys.meta_path:
            sys.meta_path.remove(self)
            from .backbones import torchvision_cpu  # noqa: F401  (importing it mends)
        return None


def install() -> None:
    """Waits for the first import of torchvision in this process."""
    sys.meta_path.insert(0, _BeforeTorchvision())


def main() -> None:
    """Writes the start-up file into the environment that runs this."""
    path = Path(sysconfig.get_path("purelib")) / START_UP_FILE
    path.write_text("import dmgal.torchvision_hook; dmgal.torchvision_hook.install()\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()

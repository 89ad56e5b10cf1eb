"""Few-shot action recognition: the names that most programs need, imported on first use.

``import dmgal`` is cheap because it does not import torch. Importing ``dmgal.adapters`` registers our adapters with
PEFT. ``torchvision_on_cpu`` explains the hook for torchvision.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from . import torchvision_on_cpu

if TYPE_CHECKING:
    from .adapters import CmgaConfig, DmgalConfig, SmgaConfig
    from .backbones import FrameEncoder, load_backbone
    from .episodes import EpisodeSampler, FewShotRecognizer
    from .episodes.evaluation import evaluate
    from .episodes.heads import OTAM, BiMHM, DmgalFT, FrameAligned, TemporalMixer
    from .recipes.run.action_recognizer import ActionRecognizer
    from .videos import VideoCatalog

__version__ = "0.1.0"

torchvision_on_cpu.install()

__all__ = [
    "OTAM",
    "ActionRecognizer",
    "BiMHM",
    "CmgaConfig",
    "DmgalConfig",
    "DmgalFT",
    "EpisodeSampler",
    "FewShotRecognizer",
    "FrameAligned",
    "FrameEncoder",
    "SmgaConfig",
    "TemporalMixer",
    "VideoCatalog",
    "__version__",
    "evaluate",
    "load_backbone",
]

_HOME = {
    "ActionRecognizer": ".recipes.run.action_recognizer",
    "BiMHM": ".episodes.heads",
    "CmgaConfig": ".adapters",
    "DmgalConfig": ".adapters",
    "DmgalFT": ".episodes.heads",
    "EpisodeSampler": ".episodes",
    "FewShotRecognizer": ".episodes",
    "FrameAligned": ".episodes.heads",
    "FrameEncoder": ".backbones",
    "OTAM": ".episodes.heads",
    "SmgaConfig": ".adapters",
    "TemporalMixer": ".episodes.heads",
    "VideoCatalog": ".videos",
    "evaluate": ".episodes.evaluation",
    "load_backbone": ".backbones",
}


def __getattr__(name: str) -> object:
    """Import a public name from its folder on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

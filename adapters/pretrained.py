"""Trained adapters: those that ship with dmgal, by name, and the folders that training writes.

    import dmgal.adapters, dmgal.backbones, peft

    backbone = dmgal.backbones.load_backbone("tiny-clip")
    model = peft.PeftModel.from_pretrained(backbone, dmgal.adapters.pretrained("tiny-clip-motion"))

Importing ``dmgal.adapters`` registers our methods with PEFT.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

import peft
from torch import nn

from ..backbones.families import find_spec
from ..backbones.spec import base_model
from ..errors import DmgalError
from ..files import read_mapping
from .base import BlockAdapterConfig, check_backbone

BUNDLED = Path(__file__).parent / "bundled"
CONFIG = "adapter_config.json"


def bundled_adapters() -> list[str]:
    """Return the names of the adapters that ship with dmgal."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{CONFIG}"))


def pretrained(name: str | Path) -> str:
    """Return the folder of an adapter: a bundled name, a folder in PEFT's format, or the folder of a run with one.

    A bundled name comes first. A folder of the same name is ``./NAME``.

    The result is a string, because PEFT takes other paths for names on a hub.

    Raises:
        DmgalError: there is no such adapter.
    """
    if str(name) in bundled_adapters():
        return str(BUNDLED / str(name))
    for folder in (Path(name), Path(name) / "adapter"):
        if (folder / CONFIG).is_file():
            return str(folder)
    nearest = get_close_matches(str(name), bundled_adapters(), n=1)
    raise DmgalError(
        "There is no such adapter.",
        received=str(name),
        expected=f"a folder with {CONFIG}, the folder of a run with an adapter, or one of "
        f"{', '.join(bundled_adapters())}",
        remedy=f"Check the name: did you mean {nearest[0]}?" if nearest else "Check the path.",
    )


def backbone_of(folder: str) -> str | None:
    """Return the name of the backbone that an adapter was trained on, or None if it was not saved.

    Raises:
        DmgalError: the config of the adapter cannot be read.
    """
    config = read_mapping(Path(folder) / CONFIG, "This adapter cannot be read.", "Copy it again.")
    name = config.get("backbone") or config.get("base_model_name_or_path")
    return name if isinstance(name, str) else None


def fits(folder: str, backbone: nn.Module) -> bool:
    """Return True if an adapter was trained on this backbone, by its shape and weights or, for PEFT's, by its name."""
    config = peft.PeftConfig.from_pretrained(folder)
    model = base_model(backbone)
    if not isinstance(config, BlockAdapterConfig):
        return backbone_of(folder) in (None, getattr(model, "dmgal_name", None))
    try:
        spec = find_spec(model, store=False)
        check_backbone(config, spec, spec.fingerprint(model))
    except DmgalError:
        return False
    return True


def load_adapter(backbone: nn.Module, folder: str, is_trainable: bool = False) -> peft.PeftModel:
    """Return the backbone with a saved adapter.

    Raises:
        DmgalError: the adapter belongs to another backbone.
    """
    return peft.PeftModel.from_pretrained(backbone, folder, is_trainable=is_trainable)

"""Loading of backbones by name: the bundled one, from a library's hub, or from a local folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import DmgalError
from . import tiny_clip
from .finding import FAMILIES


def load_backbone(name: str) -> nn.Module:
    """Load a backbone in evaluation mode and float32. For CLIP and SigLIP, this is the visual tower.

    Args:
        name: ``"tiny-clip"`` (bundled); ``"open_clip:ViT-B-16/openai"``; ``"hf:facebook/dinov2-base"``;
            ``"timm:vit_base_patch16_224.augreg_in21k"``; or a folder of transformers (``config.json``), of open_clip
            (``open_clip_config.json``) or of timm (``config.json`` with an architecture). Without weights in the name,
            as in ``"open_clip:ViT-B-16"`` or ``"timm:vit_base_patch16_224"``, the weights are random.

    Raises:
        DmgalError: the name is unknown, or the weights cannot be reached or read.
    """
    model = _load(name)
    model.dmgal_name = name  # saved with an adapter, to record which backbone it belongs to
    return model


def _load(name: str) -> Any:
    prefix, _, rest = name.partition(":")
    if name == "tiny-clip":
        return FAMILIES["open_clip"].load(f"local-dir:{tiny_clip.FOLDER}")
    if Path(name).is_dir():
        return _load_folder(Path(name))
    if prefix in FAMILIES and rest:
        return _load_or_explain(name, lambda: FAMILIES[prefix].load(rest))
    forms = [f"{prefix}:{form}" for prefix, family in FAMILIES.items() for form in family.names]
    raise DmgalError(
        "Unknown backbone.",
        received=name,
        expected=f"{', '.join(['tiny-clip', *forms])}, or a folder with a model",
        remedy="Check the name, or that the folder exists.",
    )


def _load_folder(folder: Path) -> Any:
    if (folder / "open_clip_config.json").is_file():
        return _load_or_explain(str(folder), lambda: FAMILIES["open_clip"].load(f"local-dir:{folder}"))
    config = folder / "config.json"
    if not config.is_file():
        raise DmgalError(
            "This folder contains no backbone.",
            received=str(folder),
            expected="a config.json (transformers, timm) or open_clip_config.json (open_clip) beside safetensors",
            remedy="Use a folder written by save_pretrained, or by timm's save_for_hf with safe_serialization=True.",
        )
    if "architecture" in json.loads(config.read_text(encoding="utf-8")):
        return _load_or_explain(str(folder), lambda: FAMILIES["timm"].load(f"local-dir:{folder}"))
    return _load_or_explain(str(folder), lambda: FAMILIES["hf"].load(str(folder)))


def _load_or_explain(name: str, load: Callable[[], Any]) -> Any:
    """Load a model and turn the various errors of libraries, e.g. without a network, into one message."""
    try:
        return load()
    except DmgalError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise DmgalError(
            "This backbone could not be loaded.",
            received=f"{name}: {type(error).__name__}: {reason[:300]}",
            expected="weights that are reachable over the network, in the local cache, or in a folder",
            remedy="To download it, go online once. Set HF_HUB_OFFLINE=1 to load it from the local cache. "
            "Or download it elsewhere and pass its folder.",
        ) from error

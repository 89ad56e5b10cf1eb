"""Loads a backbone by name: bundled, from a library's hub where one is reachable, or from a local folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import DmgalError
from . import tiny_clip
from . import torchvision_cpu as _torchvision_cpu  # noqa: F401  (before open_clip and transformers import torchvision)

EXPECTED = "tiny-clip, open_clip:MODEL or open_clip:MODEL/WEIGHTS, hf:REPOSITORY, or a folder with a model"


def load_backbone(name: str) -> nn.Module:
    """A backbone in evaluation mode and float32; of a CLIP, the visual tower.

    Args:
        name: ``"tiny-clip"`` (bundled); ``"open_clip:ViT-B-16/openai"``, without weights the model is random;
            ``"hf:openai/clip-vit-base-patch16"``; or a folder in the transformers format (``config.json``) or
            open_clip's (``open_clip_config.json``).

    Raises:
        DmgalError: the name is not understood, or its weights cannot be reached or read.
    """
    model = _load(name)
    model.dmgal_name = name  # saved with an adapter, so that its user knows what it belongs to
    return model


def _load(name: str) -> Any:
    source, _, rest = name.partition(":")
    if name == "tiny-clip":
        return _open_clip_folder(tiny_clip.FOLDER)
    if Path(name).is_dir():
        return _folder(Path(name))
    if source == "open_clip" and rest:
        return _attempt(name, lambda: _open_clip(*rest.split("/", 1)))
    if source == "hf" and rest:
        return _attempt(name, lambda: _transformers(rest))
    raise DmgalError(
        "This backbone is not known.",
        received=name,
        expected=EXPECTED,
        remedy="check the name, or that the folder exists",
    )


def _folder(folder: Path) -> Any:
    if (folder / "open_clip_config.json").is_file():
        return _attempt(str(folder), lambda: _open_clip_folder(folder))
    if (folder / "config.json").is_file():
        return _attempt(str(folder), lambda: _transformers(str(folder)))
    raise DmgalError(
        "This folder holds no backbone.",
        received=str(folder),
        expected="a config.json (transformers) or open_clip_config.json (open_clip) beside safetensors",
        remedy="give the folder that save_pretrained wrote",
    )


def _open_clip_folder(folder: Path) -> Any:
    import open_clip

    return open_clip.create_model(f"local-dir:{folder}").visual.eval()


def _open_clip(model: str, weights: str | None = None) -> Any:
    import open_clip

    if model not in open_clip.list_models():
        raise DmgalError(
            "open_clip has no such model.",
            received=model,
            expected="one of open_clip.list_models()",
            remedy="check the name, e.g. open_clip:ViT-B-16/openai",
        )
    return open_clip.create_model(model, pretrained=weights).visual.eval()


def _transformers(source: str) -> Any:
    import torch
    from transformers import AutoConfig, AutoModel, CLIPVisionModelWithProjection

    config = AutoConfig.from_pretrained(source)
    if config.model_type in ("clip", "clip_vision_model"):
        return CLIPVisionModelWithProjection.from_pretrained(source, dtype=torch.float32).eval()
    model = AutoModel.from_pretrained(source, dtype=torch.float32).eval()
    model.dmgal_preprocessing = _preprocessing(Path(source))
    return model


def _preprocessing(folder: Path) -> dict[str, object]:
    """What ``preprocessor_config.json`` says, for models whose own config tells no mean and standard deviation."""
    path = folder / "preprocessor_config.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _attempt(name: str, load: Callable[[], Any]) -> Any:
    """Libraries fail in many ways when a hub is out of reach; the user gets one message."""
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
            remedy="go online once, or download the model elsewhere and give its folder",
        ) from error

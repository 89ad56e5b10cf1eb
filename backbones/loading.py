"""Loading of backbones by name: the bundled one, from a library's hub, or from a local folder.

The network is checked ahead of downloads, because without a network the libraries retry for minutes.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from torch import nn

from ..errors import DmgalError
from . import tiny_clip

EXPECTED = (
    "tiny-clip, open_clip:MODEL or open_clip:MODEL/WEIGHTS, hf:REPOSITORY, timm:MODEL or timm:MODEL.WEIGHTS, "
    "or a folder with a model"
)
_PREPROCESSOR = "preprocessor_config.json"


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
    source, _, rest = name.partition(":")
    loaders: dict[str, Callable[[str], Any]] = {"open_clip": _open_clip, "hf": _transformers, "timm": _timm}
    if name == "tiny-clip":
        return _open_clip_folder(tiny_clip.FOLDER)
    if Path(name).is_dir():
        return _folder(Path(name))
    if source in loaders and rest:
        return _load_or_explain(name, lambda: loaders[source](rest))
    raise DmgalError(
        "Unknown backbone.",
        received=name,
        expected=EXPECTED,
        remedy="Check the name, or that the folder exists.",
    )


def _folder(folder: Path) -> Any:
    if (folder / "open_clip_config.json").is_file():
        return _load_or_explain(str(folder), lambda: _open_clip_folder(folder))
    if not (folder / "config.json").is_file():
        raise DmgalError(
            "This folder contains no backbone.",
            received=str(folder),
            expected="a config.json (transformers, timm) or open_clip_config.json (open_clip) beside safetensors",
            remedy="Use a folder written by save_pretrained, or by timm's save_for_hf with safe_serialization=True.",
        )
    if "architecture" in _read_json(folder / "config.json"):
        return _load_or_explain(str(folder), lambda: _timm_folder(folder))
    return _load_or_explain(str(folder), lambda: _transformers(str(folder)))


def _open_clip_folder(folder: Path) -> Any:
    import open_clip

    return open_clip.create_model(f"local-dir:{folder}").visual.eval()


def _open_clip(name: str) -> Any:
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    model, _, weights = name.partition("/")
    example = "open_clip:ViT-B-16/openai"
    if model not in open_clip.list_models():
        raise _unknown_name("open_clip", "model", model, "open_clip.list_models()", example)
    if weights and not Path(weights).is_file():
        known = open_clip.list_pretrained_tags_by_model(model)
        if weights.lower().replace("-", "_") not in known:
            raise _unknown_name("open_clip", f"weights of {model}", weights, ", ".join(known), example)
        require_hub()
    # by default, open_clip uses another activation for OpenAI's weights than they were trained with
    quick = get_pretrained_cfg(model, weights).get("quick_gelu", False)
    return open_clip.create_model(model, pretrained=weights or None, force_quick_gelu=quick).visual.eval()


def _timm(name: str) -> Any:
    timm = _import_timm()
    model, _, weights = name.partition(".")
    example = "timm:vit_base_patch16_224.augreg_in21k"
    if not timm.is_model(model):
        raise _unknown_name("timm", "model", model, "timm.list_models()", example)
    known = [full.partition(".")[2] for full in timm.list_pretrained(f"{model}.*")]
    if weights and weights not in known:
        raise _unknown_name("timm", f"weights of {model}", weights, ", ".join(known) or "none", example)
    if weights:
        require_hub()
    return timm.create_model(name, pretrained=bool(weights), num_classes=0).eval()


def _timm_folder(folder: Path) -> Any:
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError("model.safetensors beside config.json; other formats may run code when they are loaded")
    return _import_timm().create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()


def _import_timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise DmgalError(
            "timm is not installed.",
            received=f"a backbone of timm ({error})",
            expected="the package timm",
            remedy="Run: pip install dmgal[timm]",
        ) from error
    return timm


def _transformers(source: str) -> Any:
    import torch
    import transformers

    if not Path(source).is_dir():
        require_hub()
    config: Any = transformers.AutoConfig.from_pretrained(source)
    kind: Any = transformers.AutoModel
    if config.model_type in ("clip", "clip_vision_model"):
        kind = transformers.CLIPVisionModelWithProjection
    if config.model_type == "clip":
        config.vision_config.projection_dim = config.projection_dim  # this one is right if the two differ
        config = config.vision_config
    if config.model_type == "siglip":
        kind, config = transformers.SiglipVisionModel, config.vision_config
    with _quiet(transformers.logging):
        model, report = kind.from_pretrained(source, config=config, dtype=torch.float32, output_loading_info=True)
    model = _without_random_parts(model, report["missing_keys"])
    model.dmgal_preprocessing = _preprocessing(source)
    return model.eval()


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Suppress transformers' table of unused weights, e.g. of CLIP's text tower, and its progress bar.

    Missing weights are checked here.
    """
    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()


def _without_random_parts(model: Any, missing: Iterable[str]) -> Any:
    """Remove a head that was saved without its weights, because it would have random ones."""
    parts = {name.partition(".")[0] for name in missing}
    if parts == {"pooler"}:
        model.pooler = None
    elif parts == {"visual_projection"}:
        model = model.vision_model
    elif parts:
        raise ValueError(f"weights are missing: {', '.join(sorted(missing)[:3])}")
    return model


def _preprocessing(source: str) -> dict[str, Any]:
    """Return the content of ``preprocessor_config.json``: image size, mean and standard deviation."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    path = Path(source) / _PREPROCESSOR
    if not Path(source).is_dir():
        try:
            path = Path(hf_hub_download(source, _PREPROCESSOR))
        except EntryNotFoundError:
            return {}
    return _read_json(path) if path.is_file() else {}


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _unknown_name(library: str, what: str, received: str, known: str, example: str) -> DmgalError:
    return DmgalError(
        f"{library} has no such {what}.",
        received=received,
        expected=f"one of {known}",
        remedy=f"Check the name. A valid one is {example}.",
    )


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


def require_hub() -> None:
    """Raise an error if the host name of Hugging Face's hub cannot be resolved.

    In offline mode the libraries read their local cache, and a proxy resolves names itself. Both skip the check.

    Raises:
        ConnectionError: the name cannot be resolved.
    """
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname
    if not (constants.HF_HUB_OFFLINE or getproxies() or _is_resolvable(host)):
        raise ConnectionError(f"the host name {host} cannot be resolved")


def _is_resolvable(host: str | None) -> bool:
    try:
        return bool(socket.getaddrinfo(host, 443))
    except OSError:
        return False

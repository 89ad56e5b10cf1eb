"""What shapes a video's state besides the video itself, so that kept states are never taken for others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn

from ...adapters import PREFIXES
from ...errors import DmgalError
from ..recognizer import FewShotRecognizer

FORMAT = 2
SETTINGS = (bool, int, float, str, type(None))
OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""Hooks among them, whose numbers are others in every process; and ``training``."""


def describe(recognizer: FewShotRecognizer, **more: Any) -> dict[str, Any]:
    """Everything about a recognizer that shapes its states, as JSON takes it.

    Weights are hashed whole: those of the backbone, of what was added to it, and of the head. ``settings`` is a hash of
    the modules' classes and plain attributes, where options live that have no weights.

    Args:
        more: what else shapes them: frames, transform, decoder, device.
    """
    backbone, head = recognizer.encoder.backbone, recognizer.head
    weights = {name: tensor for name, tensor in recognizer.state_dict().items() if not _is_head(name)}
    spec = getattr(recognizer.encoder, "spec", None)
    return {
        "format": FORMAT,
        "torch": str(torch.__version__),
        "backbone": getattr(_innermost(backbone), "dmgal_name", None) or type(_innermost(backbone)).__name__,
        "fingerprint": spec.fingerprint(_innermost(backbone)) if spec is not None else None,
        "pooling": getattr(recognizer.encoder, "pooling", None),
        "normalization": normalization(recognizer),
        "backbone_weights": _hash_of((n, t) for n, t in weights.items() if not _is_added(n)),
        "adapter_weights": _hash_of((n, t) for n, t in weights.items() if _is_added(n)),
        "head_weights": _hash_of(head.state_dict().items()) if isinstance(head, nn.Module) else None,
        "settings": _settings(recognizer),
        **more,
    }


def normalization(recognizer: FewShotRecognizer) -> dict[str, list[float]]:
    """What images are normalized with: it comes from the backbone's own files and is in no saved weights."""
    found = ((name, getattr(recognizer.encoder, name, None)) for name in ("mean", "std"))
    return {name: tensor.flatten().tolist() for name, tensor in found if isinstance(tensor, Tensor)}


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Names of what is not the same in two descriptions."""
    return [name for name in sorted({*stored, *wanted}) if stored.get(name) != wanted.get(name)]


def refuse_other(what: str, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise a DmgalError that names every difference of two descriptions, if there is one."""
    other = differences(stored, wanted)
    if other:
        raise DmgalError(
            f"{what} was made by another model or from other input.",
            received=", ".join(f"{name}={stored.get(name)!r}" for name in other),
            expected=", ".join(f"{name}={wanted.get(name)!r}" for name in other),
            remedy="use what made it, or let it be made anew in another folder",
        )


def _hash_of(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    digest, any_there = blake2b(digest_size=8), False
    for name, tensor in sorted(tensors):
        any_there = True
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        if tensor.numel():
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
    return digest.hexdigest() if any_there else None


def _settings(recognizer: FewShotRecognizer) -> str:
    """A hash of every module's class and plain attributes, whether it trains left out; of the head also without one."""
    digest = blake2b(digest_size=8)
    parts: dict[str, object] = {**dict(recognizer.named_modules()), "head": recognizer.head}
    for name, module in parts.items():
        own = {key: value for key, value in getattr(module, "__dict__", {}).items() if key not in OF_EVERY_MODULE}
        plain = {key: _in_order(value) for key, value in own.items() if _is_plain(value)}
        shape = {key: repr(value) for key, value in own.items() if key == "shape"}  # a dataclass of options
        digest.update(f"{name} {type(module).__module__}.{type(module).__qualname__} {sorted(plain.items())}".encode())
        digest.update(f"{sorted(shape.items())}".encode())
    return digest.hexdigest()


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, SETTINGS) and _is_plain(entry) for key, entry in value.items())
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, SETTINGS)


def _in_order(value: Any) -> Any:
    """The same for dictionaries that are equal, in whatever order they were filled."""
    if isinstance(value, dict):
        return sorted((repr(key), _in_order(entry)) for key, entry in value.items())
    if isinstance(value, tuple | list):
        return [*map(_in_order, value)]
    return value


def _is_head(name: str) -> bool:
    return name.startswith("head.")


def _is_added(name: str) -> bool:
    return any(prefix in name for prefix in PREFIXES)


def _innermost(model: Any) -> Any:
    while callable(unwrap := getattr(model, "get_base_model", None)):
        model = unwrap()
    return model

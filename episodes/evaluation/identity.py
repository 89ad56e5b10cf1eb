"""Description of everything that shapes a video's state except the video, so that stored states are never confused."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import torch
from torch import Tensor, nn

from ...adapters import is_added
from ...backbones.quantized import plain_tensors
from ...backbones.spec import base_model
from ..recognizer import FewShotRecognizer

FORMAT = 4
SETTINGS = (bool, int, float, str, type(None))
OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""Attributes of every module, such as ``training`` and hooks, whose ids differ between processes."""


def describe(recognizer: FewShotRecognizer, **more: object) -> dict[str, object]:
    """Return everything about a recognizer that shapes its states, as JSON values.

    There is one hash of all weights for the backbone, the adapters and the head each. ``settings`` is a hash of the
    modules' classes and plain attributes, which hold the options without weights.

    ``more`` are other inputs that shape the states: frames, transform, decoder, device.
    """
    backbone, head = base_model(recognizer.encoder.backbone), recognizer.head
    weights = {name: tensor for name, tensor in recognizer.state_dict().items() if not _is_head(name)}
    spec = getattr(recognizer.encoder, "spec", None)
    return {
        "format": FORMAT,
        "torch": str(torch.__version__),
        "backbone": getattr(backbone, "dmgal_name", None) or type(backbone).__name__,
        "fingerprint": spec.fingerprint(backbone) if spec is not None else None,
        "pooling": getattr(recognizer.encoder, "pooling", None),
        "normalization": normalization(recognizer),
        "backbone_weights": _hash_of((n, t) for n, t in weights.items() if not is_added(n)),
        "adapter_weights": _hash_of((n, t) for n, t in weights.items() if is_added(n)),
        "head_weights": _hash_of(head.state_dict().items()) if isinstance(head, nn.Module) else None,
        "settings": _settings(recognizer),
        **more,
    }


def normalization(recognizer: FewShotRecognizer) -> dict[str, list[float]]:
    """Return the mean and standard deviation of the image normalization.

    They come from the backbone's own files and are not part of the saved weights.
    """
    tensors = ((name, getattr(recognizer.encoder, name, None)) for name in ("mean", "std"))
    return {name: tensor.flatten().tolist() for name, tensor in tensors if isinstance(tensor, Tensor)}


def _hash_of(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return a hash of the tensors' names, dtypes, shapes and bytes, or None if there are no tensors."""
    digest, is_empty = blake2b(digest_size=8), True
    for name, tensor in sorted(plain_tensors(dict(tensors))):
        is_empty = False
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        if tensor.numel():
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return None if is_empty else digest.hexdigest()


def _settings(recognizer: FewShotRecognizer) -> str:
    """Return a hash of the class and plain attributes of every module, and of the head even if it is not a module.

    The attribute ``training`` does not count.
    """
    digest = blake2b(digest_size=8)
    parts: dict[str, object] = {**dict(recognizer.named_modules()), "head": recognizer.head}
    for name, module in parts.items():
        attributes = {
            key: value for key, value in getattr(module, "__dict__", {}).items() if key not in OF_EVERY_MODULE
        }
        plain = {key: _in_order(value) for key, value in attributes.items() if _is_plain(value)}
        shape = {key: repr(value) for key, value in attributes.items() if key == "shape"}  # a dataclass of options
        digest.update(f"{name} {type(module).__module__}.{type(module).__qualname__} {sorted(plain.items())}".encode())
        digest.update(f"{sorted(shape.items())}".encode())
    return digest.hexdigest()


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, SETTINGS) and _is_plain(entry) for key, entry in value.items())
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, SETTINGS)


def _in_order(value: object) -> object:
    """Convert dictionaries to sorted lists, so that the order of insertion does not matter."""
    if isinstance(value, dict):
        return sorted((repr(key), _in_order(entry)) for key, entry in value.items())
    if isinstance(value, tuple | list):
        return [*map(_in_order, value)]
    return value


def _is_head(name: str) -> bool:
    return name.startswith("head.")

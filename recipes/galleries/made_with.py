"""Fingerprint of the model and settings that determine the states of a run's videos.

States with different fingerprints cannot be compared. A gallery stores it to refuse other models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import blake2b

import torch
from torch import Tensor

from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.states.cache_key import normalization
from dmgal.recipes.build import test_transform
from dmgal.recipes.config import Recipe
from dmgal.recipes.layers import to_mapping
from dmgal.recipes.saving.weights import is_added, without_folder


def made_with(recipe: Recipe, recognizer: FewShotRecognizer) -> dict[str, str]:
    """Return settings and weight hashes by name. A copied or moved run has the same ones."""
    options = to_mapping(recipe)
    backbone = recognizer.encoder.backbone.state_dict().items()
    frozen = ((name, tensor) for name, tensor in backbone if not is_added(name))
    added = ((name, tensor) for name, tensor in backbone if is_added(name))
    head = recognizer.head.state_dict().items() if isinstance(recognizer.head, torch.nn.Module) else ()
    return {
        "backbone": without_folder(recipe.backbone.name),
        "backbone weights": weights_hash(frozen),
        "adapter": _text(options["adapter"]),
        "adapter weights": weights_hash(added),
        "head": _text(options["head"]),
        "head weights": weights_hash(head),
        "pooling": _text(recipe.backbone.pooling),
        "normalization": _text(normalization(recognizer)),
        "frames": str(recipe.data.num_frames),
        "transform": repr(test_transform(recipe, recognizer.encoder.image_size)),
        "decoder": recipe.data.decoder,
        "precision": str(next(recognizer.parameters()).dtype).removeprefix("torch."),
    }


def weights_hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return a hash of names, shapes and bytes of tensors in any order, or ``none`` if there are none."""
    digest, found = blake2b(digest_size=8), False
    for name, tensor in sorted(tensors):
        found = True
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest() if found else "none"


def _text(option: object) -> str:
    return json.dumps(option, sort_keys=True, default=str)

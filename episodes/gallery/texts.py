"""Text features of a gallery's classes: in its file, and as the support of a task without clips."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...backbones.state import VideoState
from ...backbones.text import ClassTexts
from ...errors import DmgalError
from ..evaluation.states import PrecomputedStates
from ..heads.text_fusion import CLASS_TEXT, MEAN_FRAME

FIELDS = {"encoder": str, "logit_scale": float, "logit_bias": float, "weight": float, "templates": list}


def texts_as_json(texts: ClassTexts) -> dict[str, Any]:
    """Return all fields but the names and the features."""
    return {
        name: list(value) if kind is list else value for name, kind in FIELDS.items() for value in [vars(texts)[name]]
    }


def texts_of_file(content: Mapping[str, Any], features: Tensor, class_names: tuple[str, ...]) -> ClassTexts:
    """Return the texts of a file. A forged one raises a ValueError, LookupError or TypeError."""
    values = {name: content[name] for name in FIELDS}
    numbers = [value for value in values.values() if isinstance(value, float)]
    is_valid = all(type(values[name]) is kind for name, kind in FIELDS.items()) and all(map(math.isfinite, numbers))
    is_matrix = features.dtype == torch.float32 and features.dim() == 2 and len(features) == len(class_names)
    if not (is_valid and is_matrix and features.shape[1] and features.isfinite().all()):
        raise ValueError("the texts do not match the classes")
    if not all(isinstance(template, str) for template in values["templates"]):
        raise ValueError("a template that is not text")
    return ClassTexts(class_names, features, **{**values, "templates": tuple(values["templates"])})


def no_clips(texts: ClassTexts) -> PrecomputedStates:
    """Return the states of a gallery without clips."""
    return PrecomputedStates.undivided(VideoState({MEAN_FRAME: torch.empty(0, texts.features.shape[1])}))


def with_texts(states: PrecomputedStates, labels: Tensor, texts: ClassTexts | None) -> tuple[PrecomputedStates, Tensor]:
    """Return the support states and labels of a task of clips, of class names, or of both.

    A task without clips has one support video per class, which only brings the text of the class.
    """
    if texts is None:
        return states, labels
    features = texts.features.to(labels.device)
    if len(labels):
        return states.with_support(**{CLASS_TEXT: features[labels]}), labels
    state = VideoState({MEAN_FRAME: torch.zeros_like(features), CLASS_TEXT: features})
    return PrecomputedStates.undivided(state), torch.arange(len(features), device=labels.device)


def added_texts(first: ClassTexts | None, other: ClassTexts | None, is_same_kind: bool) -> ClassTexts | None:
    """Return the texts of two galleries together.

    Args:
        first, other: their texts.
        is_same_kind: True if both galleries have clips, or none.

    Raises:
        DmgalError: one gallery has texts or clips and the other does not, or their prompts differ.
    """
    if first is None and other is None:
        return None
    if not is_same_kind:
        raise DmgalError(
            "Clips are missing for some classes.",
            received="classes with clips, and classes with names alone",
            expected="a gallery in which all classes have clips, or none",
            remedy="Enroll all classes with clips and --text.use fuse, or all by --name, in a new gallery.",
        )
    if first is None or other is None:
        raise DmgalError(
            "Names are missing for some classes.",
            received="classes with the text of their names, and classes without",
            expected="a gallery in which all classes have text, or none",
            remedy="Enroll all classes in a new gallery, with --text.use fuse or without it.",
        )
    if texts_as_json(first) != texts_as_json(other):
        raise DmgalError(
            "These texts cannot be compared with those of the gallery.",
            received=f"{texts_as_json(other)}",
            expected=f"{texts_as_json(first)}, as in the gallery",
            remedy="Use the same backbone, prompts and weight, or make a new gallery.",
        )
    return first.added(other)

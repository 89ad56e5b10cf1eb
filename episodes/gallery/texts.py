"""Text features of a gallery's classes: in its file, and as the support of a task without clips."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...backbones.state import VideoState
from ...backbones.text import ClassTexts
from ...errors import DmgalError, differences, refuse_differences
from ..evaluation.states import PrecomputedStates
from ..heads.text_fusion import CLASS_TEXT, MEAN_FRAME

FIELDS = {"encoder": str, "logit_scale": float, "logit_bias": float, "weight": float, "templates": list}


def texts_as_json(texts: ClassTexts) -> dict[str, object]:
    """Return all fields but the names and the features."""
    values = {name: list(vars(texts)[name]) if kind is list else vars(texts)[name] for name, kind in FIELDS.items()}
    return {**values, "descriptions": [list(of_class) for of_class in texts.descriptions]}


def _shared(texts: ClassTexts) -> dict[str, object]:
    """Return the fields that all classes of a gallery share."""
    return {**texts_as_json(texts), "descriptions": bool(texts.descriptions)}


def texts_of_file(content: Mapping[str, Any], features: Tensor, class_names: tuple[str, ...]) -> ClassTexts:
    """Return the texts of a file. A forged one raises a ValueError, LookupError or TypeError."""
    values = {name: content[name] for name in FIELDS}
    numbers = [value for value in values.values() if isinstance(value, float)]
    is_valid = all(type(values[name]) is kind for name, kind in FIELDS.items()) and all(map(math.isfinite, numbers))
    is_matrix = features.dtype == torch.float32 and features.dim() == 2 and len(features) == len(class_names)
    if not (is_valid and is_matrix and features.shape[1] and features.isfinite().all()):
        raise ValueError("the texts do not match the classes")
    descriptions = tuple(tuple(of_class) for of_class in content.get("descriptions", ()))  # earlier versions wrote none
    if descriptions and (len(descriptions) != len(class_names) or not all(descriptions)):
        raise ValueError("descriptions that do not match the classes")
    if not all(isinstance(text, str) for texts in (values["templates"], *descriptions) for text in texts):
        raise ValueError("a template or a description that is not text")
    values["templates"] = tuple(values["templates"])
    return ClassTexts(class_names, features, **values, descriptions=descriptions)


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
    refuse_differences(
        differences(_shared(first), _shared(other)),
        "These texts cannot be compared with those of the gallery.",
        "Use the same backbone, prompts and weight, and descriptions for all classes or for none, or a new gallery.",
    )
    return first.added(other)

"""Text of the classes beside their videos: the recognizer with both, and the weight of the text.

The text is compared with the features of the frozen backbone, because an adapter or a fine-tuned backbone leaves the
space of the text. If the run has one, the frozen backbone is a stream of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
import tyro

from dmgal.backbones import (
    ClassTexts,
    FrameEncoder,
    StreamEncoder,
    encode_class_names,
    load_backbone,
    load_text_encoder,
    make_encoder,
    read_descriptions,
)
from dmgal.backbones.encoder import adapted_modules
from dmgal.backbones.text import TEMPLATES
from dmgal.episodes import EpisodeSampler, FewShotRecognizer
from dmgal.episodes.evaluation import evaluate
from dmgal.episodes.heads import TextFusion
from dmgal.episodes.recognizer import Head
from dmgal.errors import DmgalError
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.encoding import EncodedSplit, launched_device
from dmgal.recipes.run.ranges import Range

WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Weights of the text to choose from."""


@dataclass(frozen=True)
class TextOptions:
    """Use of class names as text. It requires a backbone with a text tower: CLIP or SigLIP."""

    use: Literal["no", "fuse", "only"] = "no"
    """no: clips alone. fuse: add the logits of the class names to those of the clips. only: class names alone."""
    weight: Annotated[float | None, Range(0, 10**4)] = None
    """Factor of the text logits with fuse. None: dmgal evaluate chooses it on validation classes, and dmgal enroll uses
    1."""
    template: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Prompt in which the class name replaces {}. May be repeated. Default: six prompts."""
    descriptions: Path | None = None
    """CSV with the columns class_name and description: further prompts of each class."""

    def encode(self, recipe: Recipe, class_names: Sequence[str]) -> ClassTexts:
        """Return the text features of classes by the text tower of a recipe's backbone.

        Raises:
            DmgalError: the backbone has no text tower, or a name, template or description cannot be used.
        """
        descriptions = None if self.descriptions is None else read_descriptions(self.descriptions)
        encoder = load_text_encoder(recipe.backbone.name)
        return encode_class_names(encoder, class_names, self.template or TEMPLATES, descriptions)


def with_text(recognizer: FewShotRecognizer, recipe: Recipe, texts: ClassTexts, is_only: bool) -> FewShotRecognizer:
    """Return the recognizer with the text logits added to those of its head, or with the text logits alone.

    Raises:
        DmgalError: the recognizer relates the videos of a task, or its features cannot be compared with the text.
    """
    encoder: Any = recognizer.encoder
    has_frozen_stream = _starts_with_frozen_features(encoder, recipe)
    if not has_frozen_stream:
        _check_streams(encoder)
        frozen = make_encoder(load_backbone(recipe.backbone.name) if recipe.backbone.trainable else encoder.backbone)
        encoder = StreamEncoder(
            [frozen, *([] if is_only else [encoder])], adapted=[False, *([] if is_only else [True])]
        )
    head = TextFusion(None if is_only else recognizer.head, texts, has_own_stream=not has_frozen_stream and not is_only)
    return FewShotRecognizer(encoder, cast(Head, head)).eval()


def _starts_with_frozen_features(encoder: Any, recipe: Recipe) -> bool:
    """Return True if the first channels of the features are those of the frozen backbone."""
    if isinstance(encoder, StreamEncoder):
        first, is_adapted = encoder.streams[0], encoder.adapted[0] and adapted_modules(encoder.backbone)
    else:
        first, is_adapted = encoder, adapted_modules(encoder.backbone)
    return not is_adapted and not recipe.backbone.trainable and getattr(first, "pooling", "map") is None


def _check_streams(encoder: Any) -> None:
    if not isinstance(encoder, FrameEncoder) or encoder.has_task_layer or encoder.pooling == "map":
        reason = "a Cmga, which relates the videos of a task" if getattr(encoder, "has_task_layer", False) else "maps"
        raise DmgalError(
            "This run cannot be combined with text.",
            received=f"features of the run: {reason}",
            expected="frame features that do not depend on a task",
            remedy="Use a run of method/smga, method/motion, method/frozen or another one without a Cmga and maps.",
        )


def with_class_texts(encoded: EncodedSplit, texts: ClassTexts) -> EncodedSplit:
    """Return the split with the text features of each video's class, for use as support."""
    features = texts.select(encoded.catalog.class_names).features
    rows = features[torch.from_numpy(encoded.catalog.labels.copy())]
    return replace(encoded, states=encoded.states.with_support(class_text=rows))


def choose_weight(
    recognizer: FewShotRecognizer, encoded: EncodedSplit, n_way: int, k_shot: int, n_query: int, episodes: int
) -> dict[float, float]:
    """Return the accuracy in percent of each of `WEIGHTS` on the same episodes, and set the best one on the head.

    The smallest weight wins a tie.
    """
    head, catalog, accuracies = cast(TextFusion, recognizer.head), encoded.catalog, dict[float, float]()
    ways = min(n_way, len(catalog.class_names))
    sampler = EpisodeSampler(catalog.labels, ways, k_shot, n_query, episodes, 0, catalog.class_names)
    for weight in WEIGHTS:
        head.weight = weight
        found = evaluate(recognizer, encoded.states, sampler, launched_device(), progress=False, dtype=encoded.dtype)
        accuracies[weight] = round(found.accuracy.mean, 3)
    head.weight = max(accuracies, key=lambda weight: (accuracies[weight], -weight))
    return accuracies


def text_as_json(
    options: TextOptions, texts: ClassTexts, weight: float | None, validation: Mapping[float, float] | None = None
) -> dict[str, Any]:
    """Return what a report says about the text: its use, prompts, weight, and how the weight was chosen."""
    return {
        "use": options.use,
        "encoder": texts.encoder,
        "templates": list(texts.templates),
        "descriptions": options.descriptions and options.descriptions.name,
        "weight": weight,
        "weight_on_validation": None if validation is None else {f"{w:g}": value for w, value in validation.items()},
    }


def text_line(text: Mapping[str, Any]) -> str:
    """Return one line about the text of a result, from `text_as_json`."""
    prompts = f"{len(text['templates'])} prompts per class by {text['encoder']}"
    if text["use"] == "only":
        return f"class names alone, {prompts}"
    chosen = "chosen on validation classes" if text["weight_on_validation"] else "as given"
    return f"class names and clips, {prompts}, weight {text['weight']:g} {chosen}"

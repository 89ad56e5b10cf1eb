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

from dmgal.adapters.text_lora import TextTower
from dmgal.backbones import (
    ClassTexts,
    FrameEncoder,
    StreamEncoder,
    encode_class_names,
    load_backbone,
    read_descriptions,
)
from dmgal.backbones.recomputation import adapted_modules
from dmgal.backbones.text import TEMPLATES
from dmgal.episodes import EpisodeSampler, FewShotRecognizer
from dmgal.episodes.evaluation import evaluate
from dmgal.episodes.evaluation.states import PrecomputedStates
from dmgal.episodes.gallery.gallery import Gallery
from dmgal.episodes.gallery.texts import no_clips
from dmgal.episodes.heads import TextFusion
from dmgal.episodes.recognizer import Head
from dmgal.errors import DmgalError, differences, refuse_differences
from dmgal.recipes.run.cli_errors import used_flags
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.encoding import EncodedSplit, launched_device
from dmgal.recipes.run.ranges import Range
from dmgal.recipes.run.text_lora import encoder_name, learns_text, text_encoder, text_lora_of, trainable_encoder
from dmgal.videos import VideoCatalog

WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
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

    def check_use(self) -> None:
        """Raise a DmgalError for options that have no effect, because text is not used."""
        others = {"weight": self.weight, "template": self.template or None, "descriptions": self.descriptions}
        if self.use == "no" and (flags := used_flags({f"--text.{name}": value for name, value in others.items()})):
            raise DmgalError(
                "These options of the text have no effect.",
                received=f"{flags} with --text.use no",
                expected="--text.use fuse or only, or no other options of the text",
                remedy="Pass --text.use fuse, or remove the other options.",
            )

    def encode(self, recipe: Recipe, class_names: Sequence[str], lora: Path | None = None) -> ClassTexts:
        """Return the text features of classes by the text tower of a recipe's backbone.

        Args:
            recipe, class_names: the backbone, and the classes.
            lora: folder of a trained LoRA of the tower.

        Raises:
            DmgalError: the backbone has no text tower, or a name, template or description cannot be used.
        """
        descriptions = None if self.descriptions is None else read_descriptions(self.descriptions)
        encoder = text_encoder(recipe, lora)
        texts = encode_class_names(encoder, class_names, self.template or TEMPLATES, descriptions)
        weight = texts.weight if self.weight is None else self.weight
        return replace(texts, weight=weight, encoder=encoder_name(recipe, lora))


def with_text(recognizer: FewShotRecognizer, recipe: Recipe, texts: ClassTexts, is_only: bool) -> FewShotRecognizer:
    """Return the recognizer with the text logits added to those of its head, or with the text logits alone.

    Raises:
        DmgalError: the recognizer relates the videos of a task, or its features cannot be compared with the text.
    """
    encoder: Any = recognizer.encoder
    if learns_text(recognizer) and not is_only:  # its own features were trained to be compared with text
        head = TextFusion(recognizer.head, texts)
    elif is_only and text_lora_of(recognizer) is not None:  # the text itself was trained with these features
        _check_streams(encoder)
        head = TextFusion(None, texts)
    elif is_only:
        encoder, head = StreamEncoder([_frozen(encoder, recipe)], adapted=[False]), TextFusion(None, texts)
    elif _starts_with_frozen_features(encoder, recipe):
        head = TextFusion(recognizer.head, texts)
    else:
        _check_streams(encoder)
        encoder = StreamEncoder([_frozen(encoder, recipe), encoder], adapted=[False, True])
        head = TextFusion(recognizer.head, texts, has_own_stream=True)
    return FewShotRecognizer(encoder, cast(Head, head)).eval()


def give_texts(recognizer: FewShotRecognizer, recipe: Recipe, catalog: VideoCatalog) -> None:
    """Give a head that learns from text the texts of all classes before its training, and a tower that is trained.

    Raises:
        DmgalError: the text cannot be used, or the recipe has a LoRA of the text tower that nothing would train.
    """
    has_lora = recipe.text.lora is not None
    if has_lora or (learns_text(recognizer) and recipe.train.steps):
        encoder = trainable_encoder(recognizer, recipe)
        texts = encode_class_names(encoder, catalog.class_names)
        base_classes, head = catalog.split("train").class_names, cast(Any, recognizer.head)
        head.use_texts(texts, base_classes, *([TextTower(encoder)] if has_lora else []))


def with_own_texts(
    recognizer: FewShotRecognizer, states: PrecomputedStates, catalog: VideoCatalog
) -> PrecomputedStates:
    """Return states of a catalog's videos with the text that was given to the head, if any.

    A text tower that is trained computes it by its current weights, in full precision as in an evaluation.
    """
    texts: ClassTexts | None = getattr(recognizer.head, "class_texts", None)
    tower = getattr(recognizer.head, "text_tower", None)
    if texts is not None and tower is not None:
        texts = texts.select(catalog.class_names)
        with torch.no_grad(), torch.autocast(next(tower.parameters()).device.type, enabled=False):
            texts = replace(texts, features=tower(texts).float().cpu())
    return states if texts is None else with_support_texts(states, catalog, texts)


def with_gallery_texts(recognizer: FewShotRecognizer, recipe: Recipe, gallery: Gallery) -> FewShotRecognizer:
    """Return the recognizer of a gallery's run with the text of the gallery, if any. No text tower is loaded."""
    if gallery.texts is None:
        return recognizer
    return with_text(recognizer, recipe, gallery.texts, is_only=not len(gallery))


def texts_to_add(
    options: TextOptions,
    recognizer: FewShotRecognizer,
    recipe: Recipe,
    gallery: Gallery | None,
    class_names: Sequence[str],
    is_only: bool,
) -> ClassTexts | None:
    """Return the texts of classes to enroll, or None if they are enrolled without text.

    The text tower is not loaded if the gallery has the texts of all these classes.

    Args:
        options: templates and weight count for a new gallery. Otherwise they are those of the gallery.
        recognizer, recipe: of the run. A head that has learned from text gets the text, also if no logits are added.
        gallery: the gallery to add to, if any.
        class_names: the classes to enroll.
        is_only: True if they have no clips.
    """
    is_wanted = options.use != "no" or is_only or (gallery is not None and gallery.texts is not None)
    if not class_names or not (is_wanted or learns_text(recognizer)):
        return None
    if not is_wanted:
        options = replace(options, weight=0.0)
    if gallery is not None and gallery.texts is not None:
        _check_same(options, gallery.texts)
        if {*class_names} <= {*gallery.class_names} and options.descriptions is None:
            return gallery.texts.select(class_names)  # further clips of known classes need no text tower
        options = replace(options, template=gallery.texts.templates, weight=gallery.texts.weight)
    return options.encode(recipe, class_names, text_lora_of(recognizer))


def _check_same(options: TextOptions, texts: ClassTexts) -> None:
    """Raise a DmgalError for templates or a weight that differ from those of the gallery to add to."""
    changes = differences(
        {"weight": texts.weight, "template": texts.templates},
        {
            "weight": texts.weight if options.weight is None else options.weight,
            "template": options.template or texts.templates,
        },
    )
    remedy = "Omit these options, or make a new gallery."
    refuse_differences(changes, "A gallery has the same prompts and weight for all its classes.", remedy)


def gallery_of_names(texts: ClassTexts, made_with: Mapping[str, str]) -> Gallery:
    """Return a gallery of class names alone."""
    nothing = torch.empty(0, dtype=torch.int64)
    states = no_clips(texts)
    return Gallery(texts.class_names, nothing, (), (), states, states, nothing, made_with, texts=texts)


def _frozen(encoder: Any, recipe: Recipe) -> object:
    """Return an encoder of the frozen backbone with its own pooling, once its adapters are switched off."""
    first = _first(encoder)
    if recipe.backbone.trainable:
        return FrameEncoder(load_backbone(recipe.backbone.name))
    return first if isinstance(first, FrameEncoder) and first.pooling is None else FrameEncoder(first.backbone)


def _starts_with_frozen_features(encoder: Any, recipe: Recipe) -> bool:
    """Return True if the first channels of the features are those of the frozen backbone."""
    first = _first(encoder)
    is_adapted = adapted_modules(first.backbone) and (encoder is first or encoder.adapted[0])
    return not is_adapted and not recipe.backbone.trainable and first is _frozen(first, recipe)


def _first(encoder: object) -> Any:
    return encoder.streams[0] if isinstance(encoder, StreamEncoder) else encoder


def _check_streams(encoder: Any) -> None:
    if encoder.has_task_layer or getattr(encoder, "pooling", None) == "map":
        reason = "a Cmga, which relates the videos of a task" if encoder.has_task_layer else "maps"
        raise DmgalError(
            "This run cannot be combined with text.",
            received=f"features of the run: {reason}",
            expected="frame features that do not depend on a task",
            remedy="Use a run of method/smga, method/motion, method/frozen or another one without a Cmga and maps.",
        )


def with_class_texts(encoded: EncodedSplit, texts: ClassTexts) -> EncodedSplit:
    """Return the split with the text features of each video's class, for use as support."""
    return replace(encoded, states=with_support_texts(encoded.states, encoded.catalog, texts))


def with_support_texts(states: PrecomputedStates, catalog: VideoCatalog, texts: ClassTexts) -> PrecomputedStates:
    """Return the states of a catalog's videos with the text features of their classes."""
    features = texts.select(catalog.class_names).features
    return states.with_support(class_text=features[torch.from_numpy(catalog.labels.copy())])


def choose_weight(
    recognizer: FewShotRecognizer, encoded: EncodedSplit, n_way: int, k_shot: int, n_query: int, episodes: int
) -> dict[float, float]:
    """Return the accuracy in percent of each of `WEIGHTS` on the same episodes, and set the best one on the head.

    The smallest weight wins a tie.
    """
    head, catalog, accuracies = cast(TextFusion, recognizer.head), encoded.catalog, dict[float, float]()
    ways = min(n_way, len(catalog.class_names))
    sampler = EpisodeSampler(catalog.labels, ways, k_shot, n_query, episodes, 0, catalog.class_names, catalog.groups)
    for weight in WEIGHTS:
        head.weight = weight
        result = evaluate(recognizer, encoded.states, sampler, launched_device(), progress=False, dtype=encoded.dtype)
        accuracies[weight] = round(result.accuracy.mean, 3)
    head.weight = max(accuracies, key=lambda weight: (accuracies[weight], -weight))
    return accuracies


def text_as_json(
    options: TextOptions, texts: ClassTexts, weight: float | None, validation: Mapping[float, float] | None = None
) -> dict[str, object]:
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
    """Return one line about the text of a result, from `text_as_json` or of a head that learned from text."""
    if text["use"] == "support":
        return f"class names of support videos, by {text['encoder']}"
    prompts = f"{len(text['templates'])} prompts per class by {text['encoder']}"
    if text["use"] == "only":
        return f"class names alone, {prompts}"
    chosen = "chosen on validation classes" if text["weight_on_validation"] else "as given"
    return f"class names and clips, {prompts}, weight {text['weight']:g} {chosen}"

"""The text towers of CLIP, SigLIP and SigLIP 2, and class names as features of such a tower.

``load_text_encoder`` in ``families`` loads the text tower that belongs to a backbone. Each class is described by
several prompts, as in CLIP (Radford et al., ICML 2021): its features are the normalized mean of the normalized features
of its prompts. They are computed once, and recognition does not need the text tower.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import DmgalError
from ..files import UNREADABLE, listed, printable, read_text, reason
from ..names import alike, comparable, readable

logger = logging.getLogger(__name__)

TEMPLATES = (
    "{}",
    "a video of {}",
    "a photo of a person {}",
    "a person is {}",
    "the action of {}",
    "a frame of a video that shows {}",
)
"""Default prompts. A class name replaces ``{}``."""
PROMPTS_AT_A_TIME = 64


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A text tower with its tokenizer.

    Attributes:
        name: the backbone that it belongs to, as in ``load_backbone(name)``.
        model: the CLIP or SigLIP without its visual tower, frozen, except for what an adapter adds.
        context_length: maximum number of tokens of a prompt, including start and end.
        logit_scale, logit_bias: the model's logits are ``scale * cosine + bias``.
        tokens: returns the token ids of a text, with start and end, not truncated.
        embed: returns the library's own text features ``(P, D)`` of ``P`` texts, not normalized.
        unknown_token: id of words that the tokenizer does not know, or None if it knows all.
    """

    name: str
    model: nn.Module
    context_length: int
    logit_scale: float
    logit_bias: float
    tokens: Callable[[str], list[int]]
    embed: Callable[[list[str]], Tensor]
    unknown_token: int | None = None

    @classmethod
    def of(cls, model: Any, **fields: Any) -> TextEncoder:
        """Return the encoder of a CLIP or SigLIP, which is frozen, with the model's own scale and bias."""
        model.eval().requires_grad_(False)
        bias = getattr(model, "logit_bias", None)
        scale, bias = model.logit_scale.exp().item(), 0.0 if bias is None else bias.item()
        return cls(model=model, logit_scale=scale, logit_bias=bias, **fields)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the features ``(P, D)`` of ``P`` texts, not normalized, at least float32.

        Raises:
            DmgalError: a text has more tokens than the tower reads. The libraries would truncate it silently.
        """
        counts = [len(self.tokens(text)) for text in texts]
        long = [f"{text!r} ({n} tokens)" for text, n in zip(texts, counts, strict=True) if n > self.context_length]
        if long:
            raise DmgalError(
                f"The text tower of {self.name} cannot read a prompt to its end.",
                received=listed(long),
                expected=f"at most {self.context_length} tokens",
                remedy="Shorten the class name, the description or the template.",
            )
        parts = [texts[start : start + PROMPTS_AT_A_TIME] for start in range(0, len(texts), PROMPTS_AT_A_TIME)]
        features = torch.cat([self.embed(list(part)) for part in parts])
        return features.to(torch.promote_types(features.dtype, torch.float32))


@dataclass(frozen=True, eq=False)
class ClassTexts:
    """Text features of classes.

    Attributes:
        class_names: ``(C,)``, as in the data.
        features: ``(C, D)``, normalized.
        logit_scale, logit_bias: those of the text encoder.
        encoder: name of the text encoder.
        templates: the templates of the prompts.
        weight: factor of the text logits if they are added to those of clips.
        descriptions: further prompts of each class, ``(C,)``, or empty if there are none.
    """

    class_names: tuple[str, ...]
    features: Tensor
    logit_scale: float
    logit_bias: float
    encoder: str
    templates: tuple[str, ...] = TEMPLATES
    weight: float = 1.0
    descriptions: tuple[tuple[str, ...], ...] = ()

    def logits(self, frames: Tensor) -> Tensor:
        """Return zero-shot logits ``(V, C)`` of projected frame features ``(V, T, D)``.

        Raises:
            DmgalError: the features have another width, so they belong to another model.
        """
        return self.logits_of(mean_frame(frames))

    def logits_of(self, videos: Tensor) -> Tensor:
        """Return zero-shot logits ``(V, C)`` of videos ``(V, D)`` from `mean_frame`."""
        self.check_width(videos.shape[-1])
        return cosine_logits(videos, self.features, self.logit_scale, self.logit_bias)

    def check_width(self, width: int) -> None:
        """Raise a DmgalError if image features of this width cannot be compared with the text features."""
        if width != self.features.shape[-1]:
            raise DmgalError(
                "These image features cannot be compared with text.",
                received=f"{width} channels per frame, text features of {self.encoder} with {self.features.shape[-1]}",
                expected="the projected features of the same model (pooling=None)",
                remedy=f"Use the backbone {self.encoder} with its own pooling.",
            )

    def prompts(self) -> list[list[str]]:
        """Return the prompts of each class: its name in the templates, and its descriptions."""
        more = self.descriptions or [()] * len(self.class_names)
        return [
            [template.replace("{}", readable(name)) for template in self.templates] + [*extra]
            for name, extra in zip(self.class_names, more, strict=True)
        ]

    def select(self, class_names: Sequence[str]) -> ClassTexts:
        """Return the texts of some classes, in the order of ``class_names``. All of them must be known."""
        rows = [self.class_names.index(name) for name in class_names]
        descriptions = tuple(self.descriptions[row] for row in rows) if self.descriptions else ()
        return replace(self, class_names=tuple(class_names), features=self.features[rows], descriptions=descriptions)

    def added(self, other: ClassTexts) -> ClassTexts:
        """Return the texts with the new classes of another one from the same encoder appended.

        Raises:
            DmgalError: two names are the same words.
        """
        new = [name for name in other.class_names if name not in self.class_names]
        names = (*self.class_names, *new)
        check_class_names(names)
        more = other.select(new)
        features, descriptions = torch.cat([self.features, more.features]), self.descriptions + more.descriptions
        return replace(self, class_names=names, features=features, descriptions=descriptions)


def mean_frame(frames: Tensor) -> Tensor:
    """Return the mean ``(V, D)`` of a video's normalized frame features ``(V, T, D)``, at least float32."""
    frames = frames.to(torch.promote_types(frames.dtype, torch.float32))
    return functional.normalize(frames, dim=-1).mean(dim=1)


def encode_class_names(
    encoder: TextEncoder,
    class_names: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
    descriptions: Mapping[str, Sequence[str]] | None = None,
) -> ClassTexts:
    """Return the text features of classes, without gradients.

    Args:
        encoder: from ``load_text_encoder``.
        class_names: names as in the data. `readable` turns them into words, for example ``brush_hair`` and
            ``Pushing [something]``.
        templates: texts with one ``{}`` each, for the name.
        descriptions: further prompts of each class, by name, as from `read_descriptions`.

    Raises:
        DmgalError: there is no name, a name is empty, two are alike, a class has no description, a template has no
            place for the name, a prompt is too long, or the tokenizer cannot distinguish two classes.
    """
    phrases = [readable(name) for name in class_names]
    check_class_names(class_names)
    _check_templates(templates)
    texts = ClassTexts(
        class_names=tuple(class_names),
        features=torch.empty(0),
        logit_scale=encoder.logit_scale,
        logit_bias=encoder.logit_bias,
        encoder=encoder.name,
        templates=tuple(templates),
        descriptions=tuple(map(tuple, _descriptions_of(class_names, descriptions))),
    )
    prompts = texts.prompts()
    _check_words(encoder, class_names, phrases, is_described=descriptions is not None)
    _check_tokens(encoder, class_names, prompts)
    with torch.no_grad():
        return replace(texts, features=class_features(encoder, prompts))


def class_features(encoder: TextEncoder, prompts: Sequence[Sequence[str]]) -> Tensor:
    """Return the features ``(C, D)`` of classes: the normalized mean of the normalized features of their prompts."""
    features = functional.normalize(encoder.encode([text for texts in prompts for text in texts]), dim=-1)
    means = [part.mean(dim=0) for part in features.split([len(texts) for texts in prompts])]
    return functional.normalize(torch.stack(means), dim=-1)


def read_descriptions(path: Path) -> dict[str, list[str]]:
    """Return the descriptions of each class in a CSV with the columns ``class_name`` and ``description``.

    A class may have several rows.

    Raises:
        DmgalError: the file cannot be read, a column is missing, or a value is empty.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True))
    except (*UNREADABLE, csv.Error) as error:
        raise _unusable_descriptions(path, reason(error)) from error
    descriptions: dict[str, list[str]] = {}
    for number, row in enumerate(rows, start=2):
        name, text = ((row.get(column) or "").strip() for column in ("class_name", "description"))
        if not name or not text:
            raise _unusable_descriptions(path, f"row {number} without a class_name or a description")
        descriptions.setdefault(name, []).append(text)
    if not descriptions:
        raise _unusable_descriptions(path, "no rows")
    return descriptions


def cosine_logits(images: Tensor, texts: Tensor, scale: float, bias: float) -> Tensor:
    """Return ``scale * cosine + bias`` of image features ``(V, D)`` and normalized text features ``(C, D)``."""
    return scale * functional.normalize(images, dim=-1) @ texts.to(images.device, images.dtype).T + bias


def _unusable_descriptions(path: Path, received: str) -> DmgalError:
    return DmgalError(
        "The descriptions of the classes cannot be used.",
        received=f"{printable(str(path))}: {received}",
        expected="a CSV file with the columns class_name and description, and a value in each",
        remedy="Correct the file.",
    )


def check_class_names(class_names: Sequence[str]) -> None:
    """Raise a DmgalError if there is no name, a name has no letters, or two names are the same words."""
    phrases = [readable(name) for name in class_names]
    empty = [repr(name) for name, phrase in zip(class_names, phrases, strict=True) if not comparable(phrase)]
    if empty or not phrases:
        raise DmgalError(
            "A class needs a name to be described by text.",
            received=f"names without letters: {listed(empty)}" if phrases else "no class names",
            expected="words",
            remedy="Name each class.",
        )
    groups = [" and ".join(repr(class_names[index]) for index in group) for group in alike(phrases)]
    if groups:
        raise DmgalError(
            "Classes have the same name.",
            received=f"{listed(groups)}, which are the same words",
            expected="names that differ in more than case, blanks, underscores, brackets and accents",
            remedy="Rename one of them.",
        )


def _check_templates(templates: Sequence[str]) -> None:
    wrong = [repr(template) for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        raise DmgalError(
            "A template needs one place for the class name.",
            received=listed(wrong) if templates else "no templates",
            expected='texts such as "a video of {}"',
            remedy="Write {} once where the name belongs.",
        )


def _descriptions_of(class_names: Sequence[str], descriptions: Mapping[str, Sequence[str]] | None) -> list[list[str]]:
    """Return the descriptions of each class, or an empty list without any. Names are matched as by `comparable`."""
    if descriptions is None:
        return []
    by_name: dict[str, list[str]] = {}
    for name, texts in descriptions.items():
        by_name.setdefault(comparable(readable(name)), []).extend(texts)
    more = [by_name.get(comparable(readable(name)), []) for name in class_names]
    missing = [name for name, texts in zip(class_names, more, strict=True) if not texts]
    if missing:
        raise DmgalError(
            "Some classes have no description.",
            received=f"descriptions of {len(class_names) - len(missing)} of {len(class_names)} classes, none of "
            f"{listed(missing)}",
            expected="at least one description of each class, because classes with more prompts would be favored",
            remedy="Add a row for each of these classes, or use no descriptions.",
        )
    return more


def _check_tokens(encoder: TextEncoder, class_names: Sequence[str], prompts: Sequence[Sequence[str]]) -> None:
    """Refuse two classes whose prompts have equal tokens."""
    first: dict[tuple[tuple[int, ...], ...], str] = {}
    for name, texts in zip(class_names, prompts, strict=True):
        other = first.setdefault(tuple(tuple(encoder.tokens(text)) for text in texts), name)
        if other != name:
            raise DmgalError(
                f"The text tower of {encoder.name} cannot distinguish two classes.",
                received=f"{other!r} and {name!r}, whose prompts have the same tokens",
                expected="names or descriptions with words that the tokenizer knows",
                remedy="Use other words, add descriptions, or choose another backbone.",
            )


def _check_words(encoder: TextEncoder, class_names: Sequence[str], phrases: Sequence[str], is_described: bool) -> None:
    """Refuse names without any word that the tokenizer knows, unless they are described. Warn of unknown words."""
    if encoder.unknown_token is None:
        return
    marks = encoder.tokens("")
    words = [[token for token in encoder.tokens(phrase) if token not in marks] for phrase in phrases]
    unreadable = [name for name, tokens in zip(class_names, words, strict=True) if {*tokens} <= {encoder.unknown_token}]
    if unreadable and not is_described:
        raise DmgalError(
            f"The text tower of {encoder.name} knows no word of some class names.",
            received=listed(unreadable),
            expected="names with words that its tokenizer knows",
            remedy="Use other words, add descriptions, or choose another backbone.",
        )
    unknown = [name for name, tokens in zip(class_names, words, strict=True) if encoder.unknown_token in tokens]
    if unknown:
        logger.warning("the tokenizer of %s does not know all words of %s", encoder.name, listed(unknown))

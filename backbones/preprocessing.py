"""Image size and normalization of a backbone, from the configurations that its library stores.

Channel means and standard deviations are for pixel values in [0, 1].
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from ..errors import DmgalError

Channels = tuple[float, float, float]
LARGEST_SIDE, LARGEST_VALUE = 2**14, 1e6
"""Largest side of an image in pixels, and largest value of a normalization."""


class Normalization(NamedTuple):
    """Parameters of ``(image - mean) / std``."""

    mean: Channels
    std: Channels


OPENAI = Normalization((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def fill_normalization(default: Normalization, mean: object, std: object) -> Normalization:
    """Return the mean and std of a configuration, falling back to ``default`` for missing values.

    Raises:
        DmgalError: they are not a number, or one number for each of three channels.
    """
    means, stds = (_channels(value or own) for value, own in ((mean, default.mean), (std, default.std)))
    if means is None or stds is None or min(stds) <= 0:
        raise DmgalError(
            "The configuration of this backbone has wrong values.",
            received=f"mean: {mean!r}, std: {std!r}"[:300],
            expected="a number, or one number for each of three channels, and std greater than 0",
            remedy="Correct the file, or download the backbone again.",
        )
    return Normalization(means, stds)


def _channels(value: object) -> Channels | None:
    """Return a value for each of three channels, or None if the value has another form."""
    values = value if isinstance(value, (list, tuple)) else [value]
    if len(values) not in (1, 3) or not all(_is_number(one) for one in values):
        return None
    first, second, third = map(float, values if len(values) == 3 else [*values] * 3)
    return first, second, third


def _is_number(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and abs(value) < LARGEST_VALUE


class Preprocessing:
    """The ``preprocessor_config.json`` that ``load_backbone`` stored on a transformers model, in all its forms.

    Args:
        model: with the content of the file as attribute ``dmgal_preprocessing``, or without a file.
    """

    def __init__(self, model: nn.Module) -> None:
        self._values: dict[str, Any] = getattr(model, "dmgal_preprocessing", None) or {}

    def image_size(self, default: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of the images after the crop.

        Raises:
            DmgalError: the file has another form of sizes.
        """
        crops = self._values.get("do_center_crop", True)
        name = "crop_size" if crops and self._values.get("crop_size") else "size"
        size = self._values.get(name)
        if size is None:
            return default
        if isinstance(size, dict):
            edge = size.get("shortest_edge")
            size = [size.get("height", edge), size.get("width", edge)]
        sides = [size, size] if isinstance(size, int) else size
        if not (isinstance(sides, (list, tuple)) and len(sides) == 2 and all(_is_positive(side) for side in sides)):
            raise self._bad_value(name, "a number, [height, width], or shortest_edge, or height and width")
        return sides[0], sides[1]

    def normalization(self, default: Normalization) -> Normalization:
        """Return mean and standard deviation for pixel values in [0, 1].

        Raises:
            DmgalError: the file has another form of these values.
        """
        scale = self._values.get("rescale_factor", 1 / 255) if self._values.get("do_rescale", True) else 1.0
        mean, std = self._channels("image_mean", default.mean), self._channels("image_std", default.std)
        if not self._values.get("do_normalize", True):
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        if not _is_number(scale) or scale <= 0 or min(std) <= 0:
            raise self._bad_value("rescale_factor" if min(std) > 0 else "image_std", "numbers greater than 0")
        factor = 1.0 if abs(255 * scale - 1) < 1e-6 else 1 / (255 * scale)  # of pixels in [0, 1]
        return Normalization(_scaled(mean, factor), _scaled(std, factor))

    def _channels(self, name: str, default: Channels) -> Channels:
        value = self._values.get(name)
        channels = default if value is None else _channels(value)
        if channels is None:
            raise self._bad_value(name, "a number, or one number for each of three channels")
        return channels

    def _bad_value(self, name: str, expected: str) -> DmgalError:
        return DmgalError(
            "The preprocessor_config.json of this backbone cannot be used.",
            received=f"{name}: {self._values.get(name)!r}"[:300],
            expected=expected,
            remedy=f"Correct {name} in the file, or remove it.",
        )


def normalization_of(model: nn.Module) -> Normalization:
    """Return the normalization that timm or ``load_backbone`` stored on a model, or ImageNet's."""
    timm = getattr(model, "pretrained_cfg", None) or {}
    return Preprocessing(model).normalization(fill_normalization(IMAGENET, timm.get("mean"), timm.get("std")))


def _is_positive(side: object) -> bool:
    return isinstance(side, int) and not isinstance(side, bool) and 0 < side <= LARGEST_SIDE


def _scaled(channels: Channels, factor: float) -> Channels:
    return channels if factor == 1 else (channels[0] * factor, channels[1] * factor, channels[2] * factor)

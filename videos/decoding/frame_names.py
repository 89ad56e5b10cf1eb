"""The choice and order of a video's frames among the pictures of a folder or zip file, by their names alone.

Pictures whose names differ only in their numbers are one sequence. A folder may hold others beside the frames: optical
flow, masks, a thumbnail, the same frames in another format. Sequences that are named as such, and pictures without a
number, are left aside if one sequence remains. Otherwise the folder is refused, because a guess would be silent.

Numbers may be negative or decimal: ``frame_-1`` precedes ``frame_0``, and ``1.25`` precedes ``1.5``. ``1.9`` precedes
``1.10`` only if the part after the dot is a count of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise

from ...files import NAMES_SHOWN, listed, printable

_MARK = "\0"  # replaces a number in a pattern; no name contains it
# A hyphen is a sign at the start of a name, and after a character that separates words itself.
_NUMBER = re.compile(r"(?:(?<![^/_=])-)?[0-9]+(?:[.,][0-9]+)?")
_SIGNED = re.compile(r"-?[0-9]+(?:[.,][0-9]+)?")
_DIGITS_AS_ZEROS = str.maketrans("123456789", "000000000")
_BESIDE_FRAMES = re.compile(
    "(alpha|annotation|cover|depth|disparity|edge|flow[uvxy]?|heatmap|keypoint|label|mask|matte|normal|pose|poster"
    "|preview|saliency|seg|segm|segmentation|skeleton|thumb|thumbnail)s?"
)


def frame_sequence(names: Sequence[str]) -> list[str]:
    """Return the names of the frames in the order of their numbers.

    Args:
        names: of all pictures. Folders in a zip file are part of a name.

    Raises:
        ValueError: the pictures are several sequences, or two pictures have one number.
    """
    shape = names[0].translate(_DIGITS_AS_ZEROS) if names else ""
    if shape.isascii() and "-0" not in shape and all(name.translate(_DIGITS_AS_ZEROS) == shape for name in names):
        return sorted(names)  # digits at the same positions: the same order, ten times as fast
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_pattern(name), []).append(name)
    signed = _add_negative(groups)
    pattern = next(iter(groups)) if len(groups) == 1 else _choose(groups)
    return _ordered(groups[pattern], _SIGNED if pattern in signed else _NUMBER)


def _pattern(name: str) -> str:
    stem, _, extension = name.rpartition(".")
    extension = extension.lower()
    return f"{_NUMBER.sub(_MARK, stem)}.{'jpg' if extension == 'jpeg' else extension}"


def _add_negative(groups: dict[str, list[str]]) -> set[str]:
    """Add ``frame-1`` to the group of ``frame0``. Return the patterns whose numbers have signs by that."""
    signed = set()
    for pattern in [pattern for pattern in groups if f"-{_MARK}" in pattern]:
        before, _, after = pattern.rpartition(f"-{_MARK}")
        other = f"{before}{_MARK}{after}"
        # Without a zero among the positive numbers only, these are two sequences, as those of two cameras.
        if other in groups and _has_zero(groups[other]) and not _has_zero(groups[pattern]):
            groups[other] += groups.pop(pattern)
            signed.add(other)
    return signed


def _has_zero(names: Sequence[str]) -> bool:
    return any(not numbers[-1].strip("0.,") for numbers in map(_NUMBER.findall, names) if numbers)


def _choose(groups: dict[str, list[str]]) -> str:
    """Return the pattern of the frames."""
    words = {pattern: frozenset(re.findall("[a-z]+", pattern.lower())) for pattern in groups}
    common = frozenset.intersection(*words.values())
    numbered = [pattern for pattern in groups if _MARK in pattern]
    frames = [pattern for pattern in numbered if not any(map(_BESIDE_FRAMES.fullmatch, words[pattern] - common))]
    if len(frames) == 1:
        prefix = frames[0].partition(_MARK)[0].rstrip(" _-.(").lower()
        # A name without a number, such as img.jpg beside img_1.jpg, may be the first frame.
        extends = any(pattern.rpartition(".")[0].lower() == prefix for pattern in groups if _MARK not in pattern)
        if not extends and len(groups[frames[0]]) >= min(2, max(map(len, groups.values()))):
            return frames[0]
    examples = [_example(group) for group in list(groups.values())[:NAMES_SHOWN]]
    more = "; ..." if len(groups) > NAMES_SHOWN else ""
    raise ValueError(f"its pictures are {len(groups)} sequences, not one: {'; '.join(examples)}{more}")


def _example(group: Sequence[str]) -> str:
    more = f" and {len(group) - 1} more" if len(group) > 1 else ""
    return f"{printable(group[0])}{more}"


def _ordered(names: list[str], number: re.Pattern[str]) -> list[str]:
    """Return the names of one pattern in the order of their numbers."""
    columns = zip(*(number.findall(name.rpartition(".")[0]) for name in names), strict=True)
    keys = list(zip(*map(_keys, columns), strict=True)) or [()] * len(names)
    order = sorted(range(len(names)), key=lambda index: (keys[index], names[index]))
    for first, second in pairwise(order):
        if keys[first] == keys[second]:
            raise ValueError(f"two pictures have one number: {listed([names[first], names[second]])}")
    return [names[index] for index in order]


def _keys(numbers: Sequence[str]) -> list[tuple[Decimal, ...]]:
    """Return sort keys of the numbers at one position of all names: values, or pairs of counts such as ``1.10``."""
    parts = [re.split("[.,]", number) for number in numbers]
    values: list[tuple[Decimal, ...]] = [(Decimal(".".join(part)),) for part in parts]
    counts: list[tuple[Decimal, ...]] = [tuple(map(Decimal, part)) for part in parts]
    fractions = {part[1] for part in parts if len(part) > 1}
    # Two decimals with one value, or of different lengths with a zero at the end, are counts.
    rounded = [text for text in fractions if len(text) > 1 and text.strip("0") and text.endswith("0")]
    are_counts = bool(rounded) and len(set(map(len, fractions))) > 1
    return counts if are_counts or len(set(values)) < len(set(counts)) else values

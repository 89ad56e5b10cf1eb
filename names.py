"""Names of classes: when two of them mean the same class, and how a name reads in a sentence.

Data sets write names as ``brush_hair``, ``ApplyEyeMakeup``, ``air drumming`` or ``Pushing [something] off of
[something]``. Names are always NFKC-normalized, so equal letters are equal code points.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_BLANKS = re.compile(r"[\s_]+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_BRACKETS = re.compile(r"[\[\]{}]")


def comparable(name: str) -> str:
    """Return a form that is equal for names that differ only in case, blanks, underscores or forms of letters.

    Invisible marks are removed: joiners, directions of text, soft hyphens.
    """
    letters = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    letters = "".join(letter for letter in letters if unicodedata.category(letter) != "Cf")
    return _BLANKS.sub(" ", letters).strip()


def readable(name: str) -> str:
    """Return a name as it reads in a sentence, in lower case, for example ``apply eye makeup`` for ``ApplyEyeMakeup``.

    Underscores become blanks, and the brackets of Something-Something's placeholders are removed. Only a name of one
    word is divided at its capital letters.
    """
    text = _BLANKS.sub(" ", _BRACKETS.sub("", unicodedata.normalize("NFKC", name))).strip()
    if " " not in text:
        text = _HUMP.sub(" ", text)
    return text.lower()


def alike(names: Iterable[str]) -> list[list[int]]:
    """Return the indices of each group of names that mean the same class, see `comparable`."""
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(comparable(name), []).append(index)
    return [indices for indices in groups.values() if len(indices) > 1]

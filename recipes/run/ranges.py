"""Ranges of the numbers in recipes and commands, as annotations of their fields."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_type_hints

from dmgal.errors import DmgalError


@dataclass(frozen=True)
class Range:
    """Bounds in the annotation of a numeric field, or of each number of a pair. None always passes, NaN never."""

    least: float
    most: float


STEPS, TASKS, SEEDS = 10**9, 10**4, 2**63 - 1
"""Largest number of steps, of tasks, classes and videos of one step, and of a seed."""
WORKERS = 1024
"""Largest number of processes of a command on one machine."""
MOST_OF_AN_OPTION = 2**16
"""Largest whole number of an option of an adapter or head, most of which are sizes of tensors."""


def check_ranges(section: str, config: object) -> None:
    """Raise a DmgalError if a value of a section of the recipe, or of the options of a command, is out of its range."""
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        for bounds in getattr(hint, "__metadata__", ()):
            value = getattr(config, name)
            if not isinstance(bounds, Range) or value is None:
                continue
            for number in value if isinstance(value, tuple) else (value,):
                if not number >= bounds.least:
                    raise out_of_range(section, name, value, f"at least {bounds.least:,}")
                if number > bounds.most:
                    raise out_of_range(section, name, value, f"at most {bounds.most:,}")


def check_options(section: str, options: Mapping[str, object]) -> None:
    """Raise a DmgalError if a number among the options of an adapter, head or loss is too large or not finite."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            check_options(f"{section}.{name}", value)
        for number in value if isinstance(value, list | tuple) else (value,):
            is_large = isinstance(number, int) and abs(number) > MOST_OF_AN_OPTION
            if is_large and not re.search("seed|prng", name):
                raise out_of_range(section, name, number, f"at most {MOST_OF_AN_OPTION:,}")
            if isinstance(number, float) and not math.isfinite(number):
                raise out_of_range(section, name, number, "a finite number")


def out_of_range(section: str, name: str, value: object, expected: str) -> DmgalError:
    """Return the error for a value of a section of the recipe, or of an option of a command if there is no section."""
    key = f"{section}.{name}" if section else f"--{name.replace('_', '-')}"
    shown = f"{value:g}" if isinstance(value, float) else value
    return DmgalError(
        f"`{key}` must be {expected}, got `{value}`.",
        received=f"{key}: {value}" if section else f"{key} {shown}",
        expected=expected,
        remedy=f"Change or remove {key}.",
    )

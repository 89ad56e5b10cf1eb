"""Plug-ins: modules from outside of dmgal that add adapters, heads, backbones, data sets and commands to registries.

An installed distribution names its modules as entry points of the group ``dmgal.plugins``. The environment variable
``DMGAL_PLUGINS`` names further modules, and ``DMGAL_DISABLED_PLUGINS`` distributions to leave out, both separated by
commas. Every command imports these modules first, also in each process that a launcher starts. ``import dmgal`` does
not: a script imports the modules that it needs, or calls `load_plugins`.
"""

from __future__ import annotations

import os
import re
import sys
from functools import lru_cache
from importlib import import_module
from importlib.metadata import Distribution, EntryPoint, entry_points

from dmgal.errors import DmgalError, first_line

GROUP = "dmgal.plugins"
NAMED, DISABLED = "DMGAL_PLUGINS", "DMGAL_DISABLED_PLUGINS"
"""Environment variables."""


def load_plugins(*, installed: bool = True) -> None:
    """Import the modules of the installed plug-ins, and those that ``DMGAL_PLUGINS`` names.

    Args:
        installed: False imports only those that the variable names.

    Raises:
        DmgalError: a module cannot be imported.
    """
    for distribution, entry in _installed() if installed else ():
        _load(distribution, entry)
    for name in _names(NAMED):
        try:
            import_module(name)
        except ImportError as error:
            raise DmgalError(
                "A plug-in cannot be imported.",
                received=f"{NAMED}={name}: {error}",
                expected="names of modules, separated by commas",
                remedy="Install it, or add its folder to PYTHONPATH.",
            ) from error


def described_plugins() -> dict[str, str]:
    """Return the summary of each installed plug-in, by its name and version. Nothing is imported."""
    return {f"{one.name} {one.version}": " ".join(one.metadata.get_all("Summary", [])) for one, _ in _installed()}


def plugin_versions() -> dict[str, str]:
    """Return the version of each installed plug-in by name."""
    return {distribution.name: distribution.version for distribution, _ in _installed()}


def _load(distribution: Distribution, entry: EntryPoint) -> None:
    try:
        entry.load()
    except Exception as error:  # the code of others
        name = distribution.name
        raise DmgalError(
            "An installed plug-in cannot be imported.",
            received=f"{entry.value} of {name} {distribution.version}: {type(error).__name__}: {first_line(error)}",
            expected="a module that fits this version of dmgal",
            remedy=f"Update or uninstall {name}. To start without it, set {DISABLED}={name}.",
        ) from error


def _installed() -> tuple[tuple[Distribution, EntryPoint], ...]:
    return _found(tuple(sys.path), frozenset(map(_normalized, _names(DISABLED))))


@lru_cache(maxsize=1)
def _found(path: tuple[str, ...], disabled: frozenset[str]) -> tuple[tuple[Distribution, EntryPoint], ...]:
    """Return the entry points on Python's path by distribution, sorted by name. A search takes 15 ms."""
    pairs = [(entry.dist, entry) for entry in entry_points(group=GROUP) if entry.dist is not None]
    enabled = [pair for pair in pairs if _normalized(pair[0].name) not in disabled]
    return tuple(sorted(enabled, key=lambda pair: (_normalized(pair[0].name), pair[1].name)))


def _names(variable: str) -> list[str]:
    return [name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()]


def _normalized(name: str) -> str:
    """Return the form in which equal names of distributions are equal."""
    return re.sub(r"[-_.]+", "-", name).lower()

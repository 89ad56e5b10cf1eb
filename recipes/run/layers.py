"""Layers of a recipe: YAML files, found by name or path, merged and converted to dataclasses.

Absolute paths are kept apart from a recipe, so that a run folder can be shared:

    recipe.yaml   data: {root: ssv2}
    paths.yaml    data.root: /disk/ssv2

Without ``paths.yaml``, the path in the recipe is relative to the working folder.
"""

from __future__ import annotations

import collections.abc
import contextlib
import copy
import dataclasses
import os
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml

from dmgal.errors import DmgalError
from dmgal.videos.catalog.lists import STANDARD_SPLITS

T = TypeVar("T")
Tree = dict[str, Any]
KINDS = {"adapter": "peft_type", "head": "name"}
"""Sections that select one of several classes, and the key that names it."""
PER_DATA = "per_data"
"""Section of a method layer with its values for each data set, by ``data.name``."""


def bundled_layers() -> list[str]:
    """Return the names of the YAML files that ship with dmgal, e.g. ``method/dmgal_adapter``."""
    root = Path(str(files("dmgal.recipes").joinpath("configs")))
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    return sorted(name for name in names if not name.startswith("launch/"))  # files for Accelerate


def read_layer(name: str) -> Tree:
    """Return the layer with a bundled name or a path.

    Raises:
        DmgalError: it does not exist, or it is not a YAML mapping.
    """
    bundled = Path(str(files("dmgal.recipes").joinpath("configs"))) / f"{name}.yaml"
    path = bundled if name in bundled_layers() else Path(name)
    if not path.is_file():
        nearest = get_close_matches(name, bundled_layers(), n=1)
        raise DmgalError(
            "This recipe layer was not found.",
            received=name,
            expected=f"a path to a YAML file, or one of {', '.join(bundled_layers())}",
            remedy=f"Check the name: did you mean {nearest[0]}?"
            if nearest
            else "Check the name. Layers precede flags.",
        )
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise _bad_layer(name, f"YAML that cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise _bad_layer(name, f"a {type(tree).__name__}")
    return tree


def merged(layers: Iterable[Tree]) -> Tree:
    """Merge layers, later ones on top.

    An adapter with another ``peft_type``, or a head with another ``name``, replaces the earlier one.

    The ``per_data`` values of a layer for the recipe's data set are applied right after that layer, in any order of
    the layers.
    """
    layers = list(layers)
    data = [layer["data"] for layer in layers if isinstance(layer.get("data"), dict)]
    names = [section["name"] for section in data if "name" in section]
    return _merge([part for layer in layers for part in _for_data(layer, names[-1] if names else None)])


def _for_data(layer: Tree, name: str | None) -> list[Tree]:
    """Return a layer without ``per_data``, followed by its values for the data set if there are any.

    Raises:
        DmgalError: ``per_data`` is malformed, or it lacks the benchmark. Data sets of the user need no entry.
    """
    plain = {key: value for key, value in layer.items() if key != PER_DATA}
    special = layer.get(PER_DATA, {})
    if not isinstance(special, dict) or not all(isinstance(values, dict) for values in special.values()):
        raise _bad_value(PER_DATA, special, "a mapping of data set names to values")
    if name in special:
        return [plain, special[name]]
    if special and name in STANDARD_SPLITS:
        raise DmgalError(
            f"The method has no values for {name}, and its defaults are for other data.",
            received=f"data.name: {name}",
            expected=f"one of {', '.join(special)}",
            remedy=f"Use one of these data sets, or copy the method's YAML file and add {name} to its {PER_DATA}.",
        )
    return [plain]


def _merge(layers: list[Tree]) -> Tree:
    result: Tree = {}
    for layer in layers:
        for section, mark in KINDS.items():
            if _is_another(result.get(section), layer.get(section), mark):
                del result[section]
        result = _on_top(result, layer)
    return result


def _on_top(below: Tree, above: Tree) -> Tree:
    both = {key for key in above if isinstance(above[key], dict) and isinstance(below.get(key), dict)}
    return {**below, **above, **{key: _on_top(below[key], above[key]) for key in both}}


def split_open_flags(argv: Sequence[str], sections: Sequence[str]) -> tuple[list[str], Tree]:
    """Split flags such as ``--adapter.bottleneck 24`` off a command line and parse their values as YAML."""
    rest: list[str] = []
    tree: Tree = {}
    words = iter(argv)
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        path = key.replace("-", "_")
        if not word.startswith("--") or not any(f"{path}.".startswith(f"{section}.") for section in sections):
            rest.append(word)
            continue
        value = value if equals else next(words, "--")
        if path in sections or value.startswith("--"):
            raise _bad_value(word, "nothing", "an option and its value, e.g. --head.center video")
        node: Any = _scalar(word, value)
        for part in reversed(path.split(".")):
            node = {part: node}
        tree = _on_top(tree, node)
    return rest, tree


def from_mapping(cls: type[T], tree: Mapping[str, Any], where: str = "") -> T:
    """Return a dataclass built from nested mappings. Unknown keys raise a DmgalError with a suggestion."""
    hints = typing.get_type_hints(cls)
    known = {entry.name for entry in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in tree:
        if key not in known:
            nearest = get_close_matches(str(key), known, n=1)
            raise DmgalError(
                "The recipe has an unknown key.",
                received=f"{where}{key}",
                expected=f"one of {', '.join(sorted(known))}",
                remedy=f"Check the key: did you mean {where}{nearest[0]}?" if nearest else "Remove the key.",
            )
    return cls(**{key: _converted(hints[key], value, f"{where}{key}") for key, value in tree.items()})


def to_mapping(value: Any) -> Any:
    """Return a value as plain YAML types. The inverse of ``from_mapping``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: to_mapping(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_mapping(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_mapping(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def _converted(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is typing.Annotated:
        return _converted(arguments[0], value, where)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        *others, last = (a for a in arguments if a is not type(None))
        for other in others:
            with contextlib.suppress(DmgalError):
                return _converted(other, value, where)
        return _converted(last, value, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise _bad_value(where, value, "a mapping")
        return from_mapping(kind, value, f"{where}.")
    if origin is collections.abc.Mapping:
        if not isinstance(value, Mapping):
            raise _bad_value(where, value, "a mapping of options, e.g. {name: BiMHM}")
        return {key: _converted(arguments[1], entry, f"{where}.{key}") for key, entry in value.items()}
    if kind is Any:
        return value
    if origin is typing.Literal:
        if value not in arguments:
            raise _bad_value(where, value, f"one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(arguments):
            raise _bad_value(where, value, f"a list of {len(arguments)}")
        return tuple(_converted(a, entry, where) for a, entry in zip(arguments, value, strict=True))
    return _plain(kind, value, where)


def _plain(kind: Any, value: Any, where: str) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3 as a string
        except ValueError:
            raise _bad_value(where, value, "a number") from None
    if isinstance(kind, type) and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise _bad_value(where, value, {int: "a whole number", str: "text", bool: "true or false"}.get(kind, str(kind)))
    return value


def _scalar(flag: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise _bad_value(flag, text, "a number, a word, true, false or a list such as [0, 1]") from None
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _is_another(below: Any, above: Any, mark: str) -> bool:
    both = isinstance(below, dict) and isinstance(above, dict)
    return both and mark in below and mark in above and below[mark] != above[mark]


def _bad_value(where: str, value: Any, expected: str) -> DmgalError:
    return DmgalError(
        "A value in the recipe has the wrong type.",
        received=f"{where}: {value!r}",
        expected=expected,
        remedy=f"Change the value of {where}.",
    )


def _bad_layer(name: str, received: str) -> DmgalError:
    return DmgalError(
        "This recipe layer cannot be read.",
        received=f"{name}: {received}",
        expected="a YAML mapping of recipe keys to values",
        remedy="Fix the file.",
    )


def set_apart(tree: Mapping[str, Any]) -> tuple[Tree, dict[str, str]]:
    """Return the mapping with absolute paths shortened to their last part, and the full paths by dotted key."""
    shared: Tree = copy.deepcopy(dict(tree))
    paths = dict(_absolute(shared))
    for key, path in paths.items():
        _put(shared, key, Path(path).name)
    return shared, paths


def put_back(tree: Mapping[str, Any], paths: Mapping[str, str]) -> Tree:
    """Return the mapping with its absolute paths restored. The inverse of ``set_apart``."""
    restored: Tree = copy.deepcopy(dict(tree))
    for key, path in paths.items():
        _put(restored, key, path)
    return restored


def _absolute(tree: Tree, prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            found += _absolute(value, f"{prefix}{key}.")
        elif isinstance(value, str) and os.path.isabs(value) and Path(value).name:
            found.append((f"{prefix}{key}", value))
    return found


def _put(tree: Tree, key: str, value: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        tree = tree[section]
    tree[last] = value

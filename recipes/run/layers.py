"""Layers of a recipe: YAML files, found by name or path, merged and converted to dataclasses.

Absolute paths are kept apart from a recipe, so that a run folder can be shared:

    recipe.yaml   data: {root: ssv2}
    paths.yaml    data.root: /disk/ssv2

Without ``paths.yaml``, the path in the recipe is relative to the working folder.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import os
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import dacite

from dmgal.errors import DmgalError
from dmgal.files import listed, parse_yaml, read_mapping
from dmgal.videos.catalog.lists import STANDARD_SPLITS

T = TypeVar("T")
Tree = dict[str, Any]
KINDS = {"adapter": "peft_type", "head": "name"}
"""Sections that select one of several classes, and the key that names it."""
START = "start"
"""Option of an adapter that names a trained one, which has its own options."""
LONGEST_PATH, LONGEST_NAME = 4096, 255
"""Largest numbers of characters of a path and of bytes of a name that file systems have."""
OPTION = re.compile("-[^0-9.]")
"""Beginning of an option on the command line. A negative number is a value."""
NUMBER = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?", re.IGNORECASE)
"""Further value of an option, unlike the name of a layer."""
PER_DATA = "per_data"
"""Section of a method layer with its values for each data set, by ``data.name``."""


def bundled_layers() -> list[str]:
    """Return the names of the YAML files that ship with dmgal, e.g. ``method/dmgal_adapter``."""
    root = _configs()
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    return sorted(name for name in names if not name.startswith("launch/"))  # files for Accelerate


def layer_list() -> str:
    """Return the names of the bundled layers as lines, and the folder of the launch files."""
    names = "\n".join(bundled_layers())
    return f"{names}\n\nfor accelerate launch --config_file, and for sbatch: {_configs() / 'launch'}"


def _configs() -> Path:
    return Path(str(files("dmgal.recipes").joinpath("configs")))


def read_layer(name: str) -> Tree:
    """Return the layer with a bundled name or a path.

    Raises:
        DmgalError: it does not exist, or it is not a YAML mapping.
    """
    bundled = _configs() / f"{name}.yaml"
    path = bundled if name in bundled_layers() else Path(name)
    if not os.path.exists(path):
        nearest = get_close_matches(name, bundled_layers(), n=1)
        raise DmgalError(
            "This recipe layer was not found.",
            received=name,
            expected=f"a path to a YAML file, or one of {', '.join(bundled_layers())}",
            remedy=f"Check the name: did you mean {nearest[0]}?"
            if nearest
            else "Check the name. Layers precede flags.",
        )
    problem, remedy = "This recipe layer cannot be read.", "Correct the file."
    return read_mapping(path, problem, remedy, parse_yaml, may_be_empty=True)


def merge_layers(layers: Iterable[Tree]) -> Tree:
    """Merge layers, later ones on top.

    An adapter with another ``peft_type`` or a ``start``, or a head with another ``name``, replaces the earlier one.

    The ``per_data`` values of a layer for the recipe's data set are applied right after that layer, in any order of
    the layers.
    """
    layers = list(layers)
    data = [layer["data"] for layer in layers if isinstance(layer.get("data"), dict)]
    names = [section["name"] for section in data if isinstance(section.get("name"), str)]
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
            if _is_another(result.get(section), layer.get(section), mark) or START in _options_of(layer, section):
                result.pop(section, None)
        result = _on_top(result, layer)
    return result


def _on_top(below: Tree, above: Tree) -> Tree:
    both = {key for key in above if isinstance(above[key], dict) and isinstance(below.get(key), dict)}
    return {**below, **above, **{key: _on_top(below[key], above[key]) for key in both}}


def split_open_flags(argv: Sequence[str], sections: Sequence[str]) -> tuple[list[str], Tree]:
    """Split flags such as ``--adapter.bottleneck 24`` off a command line and parse their values as YAML.

    Several numbers after a flag are a list.
    """
    rest: list[str] = []
    tree: Tree = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        path = key.replace("-", "_")
        if not word.startswith("--") or not any(f"{path}.".startswith(f"{section}.") for section in sections):
            rest.append(word)
            continue
        values = [value] if equals else [words.pop(0)] if words and not OPTION.match(words[0]) else []
        while not equals and values and words and NUMBER.fullmatch(words[0]):
            values.append(words.pop(0))
        if path in sections or not values:
            raise _bad_value(word, "nothing", "an option and its value, e.g. --head.center video")
        scalars = [_scalar(word, one) for one in values]
        *parents, name = path.split(".")
        node: Tree = {name: scalars[0] if len(scalars) == 1 else scalars}
        for part in reversed(parents):
            node = {part: node}
        tree = _on_top(tree, node)
    return rest, tree


def from_mapping(cls: type[T], tree: Mapping[str, object]) -> T:
    """Return a dataclass built from nested mappings. Unknown keys raise a DmgalError with a suggestion."""
    _check_keys(cls, tree)
    try:
        return dacite.from_dict(cls, tree, dacite.Config(type_hooks=TYPE_HOOKS))
    except dacite.WrongTypeError as error:
        raise _bad_value(str(error.field_path), error.value, _described(error.field_type)) from None
    except dacite.MissingValueError as error:
        raise DmgalError(
            "A required key is missing.",
            received=f"{listed(list(tree))}, without {error.field_path}",
            expected=f"{error.field_path}: {_described(typing.get_type_hints(cls).get(str(error.field_path)))}",
            remedy=f"Add {error.field_path}.",
        ) from None


def _check_keys(cls: type[object], tree: Mapping[str, object], where: str = "") -> None:
    kinds = typing.get_type_hints(cls)
    for key, value in tree.items():
        if key not in kinds:
            nearest = get_close_matches(str(key), kinds, n=1)
            raise DmgalError(
                "The recipe has an unknown key.",
                received=f"{where}{key}",
                expected=f"one of {', '.join(sorted(kinds))}",
                remedy=f"Check the key: did you mean {where}{nearest[0]}?" if nearest else "Remove the key.",
            )
        if dataclasses.is_dataclass(kinds[key]) and isinstance(value, Mapping):
            _check_keys(kinds[key], value, f"{where}{key}.")
        elif typing.get_origin(kinds[key]) is tuple and not isinstance(value, (list, tuple)):  # dacite iterates
            raise _bad_value(f"{where}{key}", value, _described(kinds[key]))


def _whole_number(value: object) -> object:
    if isinstance(value, bool):  # an int in Python
        raise dacite.WrongTypeError(int, value)
    return value


def _number(value: Any, key: str | None = None) -> float:
    with contextlib.suppress(TypeError, ValueError):
        if not isinstance(value, bool):
            return float(value)  # YAML reads 1e-3 as a string
    raise dacite.WrongTypeError(float, value, key)


def _pair(value: object) -> tuple[object, ...]:
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return tuple(value)
    raise dacite.WrongTypeError(tuple[float, float], value)


def _path(value: str) -> Path:
    try:
        is_long = len(value) > LONGEST_PATH or any(len(os.fsencode(part)) > LONGEST_NAME for part in Path(value).parts)
    except UnicodeEncodeError:  # half a character of UTF-16
        is_long = True
    if is_long:
        raise dacite.WrongTypeError(Path, value)
    return Path(value)


def _options(value: object) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    raise dacite.WrongTypeError(Mapping, value)


TYPE_HOOKS: dict[Any, Callable[[Any], Any]] = {
    int: _whole_number,
    float: _number,
    tuple[float, float]: _pair,
    Path: lambda value: _path(value) if isinstance(value, str) else value,
    Mapping[str, Any]: _options,
    Mapping[str, float]: lambda value: {key: _number(entry, key) for key, entry in _options(value).items()},
}
"""Conversions of YAML values to the types of fields."""
PLAIN_TYPES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}


def _described(kind: object) -> str:
    """Return the values that a field of this type accepts, for an error message."""
    origin, arguments = typing.get_origin(kind), [one for one in typing.get_args(kind) if one is not type(None)]
    if origin in (types.UnionType, typing.Union):
        return _described(arguments[-1])
    if Ellipsis in arguments:
        return f"a list, of which each is {_described(arguments[0])}"
    texts = {
        typing.Literal: f"one of {', '.join(map(repr, arguments))}",
        tuple: f"a list of {len(arguments)}",
        Mapping: "a mapping of options, e.g. {name: BiMHM}",
    }
    return "a mapping" if dataclasses.is_dataclass(kind) else (texts | PLAIN_TYPES).get(origin or kind, str(kind))


def to_mapping(value: object) -> Any:
    """Return a value as plain YAML types. The inverse of ``from_mapping``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: to_mapping(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_mapping(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_mapping(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def _scalar(flag: str, text: str) -> object:
    try:
        value = parse_yaml(text)
    except ValueError:
        raise _bad_value(flag, text, "a number, a word, true, false or a list such as [0, 1]") from None
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _options_of(layer: Tree, section: str) -> Tree:
    options = layer.get(section)
    return options if isinstance(options, dict) else {}


def _is_another(below: object, above: object, mark: str) -> bool:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return False
    return mark in below and mark in above and below[mark] != above[mark]


def _bad_value(where: str, value: object, expected: str) -> DmgalError:
    return DmgalError(
        "A value in the recipe has the wrong type.",
        received=f"{where}: {textwrap.shorten(repr(value), 200)}",
        expected=expected,
        remedy=f"Change the value of {where}.",
    )


def flat(tree: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """Return the values of nested mappings by dotted key."""
    pairs: list[tuple[str, object]] = []
    for key, value in tree.items():
        pairs += flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return pairs


def set_apart(tree: Mapping[str, object]) -> tuple[Tree, dict[str, str]]:
    """Return the mapping with absolute paths shortened to their last part, and the full paths by dotted key."""
    paths = {
        key: value for key, value in flat(tree) if isinstance(value, str) and os.path.isabs(value) and Path(value).name
    }
    return put_back(tree, {key: Path(path).name for key, path in paths.items()}), paths


def put_back(tree: Mapping[str, object], paths: Mapping[str, str]) -> Tree:
    """Return a copy of the mapping with its absolute paths restored. The inverse of ``set_apart``.

    Raises:
        DmgalError: a key of ``paths`` is not in the mapping, or its value is no path.
    """
    restored: Tree = copy.deepcopy(dict(tree))
    known = {key for key, value in flat(tree) if isinstance(value, str | None)}
    for key, path in paths.items():
        if key not in known or not isinstance(path, str | None):
            raise DmgalError(
                "The paths of this run do not fit its recipe.",
                received=f"paths.yaml with {key}: {textwrap.shorten(repr(path), 200)}",
                expected="paths by keys of recipe.yaml that have a path, e.g. data.root: /disk/videos",
                remedy="Correct paths.yaml, or delete it and pass --data.root.",
            )
        *sections, last = key.split(".")
        functools.reduce(dict.__getitem__, sections, restored)[last] = path
    return restored

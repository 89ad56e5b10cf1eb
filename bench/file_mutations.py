"""Damaged and forged copies of small files: trees of JSON and YAML, tables, lists, logs and safetensors headers.

Each change keeps the grammar of the file and alters one of its parts, or breaks the grammar at one point.
"""

from __future__ import annotations

import copy
import gzip
import json
import os
import random
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from dmgal.bench.fuzz import damaged

Tree = object
NUMBERS = (0, 1, -1, 2, 3, 7, 255, 1024, 10**6, 10**9, 2**31, 2**63, 2**64, -(2**63), 10**30, 1e-9, 0.5, 1e308, -0.0)
TEXTS = (
    *(
        "",
        " ",
        "x",
        "a" * 300,
        "a" * 70_000,
        "../..",
        "/",
        "/dev/zero",
        "~",
        "nul\0l",
        "\x1b[2J",
        "é",
        "e\u0301",
        "\ud800",
    ),
    *(
        "float32",
        "true",
        "None",
        "1e-3",
        "nan",
        "*",
        "%s%n",
        "{0}",
        "!!python/name:os.system",
        "hf:x/y",
        "train",
        "test",
    ),
)
INFINITE = float("inf")
OTHERS: tuple[object, ...] = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    [1, 2],
    ["a"],
    {"a": 1},
    float("nan"),
    INFINITE,
    -INFINITE,
)


def mutated(data: bytes, name: str, other: bytes, draw: random.Random) -> bytes:
    """Return a changed copy of a file's bytes.

    Args:
        data: the intact bytes.
        name: of the file; its ending selects the grammar.
        other: bytes of another file, for mixtures.
        draw: source of all choices.
    """
    if draw.random() < 0.08:
        return _whole_file(data, draw)
    if draw.random() < 0.12 and data and other:
        return damaged(data, other, draw)
    if name.endswith(".gz"):
        inner = mutated(gzip.decompress(data), name.removesuffix(".gz"), other, draw)
        return inner if draw.random() < 0.1 else gzip.compress(inner, 1)
    return GRAMMARS.get(Path(name).suffix, _changed_lines)(data, draw)


def become_special(path: Path, draw: random.Random) -> None:
    """Replace a file by a pipe, a socket, a device, a folder, a link to itself, a huge file, or nothing."""
    path.unlink()
    kind = draw.choice(["pipe", "socket", "device", "folder", "loop", "huge", "missing"])
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server, suppress(OSError):  # the path may be too long
            server.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(2**34)
    elif kind != "missing":
        path.symlink_to("/dev/zero" if kind == "device" else path)


def changed_tree(tree: Tree, draw: random.Random) -> Tree:
    """Return a copy of nested mappings and lists with one to three parts changed."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        places = list(_places(tree))
        if not places:
            return _value(tree, draw)
        parent, key = draw.choice(places)
        _change(parent, key, draw)
    return tree


def _places(tree: Tree) -> list[tuple[object, object]]:
    places, waiting = [], [tree]
    while waiting:
        node = waiting.pop()
        parts = (
            list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
        )
        places += [(node, key) for key, _ in parts]
        waiting += [part for _, part in parts]
    return places


def _change(parent: Any, key: Any, draw: random.Random) -> None:
    way = draw.choice(["value", "value", "value", "value", "delete", "rename", "swap", "wrap", "repeat", "deep"])
    if way == "delete":
        del parent[key]
    elif way == "rename" and isinstance(parent, dict):
        parent[draw.choice([f"{key}x", str(key)[:-1], key.upper(), "", " ", "a" * 300])] = parent.pop(key)
    elif way == "swap":
        other = draw.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        parent[key], parent[other] = parent[other], parent[key]
    elif way == "wrap":
        parent[key] = draw.choice([[parent[key]], {"a": parent[key]}, {str(key): parent[key]}])
    elif way == "repeat":
        parent[key] = [parent[key]] * draw.choice([2, 3, 1000])
    elif way == "deep":
        for _ in range(draw.choice([5, 31, 33, 99])):
            parent[key] = [parent[key]]
    else:
        parent[key] = _value(parent[key], draw)


def _value(value: object, draw: random.Random) -> object:
    if isinstance(value, bool):
        return draw.choice([not value, *OTHERS])
    if isinstance(value, int | float) and draw.random() < 0.7:
        return draw.choice([*NUMBERS, value + 1, -value, value * 2, float(value), str(value)])
    if isinstance(value, str) and draw.random() < 0.7:
        return draw.choice([*TEXTS, value[:-1], value + "x", value.upper(), value * 2, value + "\n", f" {value}"])
    return draw.choice([*NUMBERS, *TEXTS, *OTHERS])


def _changed_json(data: bytes, draw: random.Random) -> bytes:
    text = json.dumps(changed_tree(json.loads(data), draw), indent=draw.choice([None, 2]))
    return _changed_text(text, draw).encode("utf-8", "surrogatepass")


def _changed_yaml(data: bytes, draw: random.Random) -> bytes:
    tree = changed_tree(yaml.safe_load(data), draw)
    try:
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, default_flow_style=draw.choice([True, False]))
    except (yaml.YAMLError, RecursionError):
        text = json.dumps(tree)
    if draw.random() < 0.25:
        lines = text.split("\n")
        lines.insert(draw.randrange(len(lines) + 1), draw.choice(YAML_LINES))
        text = "\n".join(lines)
    return _changed_text(text, draw).encode("utf-8", "surrogatepass")


YAML_LINES = (
    *(
        "\tdata: 1",
        "a: *b",
        "a: &a [*a]",
        "a: !!python/object/apply:os.system [exit]",
        "a: !!binary aGk=",
        "? [a]\n: b",
    ),
    *(
        "a: 2026-13-41",
        "a: 1_000",
        "a: 0o17",
        "a: 1:30",
        "<<: {seed: 1}",
        "<<: [1]",
        "---",
        "...",
        "%YAML 9.9",
        "a: |\n  b",
    ),
    *(
        "a: !!set {b}",
        "a: !!omap [b: 1]",
        "a: !!float x",
        "a: !!int ''",
        "- a",
        "a: [b",
        "a: 'b",
        "a: @",
        "1: 2",
        "~: 1",
    ),
    "\n".join(["x0: &x0 [a, a, a]", *(f"x{n}: &x{n} [{', '.join(9 * [f'*x{n - 1}'])}]" for n in range(1, 9))]),
)


def _changed_text(text: str, draw: random.Random) -> str:
    """Return the text, sometimes with a character changed or another line end."""
    if draw.random() < 0.8 or not text:
        return text
    start = draw.randrange(len(text))
    return draw.choice(
        [
            text.replace("\n", "\r\n"),
            "\ufeff" + text,
            text[:start] + draw.choice("\0\t\"'{}[]:,#&*!%\x85\u2028") + text[start:],
            text[:start] + text[start + 1 :],
            text[:start],
            text + text,
        ]
    )


def _changed_lines(data: bytes, draw: random.Random) -> bytes:
    """Change the lines of a list, or the cells of a table."""
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    for _ in range(draw.choice([1, 1, 2, 5])):
        at = draw.randrange(len(lines))
        line = lines[at]
        cells = line.split(",")
        cell = draw.randrange(len(cells))
        way = draw.choice(["cell", "cell", "cell", "delete", "repeat", "blank", "more", "less", "quote", "delimiter"])
        if way == "cell":
            cells[cell] = str(_value(cells[cell], draw))
        elif way == "quote":
            cells[cell] = f'"{cells[cell]}'
        elif way == "more":
            cells.append("x")
        elif way == "less":
            cells.pop()
        changed = ",".join(cells)
        if way == "delimiter":
            changed = line.replace(",", draw.choice(";\t| "))
        lines[at : at + 1] = {"delete": [], "repeat": [line, line], "blank": ["", line]}.get(way, [changed])
        lines = lines or [""]
    return _changed_text("\n".join(lines), draw).encode("utf-8", "surrogatepass")


def _changed_log(data: bytes, draw: random.Random) -> bytes:
    """Change one line of a log of JSON."""
    lines = data.decode().splitlines()
    at = draw.randrange(len(lines))
    lines[at] = _changed_text(json.dumps(changed_tree(json.loads(lines[at]), draw)), draw)
    if draw.random() < 0.2:
        lines.insert(draw.randrange(len(lines) + 1), draw.choice(["", "null", "[]", "3", '{"step": 1', "[" * 60_000]))
    return ("\n".join(lines) + draw.choice(["\n", ""])).encode("utf-8", "surrogatepass")


def _changed_safetensors(data: bytes, draw: random.Random) -> bytes:
    """Change the header, with its right length or another one, or the length of the data."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(changed_tree(json.loads(data[8 : 8 + size]), draw)).encode("utf-8", "surrogatepass")
    length = draw.choice([len(header)] * 6 + [0, 1, len(header) + 1, 2**40, 2**63])
    body = data[8 + size :]
    body = draw.choice([body, body, body, body[:-1], body + b"x", body[: len(body) // 2], b""])
    return length.to_bytes(8, "little") + header + body


def _whole_file(data: bytes, draw: random.Random) -> bytes:
    return draw.choice(
        [
            *(
                b"",
                b"\n",
                b"\0" * 99,
                b"null",
                b"3",
                b'"a"',
                b"[]",
                b"{}",
                b"[1, 2]\n",
                b"NaN",
                b"\xff\xfe" + data[:99],
            ),
            *(b"[" * 60_000, b'{"a":' * 5000, b"9" * 5000, b"\xef\xbb\xbf" + data, data + data, bytes(range(256)) * 9),
            *(gzip.compress(data), gzip.compress(bytes(2**22)), data.decode("latin-1").encode("utf-16")),
            b"<!DOCTYPE html>\n<html>404</html>\n",
        ]
    )


GRAMMARS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": _changed_json,
    ".yaml": _changed_yaml,
    ".jsonl": _changed_log,
    ".safetensors": _changed_safetensors,
}

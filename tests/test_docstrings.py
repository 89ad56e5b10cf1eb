"""Docstrings of public methods, and shapes in those of every ``forward``. ruff requires those of functions."""

from __future__ import annotations

import ast
import re

from source_files import ROOT, parsed, python_files

SHAPE = re.compile(r"``\([^()]*,[^()]*\)``|``\(\.\.\.\)``")
CLASSES = [
    (path.relative_to(ROOT), node)
    for path in python_files(tests=False)
    for node in ast.walk(parsed(path))
    if isinstance(node, ast.ClassDef)
]
BASES = {node.name: [ast.unparse(base).partition("[")[0] for base in node.bases] for _, node in CLASSES}


def docstrings(node: ast.ClassDef) -> dict[str, str]:
    """Return the docstring of each method, or "" if it has none."""
    return {method.name: ast.get_docstring(method) or "" for method in node.body if isinstance(method, ast.FunctionDef)}


DOCUMENTED = {node.name: {name for name, text in docstrings(node).items() if text} for _, node in CLASSES}
OF_PROTOCOLS = {name for kind, bases in BASES.items() if "Protocol" in bases for name in DOCUMENTED[kind]}


def inherited(kind: str) -> set[str]:
    """Return the methods that a base class of ours documents."""
    return {name for base in BASES.get(kind, []) for name in DOCUMENTED.get(base, set()) | inherited(base)}


def test_public_methods_have_docstrings_of_their_own_or_of_a_base_class_or_protocol() -> None:
    missing = [
        f"{path}: {node.name}.{name}"
        for path, node in CLASSES
        for name, text in docstrings(node).items()
        if not text and not name.startswith("_") and not node.name.startswith("_")
        if name not in inherited(node.name) | OF_PROTOCOLS
    ]
    assert len(CLASSES) > 100
    assert missing == []


def test_every_forward_of_a_module_states_shapes() -> None:
    forwards = {
        f"{path}: {node.name}": docstrings(node)["forward"]
        for path, node in CLASSES
        if "forward" in docstrings(node) and "torch.autograd.Function" not in BASES[node.name]
    }
    assert len(forwards) > 20
    assert [name for name, text in forwards.items() if not SHAPE.search(text)] == []

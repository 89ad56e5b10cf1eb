"""Options of commands from dataclasses. ``--help`` shows the usual ones first, then the rare ones under a heading."""

from __future__ import annotations

import dataclasses
import io
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from typing import Annotated, Any, TypeVar, cast, get_origin

import tyro
from tyro.constructors import MISSING, MISSING_NONPROP, ConstructorRegistry, StructConstructorSpec, StructTypeInfo

from dmgal.errors import DmgalError

Options = TypeVar("Options")
RARE = "rare"
"""Mark of an option that few users need, in the annotation of its field."""
HEADING = "advanced:"
REQUIRED = (MISSING, MISSING_NONPROP)
"""Defaults of arguments without one, which tyro cannot hide."""


def read_options(kind: type[Options], words: Sequence[str], prog: str, description: str, **arguments: Any) -> Options:
    """Return the options of a command.

    Args:
        kind: dataclass of the options.
        words: the command line after the command.
        prog: the command.
        description: text above the options of ``--help``.
        arguments: more arguments of ``tyro.cli``.

    Raises:
        DmgalError: an argument is empty.
        SystemExit: after ``--help``, or with code 2 if a flag is refused.
    """
    if "" in words:  # as a path, it would be the working folder
        raise DmgalError(
            "An argument is empty.",
            received=f"{prog} {shlex.join(words)}",
            expected="a value in each argument",
            remedy="Check the variables of the shell, one of which may be unset.",
        )
    if "-h" not in words and "--help" not in words:
        return tyro.cli(kind, prog=prog, args=words, description=description, **arguments)
    with _only(rare=False), suppress(SystemExit):
        tyro.cli(kind, prog=prog, args=["--help"], description=description, **arguments)
    encoding = sys.stdout.encoding or "utf-8"  # decides the lines of boxes
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    with _only(rare=True), redirect_stdout(output), suppress(SystemExit):
        tyro.cli(kind, prog=prog, args=["--help"], description=HEADING, **arguments)
    output.seek(0)
    _, heading, rare = output.read().partition(HEADING)
    if re.search("--(?!help|-)\\w", rare):  # more options than --help
        print(f"{heading}{rare.rstrip()}")
    raise SystemExit(0)


def is_rare(hint: object) -> bool:
    """Return True if the annotation of a field has the mark."""
    return RARE in getattr(hint, "__metadata__", ())


def _only(rare: bool) -> ConstructorRegistry:
    """Return a context in which tyro shows only options with, or only those without, the mark."""
    registry = ConstructorRegistry()
    entered: list[StructTypeInfo] = []

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        if entered:  # tyro's own rules describe the fields
            return None
        entered.append(info)
        spec: Any = ConstructorRegistry.get_struct_spec(info)
        entered.clear()
        if not isinstance(spec, StructConstructorSpec):
            return spec
        fields = [
            one
            if _is_section(one.type) or is_rare(one.type) == rare or one.default in REQUIRED
            else dataclasses.replace(one, type=cast(Any, Annotated[one.type, tyro.conf.Suppress]))
            for one in spec.fields
        ]
        return dataclasses.replace(spec, fields=tuple(fields))

    return registry


def _is_section(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint.__origin__ if get_origin(hint) is Annotated else hint)

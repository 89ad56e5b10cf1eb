"""How a recipe ends: the user's mistakes are one message and exit code 2, an interruption is one line and 130.

It serves every way of starting a recipe alike: ``dmgal train``, ``python -m dmgal.recipes.train``,
``accelerate launch recipes/train.py`` and ``torchrun``. Errors of ours keep their traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from dmgal.errors import DmgalError

BAD_INPUT = 2
INTERRUPTED = 130


def run_recipe(main: Callable[[list[str] | None], int | None]) -> NoReturn:
    """Run ``main`` on the command line's arguments and leave the process; for ``if __name__ == "__main__"``."""
    sys.exit(exit_code(main))


def exit_code(main: Callable[[list[str] | None], int | None], argv: list[str] | None = None) -> int:
    """Run ``main(argv)`` and return the process's exit code.

    Args:
        main: a recipe's main function; ``None`` as its result means success.
        argv: its arguments; ``None`` means those of this process.

    Returns:
        What ``main`` returned, 2 after a ``DmgalError``, 130 after Ctrl-C. Every other exception passes through.
    """
    try:
        return main(argv) or 0
    except DmgalError as error:
        print(f"{_process()}error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"{_process()}interrupted", file=sys.stderr)
        return INTERRUPTED


def as_description(docstring: str | None) -> str:
    """A module's docstring for ``--help``, its example commands on lines of their own."""
    return (docstring or "").replace("\n    ", "\n$ ")  # what starts with a sign is not run into the line above


def _process() -> str:
    """Name the process where a launcher started several, so that their messages can be told apart."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ""
    return f"process {os.environ.get('RANK', '?')}: "

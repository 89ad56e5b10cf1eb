"""How a recipe ends: the user's mistakes are one message and exit code 2, an interruption is one line and 130.

Where whoever reads the output has read enough (``| head``), nothing is said.

It serves every way of starting a recipe alike: ``dmgal train``, ``python -m dmgal.recipes.train``,
``accelerate launch recipes/train.py`` and ``torchrun``. Errors of ours keep their traceback.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from dmgal.errors import DmgalError

BAD_INPUT = 2
INTERRUPTED = 130
CLOSED_PIPE = 141
"""As of programs that SIGPIPE ends, which Python ignores."""


def run_recipe(main: Callable[[list[str] | None], int | None]) -> NoReturn:
    """Run ``main`` on the command line's arguments and leave the process; for ``if __name__ == "__main__"``."""
    sys.exit(exit_code(main))


def exit_code(main: Callable[[list[str] | None], int | None], argv: list[str] | None = None) -> int:
    """Run ``main(argv)`` and return the process's exit code.

    Args:
        main: a recipe's main function; ``None`` as its result means success.
        argv: its arguments; ``None`` means those of this process.

    Returns:
        What ``main`` returned, 2 after a ``DmgalError``, 130 after Ctrl-C, 141 where nobody reads the output any more.
        Every other exception passes through.
    """
    try:
        code = main(argv) or 0
        sys.stdout.flush()  # a pipe that was closed shows here rather than at the interpreter's end
        return code
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return CLOSED_PIPE
    except DmgalError as error:
        print(f"{_process()}error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt as interruption:
        print(": ".join([f"{_process()}interrupted", *map(str, interruption.args)]), file=sys.stderr)
        return INTERRUPTED


@contextmanager
def resumable() -> Iterator[None]:
    """For work that goes on where it was: an interruption says so."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        raise KeyboardInterrupt("the same command goes on from there") from interruption


def _nobody_reads() -> bool:
    """Whether the output goes into a pipe that was closed at its other end; then what is left of it goes nowhere."""
    closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed_pipe(stream.fileno())]
    for stream in closed:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
    return bool(closed)


def _is_closed_pipe(handle: int) -> bool:
    if not hasattr(select, "poll"):
        return True  # systems that cannot be asked
    poll = select.poll()
    poll.register(handle, 0)  # errors are always told
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def as_description(docstring: str | None) -> str:
    """A module's docstring for ``--help``, its example commands on lines of their own."""
    return (docstring or "").replace("\n    ", "\n$ ")  # what starts with a sign is not run into the line above


def _process() -> str:
    """Name the process where a launcher started several, so that their messages can be told apart."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ""
    return f"process {os.environ.get('RANK', '?')}: "

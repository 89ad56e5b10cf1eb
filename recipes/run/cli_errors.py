"""Options and exit codes of recipes, the same for all ways to start one.

The exit code is 1 with a message if the output cannot be written, 2 with a message for mistakes of the user and for
files that may not be read, 130 with one line for an interruption, and 141 without a message if the reader of the output
closes the pipe (``| head``). Other exceptions keep their traceback. The ways are ``dmgal train``, ``python -m
dmgal.recipes.train``, ``accelerate launch recipes/train.py`` and ``torchrun``.
"""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import partial
from traceback import clear_frames
from typing import NoReturn, TypeVar

from dmgal.errors import DmgalError
from dmgal.files import UnusableFileError, printable, reason
from dmgal.progress import close_bars, printed_messages
from dmgal.recipes.run.output import tolerant_output
from dmgal.recipes.run.plugins import load_plugins
from dmgal.recipes.run.ranges import check_ranges

Options = TypeVar("Options")
UNUSABLE = (UnusableFileError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Errors of the system that name a file or folder of the user's."""
UNUSABLE_CODES = (errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Codes of the others: of names that are too long, links to themselves, and disks that cannot be written."""
MOST_OF_A_NAME = 300
"""Characters of a path in a message, so that the reason after it is shown, too."""

NO_OUTPUT = 1
BAD_INPUT = 2
INTERRUPTED = 130
CLOSED_PIPE = 141
"""Exit code of programs that SIGPIPE ends. Python ignores this signal."""


def run_recipe(main: Callable[[list[str] | None], int | None]) -> NoReturn:
    """Run ``main`` with the plug-ins and the command line's arguments, and exit.

    For use under ``if __name__ == "__main__"``.
    """
    sys.exit(exit_code(partial(_with_plugins, main)))


def _with_plugins(main: Callable[[list[str] | None], int | None], argv: list[str] | None) -> int | None:
    load_plugins()
    return main(argv)


def exit_code(main: Callable[[list[str] | None], int | None], argv: list[str] | None = None) -> int:
    """Run ``main(argv)``, print its messages to stderr, and return the process's exit code.

    The code is the result of ``main`` (``None`` means success), 1 if the output could not be written, 2 after a
    ``DmgalError``, 130 after Ctrl-C, or 141 after the output pipe was closed. Every other exception passes through.
    """
    try:
        with printed_messages(), tolerant_output() as output:
            code = main(argv) or 0
            output.flush()  # raises for a closed pipe here rather than at interpreter exit
        return code if output.error is None else _without_output(output.error)
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        return CLOSED_PIPE
    except DmgalError as error:
        # The frames hold data loaders. A loader that only the garbage collector frees cannot end its workers, because
        # its queues are closed first.
        clear_frames(error.__traceback__)
        close_bars()
        print(f"{_process()}error: {error}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        if not isinstance(error, UNUSABLE) and error.errno not in UNUSABLE_CODES:
            raise
        close_bars()
        name = printable(str(error.filename or ""))
        path = name if len(name) <= MOST_OF_A_NAME else f"{name[:MOST_OF_A_NAME]}..."
        unusable = DmgalError(
            "A file or folder cannot be used.",
            received=f"{path}: {reason(error)}".removeprefix(": "),
            expected="regular files, and folders that you may read",
            remedy="Check the path, its permissions and its owner with ls -l, and the free disk space with df.",
        )
        print(f"{_process()}error: {unusable}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt as interruption:
        close_bars()
        print(": ".join([f"{_process()}interrupted", *map(str, interruption.args)]), file=sys.stderr)
        return INTERRUPTED


def _without_output(error: OSError) -> int:
    message = f"{_process()}error: The output could not be written: {reason(error)}. Files were written as usual."
    print(message, file=sys.stderr)
    return NO_OUTPUT


@contextmanager
def resumable() -> Iterator[None]:
    """Tell the user on interruption that the same command resumes the work."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        raise KeyboardInterrupt("the same command resumes from here") from interruption


def _output_is_closed() -> bool:
    """Return True if an output pipe was closed at its other end. Its remaining output is then discarded."""
    closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed_pipe(stream.fileno())]
    for stream in closed:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
    return bool(closed)


def _is_closed_pipe(handle: int) -> bool:
    if not hasattr(select, "poll"):
        return True  # no way to find out on this system
    poll = select.poll()
    poll.register(handle, 0)  # errors are always reported
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def parse_options(kind: type[Options], argv: list[str] | None, command: str, docstring: str | None) -> Options:
    """Return the options of a command from ``argv``, or from this process's arguments if it is None.

    The module's ``docstring`` is shown by ``--help``.
    """
    from dmgal.recipes.run.options import read_options  # tyro is slow to import, and not needed by ``dmgal --help``

    words = sys.argv[1:] if argv is None else argv
    options = read_options(kind, words, f"dmgal {command}", as_description(docstring))
    check_ranges("", options)
    for name, section in vars(options).items():
        if is_dataclass(section):
            check_ranges("" if name == "protocol" else name, section)  # its flags have no prefix
    return options


def as_description(docstring: str | None) -> str:
    """Return a module's docstring for ``--help``, with its example commands on separate lines."""
    return (docstring or "").replace("\n    ", "\n$ ")  # tyro joins lines unless they start with a symbol


def used_flags(flags: Mapping[str, object]) -> str:
    """Return the names of those flags whose value is neither None nor False, for a message."""
    return ", ".join(name for name, value in flags.items() if value is not None and value is not False)


def _process() -> str:
    """Return a message prefix with the rank if a launcher started several processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ""
    return f"process {os.environ.get('RANK', '?')}: "

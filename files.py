"""Files that several processes use or that others made: locks, atomic writes, one loader for all small files.

The operating system releases a lock when its process ends, even if the process is killed.

No file is trusted. Only regular files are opened, because a pipe may block and a device may never end. Text, depth and
number of values are limited, so a hostile file costs little time and memory.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import yaml
from filelock import FileLock, Timeout

from .errors import DmgalError

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def exclusively(lock_file: Path, while_waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock on ``lock_file``, and wait while another process holds it. Forked processes do not inherit it.

    Args:
        lock_file: created if absent. It is never deleted, because deleting it would let two processes in.
        while_waiting: called once before the wait, if another process holds the lock. It may raise an error instead.

    Raises:
        DmgalError: the file system has no locks.
        OSError: the file cannot be created.
    """
    lock = FileLock(lock_file, preserve_lock_file=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        while_waiting()
        lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise DmgalError(
            f"The file {lock_file} cannot be locked.",
            received=str(error),
            expected="a file system with file locks",
            remedy="Use another folder, or mount the file system with locks.",
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give the path of a temporary file to write, which then replaces ``path`` in one step.

    The temporary file is hidden in the same folder and has the same ending. An error deletes it and leaves an existing
    file unchanged. The umask decides who may read the file.

    Raises:
        OSError: the file cannot be written, or ``path`` is a folder or a device, which would be replaced, too.
    """
    _check_replaceable(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        with suppress(PermissionError):  # of file systems without modes
            temporary.chmod(stat.S_IMODE(mode))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_replaceable(path: Path) -> None:
    try:
        with suppress(FileNotFoundError):
            check_regular(path)
    except UnusableFileError as error:
        raise UnusableFileError(errno.EEXIST, str(error), os.fspath(path)) from None


def write_text(path: Path, text: str, parents: bool = False) -> None:
    """Write a text file atomically. With ``parents``, create the folders that it is in."""
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


MOST_JSON, MOST_YAML, MOST_LIST = 2**23, 2**17, 2**27
"""Bytes of a JSON file, of a YAML file, whose parser is slow, and of a list of videos after decompression."""
MOST_LOG, MOST_LINES, LONGEST_LINE = 2**31, 2_000_000, 2**16
MOST_DEPTH, MOST_VALUES = 32, 20_000
"""Levels of nested values, and values of a YAML file. An alias counts as all values that it repeats."""
FILE_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class UnusableFileError(OSError):
    """A reason why a file is not read: it is not a regular file, it is too large, or it is not text."""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading. Never wait for one, and never read from a pipe or a device.

    Raises:
        OSError: the file does not exist, may not be read, or is not a regular file.
    """
    check_regular(path)  # opening a device may already have an effect
    file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    try:
        _check_kind(os.fstat(file.fileno()))  # it may have been replaced since
    except OSError:
        file.close()
        raise
    return file


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise an OSError if the path does not lead to a regular file. Call it before another library opens the file."""
    _check_kind(os.stat(path))


def _check_kind(status: os.stat_result) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise UnusableFileError(f"{FILE_KINDS.get(kind, 'a special file')} instead of a regular file")


def read_text(path: str | os.PathLike[str], most: int = MOST_JSON) -> str:
    """Return the text of a file of at most ``most`` bytes.

    Raises:
        OSError: the file cannot be read, is not regular, is too large, or is not UTF-8 without null bytes.
    """
    with open_regular(path) as file:
        is_large = os.fstat(file.fileno()).st_size > most
        data = b"" if is_large else file.read(most + 1)
    if is_large or len(data) > most:
        raise UnusableFileError(f"more than {most // 1024:,} KiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnusableFileError(f"byte {error.start} is not valid UTF-8") from error
    if "\0" in text:
        raise UnusableFileError("null bytes")
    return text


def text_lines(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield the lines of a list, plain or gzipped, with their ends. Bytes that are not valid UTF-8 are preserved.

    Raises:
        OSError: the file cannot be read, is not regular, is too large after decompression, or has null bytes.
        EOFError, zlib.error: the compressed data are damaged.
    """
    num_chars = 0
    with open_regular(path) as raw:
        is_packed = os.fspath(path).endswith(".gz")
        data = gzip.GzipFile(fileobj=raw) if is_packed else raw
        if _size(raw, is_packed) > MOST_LIST:
            raise UnusableFileError(f"more than {MOST_LIST // 2**20:,} MiB{' after decompression' * is_packed}")
        with io.TextIOWrapper(cast(BinaryIO, data), "utf-8-sig", "surrogateescape", newline="") as text:
            for number in range(MOST_LINES + 1):
                line = text.readline(LONGEST_LINE)
                num_chars += len(line)
                if not line:
                    return
                if number == MOST_LINES or num_chars > MOST_LIST:
                    raise UnusableFileError(f"more than {MOST_LINES:,} lines or {MOST_LIST // 2**20:,} MiB of text")
                if len(line) == LONGEST_LINE:
                    raise UnusableFileError(f"line {number + 1} has more than {LONGEST_LINE - 1:,} characters")
                if "\0" in line:
                    raise UnusableFileError(f"null bytes in line {number + 1}")
                yield line


def log_lines(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield the lines of a log. A crash may leave any bytes in it, so lines may be invalid; long ones come in parts.

    Raises:
        OSError: the file cannot be read, is not regular, or is too large.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > MOST_LOG:
            raise UnusableFileError(f"more than {MOST_LOG // 2**20:,} MiB")
        with io.TextIOWrapper(file, "utf-8", "replace") as text:
            while line := text.readline(LONGEST_LINE):
                yield line


def _size(file: BinaryIO, is_packed: bool) -> int:
    """Return the size of a file, or the size after decompression that its end names."""
    is_packed = is_packed and file.read(2) == b"\x1f\x8b"
    size = file.seek(0, os.SEEK_END)
    if is_packed:
        file.seek(max(0, size - 4))
        size = int.from_bytes(file.read(4), "little")
    file.seek(0)
    return size


def parse_json(text: str) -> Any:
    """Return the value of a JSON text. Raise a ValueError with the reason if it cannot be used."""
    try:
        return _checked(json.loads(text))
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: line {error.lineno}, column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise ValueError(f"more than {MOST_DEPTH} nested levels") from error


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text: mappings, lists, text, numbers, true, false and null.

    Raises:
        ValueError: the text is not YAML, is nested too deeply, has too many values or any other kind of value.
    """
    try:
        return _checked(_Loader(text).get_single_data())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"no valid YAML: {where}{(error.problem or error.context or '')[:200]}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"no valid YAML: {' '.join(str(error).split())[:200]}") from error
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"no valid YAML: {' '.join(str(error).split())[:200]}") from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits. Aliases of aliases could otherwise repeat a value billions of times."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._num_values = 0
        self._sizes: dict[int, int] = {}  # values within each node

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        before, is_alias = self._num_values, self.check_event(yaml.AliasEvent)
        self._depth += 1
        self._num_values += 1
        self._check(self.peek_event())  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        if is_alias and node is not None:  # an alias inside of its own value has no size yet
            self._num_values += self._sizes.get(id(node), MOST_VALUES)
            self._check(node)
        self._sizes[id(node)] = self._num_values - before
        self._depth -= 1
        return node

    def _check(self, at: Any) -> None:
        if self._depth > MOST_DEPTH:
            raise yaml.MarkedYAMLError(None, None, f"more than {MOST_DEPTH} nested levels", at.start_mark)
        if self._num_values > MOST_VALUES:
            raise yaml.MarkedYAMLError(None, None, f"more than {MOST_VALUES:,} values, counting aliases", at.start_mark)


def _checked(content: object) -> object:
    """Return the content of a file, or raise a ValueError if a part of it is of no plain kind."""
    level, depth = [content], 0
    while level:
        depth += 1
        if depth > MOST_DEPTH + 1:
            raise ValueError(f"more than {MOST_DEPTH} nested levels")
        for value in level:
            if isinstance(value, dict):
                strange = next((key for key in value if not isinstance(key, str)), "")
                if strange != "":
                    raise ValueError(f"the key {str(strange)[:50]}, which is not text")
            elif isinstance(value, int) and not -(2**63) <= value < 2**64:
                raise ValueError("a number of more than 64 bits")
            elif isinstance(value, str) and not is_file_name(value):
                raise ValueError("text with null bytes or half a character")
            elif not isinstance(value, list | str | int | float | None):
                raise ValueError(f"a {type(value).__name__}")
        parents = [value for value in level if isinstance(value, dict | list)]
        level = [part for value in parents for part in (value.values() if isinstance(value, dict) else value)]
    return content


def read_mapping(
    path: Path, problem: str, remedy: str, parse: Callable[[str], object] = parse_json, may_be_empty: bool = False
) -> dict[str, Any]:
    """Return the mapping in a small file that others may have made.

    Args:
        path: of the file.
        problem: first sentence of the error message.
        remedy: last sentence of the error message.
        parse: `parse_json` or `parse_yaml`.
        may_be_empty: return an empty mapping if the file has no value.

    Raises:
        DmgalError: the file cannot be read, or has no mapping.
    """
    kind, most = ("JSON object", MOST_JSON) if parse is parse_json else ("YAML mapping of keys to values", MOST_YAML)
    try:
        content = parse(read_text(path, most))
        if content is None and may_be_empty:
            return {}
        if not isinstance(content, dict):
            raise ValueError("nothing" if content is None else f"a {type(content).__name__}")
    except (OSError, ValueError) as error:
        raise DmgalError(
            problem,
            received=f"{printable(str(path))}: {reason(error)}",
            expected=f"a {kind}, in UTF-8, of at most {most // 1024:,} KiB and {MOST_DEPTH} levels",
            remedy=remedy,
        ) from error
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty dictionary if there is no valid one.

    Raises:
        OSError: the file cannot be read, is not regular, is too large or is not text.
    """
    text = read_text(path)
    try:
        content = parse_json(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


UNREADABLE = (OSError, EOFError, zlib.error)
"""Errors of `open_regular`, `read_text` and `text_lines`."""


def delete(path: Path) -> None:
    """Delete a file if it exists. Raise a DmgalError if it is a folder, or cannot be deleted."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DmgalError(
            "This file cannot be deleted.",
            received=f"{path}: {reason(error)}",
            expected="a file that dmgal wrote",
            remedy="Delete it, or choose another folder.",
        ) from error


def reason(error: Exception) -> str:
    """Return the reason of an error without the path that the message already names."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def is_file_name(text: str) -> bool:
    """Return True if a text can be bytes of a file: no null bytes, and no halves of characters of UTF-16."""
    try:
        return b"\0" not in text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


NAMES_SHOWN = 5


def listed(names: Sequence[str], count: int | None = None) -> str:
    """Return the names as ``a, b, c, d, e and 7 more``, or ``none`` if there are none.

    Args:
        names: all names, or at least the first ``NAMES_SHOWN``.
        count: total number of names; None uses ``len(names)``.
    """
    num_hidden = (len(names) if count is None else count) - NAMES_SHOWN
    text = ", ".join(printable(name) for name in names[:NAMES_SHOWN])
    if num_hidden > 0:
        text += f" and {num_hidden} more"
    return text or "none"


def printable(name: str) -> str:
    """Return a file name that any terminal can print.

    Bytes that are not valid UTF-8 and control characters, which could move the cursor, become ``\\xe9`` and the like.
    """
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)

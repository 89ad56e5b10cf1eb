"""Tests of locks between processes, of atomic writes, and of the loader of small files."""

from __future__ import annotations

import errno
import gzip
import os
import subprocess
import sys
import time
from collections import deque

import pytest
from filelock import FileLock

from dmgal.errors import DmgalError
from dmgal.files import (
    UNREADABLE,
    UnusableFileError,
    atomic_write,
    delete,
    exclusively,
    parse_json,
    parse_yaml,
    printable,
    read_mapping,
    reason,
    text_lines,
)

HOLDER = """
import sys
from pathlib import Path
from dmgal.files import exclusively
with exclusively(Path(sys.argv[1]), sys.exit):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_wait_is_announced_once_and_ends_with_the_holder(tmp_path):
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "locked\n"
        waits = []
        with exclusively(path, lambda: (waits.append(1), holder.kill())):
            assert waits == [1]
    with exclusively(path, lambda: pytest.fail("another process holds the lock")):
        assert path.exists()
    assert path.exists(), "deleting it would let two processes in"


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def acquire(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    no_locks = pytest.raises(DmgalError, match=r"lock cannot be locked(.|\n)*No locks available")
    with no_locks, exclusively(tmp_path / "lock", lambda: None):
        pass


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_file_unchanged(tmp_path, error):
    path = tmp_path / "list.csv.gz"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as temporary:
        assert temporary.suffix == ".gz" and temporary.name.startswith(".")
        temporary.write_text("new")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="modes and pipes of POSIX")
def test_a_written_file_has_the_usual_mode_and_replaces_only_files(tmp_path):
    with atomic_write(tmp_path / "file") as temporary:
        temporary.unlink()
        temporary.touch(0o600)  # as safetensors does
    (tmp_path / "usual").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(UnusableFileError) as raised, atomic_write(path):
            pytest.fail("it would be replaced")
        assert raised.value.filename == str(path) and "instead of a regular file" in reason(raised.value)
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_is_not_deleted_as_a_file(tmp_path):
    with pytest.raises(DmgalError, match="This file cannot be deleted"):
        delete(tmp_path)
    delete(tmp_path / "missing")


def _fifo(path):
    os.mkfifo(path)


def _aliases(path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    path.write_text("\n".join(lines))


def _merges(path):
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12)]
    path.write_text("\n".join(lines))


def _huge(path):
    with path.open("wb") as file:
        file.truncate(2**34)


def _text(text):
    return lambda path: path.write_bytes(text if isinstance(text, bytes) else text.encode())


BAD_FILES = {
    "missing": (lambda path: None, "No such file"),
    "empty": (_text(""), "nothing|no JSON"),
    "garbage": (_text(b"\x93\x11\xfe\x00zzz" * 9), "not valid UTF-8"),
    "truncated": (_text('{"a": [1, 2'), "no JSON|no valid YAML"),
    "a list": (_text("[1, 2]"), "a list"),
    "text": (_text('"abc"'), "a str"),
    "huge": (_huge, "more than .* KiB"),
    "pipe": (_fifo, "a pipe"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "a device"),
    "folder": (lambda path: path.mkdir(), "a folder"),
    "null bytes": (_text('{"a": "\0"}'), "null bytes"),
    "latin 1": (_text(b'{"a": "\xe9"}'), "byte 7 is not valid UTF-8"),
    "deep": (_text("[" * 60_000), "32 nested levels"),
    "deeper than allowed": (_text('{"a": ' * 40 + "1" + "}" * 40), "32 nested levels"),
    "long number": (_text('{"a": ' + "9" * 5000 + "}"), "limit|64 bits"),
    "wide number": (_text('{"a": ' + "9" * 30 + "}"), "64 bits"),
}
BAD_YAML = {
    "aliases": (_aliases, "20,000 values, counting aliases"),
    "merged aliases": (_merges, "20,000 values, counting aliases"),
    "alias of itself": (_text("a: &a [*a]"), "values, counting aliases"),
    "python tag": (_text("a: !!python/object/apply:os.system [exit 3]"), "python/object/apply"),
    "tab": (_text("a:\n\tb: 1"), "line 2, column 1"),
    "bad date": (_text("a: 2026-13-41"), "month must be in"),
    "date": (_text("a: 2026-11-29"), "a date"),
    "set": (_text("a: !!set {b, c}"), "a set"),
    "bytes": (_text("a: !!binary aGVsbG8="), "a bytes"),
    "empty number": (_text("a: !!int ''"), "no valid YAML"),
    "strange date": (_text("a: !!timestamp x"), "no valid YAML"),
    "strange truth": (_text("a: !!bool x"), "no valid YAML"),
    "list as key": (_text("? [a]\n: b"), "unhashable key"),
    "number as key": (_text("1: b"), "the key 1, which is not text"),
    "two documents": (_text("a: 1\n---\nb: 2"), "another document"),
}


@pytest.mark.parametrize(
    ("parse", "kind"),
    [(parse_json, kind) for kind in BAD_FILES] + [(parse_yaml, kind) for kind in BAD_FILES | BAD_YAML],
)
def test_no_file_is_trusted(tmp_path, parse, kind):
    path = tmp_path / "file"
    make, message = (BAD_FILES | BAD_YAML)[kind]
    make(path)
    start = time.monotonic()
    with pytest.raises(DmgalError, match=message) as caught:
        read_mapping(path, "The file cannot be read.", "Copy it.", parse)
    assert time.monotonic() - start < 2
    assert caught.value.received.startswith(f"{path}: ") and len(str(caught.value)) < 800
    assert caught.value.problem and caught.value.expected and caught.value.remedy


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_read_permission_is_named(tmp_path):
    path = tmp_path / "file"
    path.write_text("{}")
    path.chmod(0)
    with pytest.raises(DmgalError, match="file: Permission denied"):
        read_mapping(path, "The file cannot be read.", "Copy it.")


def test_usual_yaml_is_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes("\ufeffa: &a {b: [1, 2.5, true, null, é]}\nc: {<<: *a, d: *a}\n".encode())
    content = read_mapping(path, "", "", parse_yaml)
    inner = {"b": [1, 2.5, True, None, "é"]}
    assert content == {"a": inner, "c": {**inner, "d": inner}}
    path.write_text("# nothing\n")
    assert read_mapping(path, "", "", parse_yaml, may_be_empty=True) == {}


def _gzip_of(num_bytes, forged):
    def write(path):
        with gzip.open(path, "wb", compresslevel=1) as file:
            for _ in range(num_bytes // 2**20):
                file.write(b"train,a,b.mp4\n" * (2**20 // 14))
        if forged:  # the end claims that the file is short
            path.write_bytes(path.read_bytes()[:-4] + (9).to_bytes(4, "little"))

    return write


BAD_LISTS = {
    "pipe": (_fifo, "a pipe"),
    "folder": (lambda path: path.mkdir(), "a folder"),
    "null bytes": (lambda path: path.write_bytes(gzip.compress(b"a,b\nc,\0\n")), "null bytes in line 2"),
    "one line": (lambda path: path.write_bytes(gzip.compress(b"a" * 10**6)), "line 1 has more than 65,535 characters"),
    "large": (_gzip_of(130 * 2**20, forged=False), "more than 128 MiB after decompression"),
    "large and forged": (_gzip_of(40 * 2**20, forged=True), "more than 2,000,000 lines"),
    "truncated": (lambda path: path.write_bytes(gzip.compress(b"a,b\n" * 99)[:-9]), "ended before"),
    "no gzip": (_text("a,b\n"), "Not a gzipped file"),
}


@pytest.mark.parametrize("kind", BAD_LISTS)
def test_a_list_is_limited_after_decompression(tmp_path, kind):
    path = tmp_path / "list.csv.gz"
    make, message = BAD_LISTS[kind]
    make(path)
    start = time.monotonic()
    with pytest.raises(UNREADABLE, match=message):
        deque(text_lines(path), maxlen=0)
    assert time.monotonic() - start < 5


def test_a_list_keeps_its_bytes_and_ends(tmp_path):
    for name in ("list.csv", "list.csv.gz"):
        with (gzip.open if name.endswith(".gz") else open)(tmp_path / name, "wb") as file:
            file.write(b"\xef\xbb\xbfa,\xff\r\nb\n\nc")
        assert [*text_lines(tmp_path / name)] == ["a,\udcff\r\n", "b\n", "\n", "c"]


def test_control_characters_of_a_name_are_shown_as_escapes():
    assert printable("a\x1b[2J\nb\udcff\x9b é") == r"a\x1b[2J\x0ab\xff\x9b é"

"""A recipe ends alike however it was started: as a script, as a module, or as one of several processes."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dmgal.files import UnusableFileError, reason
from dmgal.recipes.run.cli_errors import CLOSED_PIPE, exit_code

RECIPE = '''
"""A recipe that is given what it cannot use."""
import sys
from dmgal.errors import DmgalError
from dmgal.recipes.run.cli_errors import run_recipe

def main(argv: list[str] | None = None) -> int | None:
    arguments = sys.argv[1:] if argv is None else argv
    if arguments == ["fine"]:
        return None
    raise DmgalError("cannot", received=str(arguments), expected="fine", remedy="say fine")

if __name__ == "__main__":
    run_recipe(main)
'''


def launch(recipe: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(recipe), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "my_recipe.py"
    path.write_text(RECIPE)
    return path


def test_success_is_silent(recipe: Path) -> None:
    result = launch(recipe, "fine")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_user_error_is_printed_without_traceback(recipe: Path) -> None:
    result = launch(recipe, "wrong")
    assert result.returncode == 2
    assert result.stderr.startswith("error: cannot\n  received: ['wrong']") and "Traceback" not in result.stderr


def test_error_of_several_processes_names_the_rank(recipe: Path) -> None:
    result = launch(recipe, "wrong", WORLD_SIZE="2", RANK="1")
    assert result.returncode == 2
    assert result.stderr.startswith("process 1: error: cannot")


TALKATIVE = """
import sys
from dmgal.recipes.run.cli_errors import resumable, run_recipe

def main(argv):
    if "interrupted" in sys.argv:
        with resumable():
            raise KeyboardInterrupt
    if "elsewhere" in sys.argv:
        raise BrokenPipeError(32, "Broken pipe")  # of another pipe: a bug, or a peer that died
    for number in range(int(sys.argv[1])):
        print(number)

if __name__ == "__main__":
    run_recipe(main)
"""


@pytest.mark.parametrize("lines", [3, 200_000])
@pytest.mark.parametrize("flags", [[], ["-u"]])
def test_closed_output_pipe_exits_silently(tmp_path: Path, lines: int, flags: list[str]) -> None:
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, *flags, str(tmp_path / "talkative.py"), str(lines)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(write)
    assert (done.returncode, done.stderr) == (CLOSED_PIPE, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("lines", [3, 20_000])
def test_full_output_is_reported_at_the_end(tmp_path: Path, lines: int) -> None:
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    command = [sys.executable, str(tmp_path / "talkative.py"), str(lines)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 1
    assert (
        done.stderr == "error: The output could not be written: No space left on device. Files were written as usual.\n"
    )


@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_output_is_no_error(tmp_path: Path, redirect: str) -> None:
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    command = f"{sys.executable} {tmp_path / 'talkative.py'} 3 {redirect}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")


def test_characters_that_the_encoding_lacks_are_escaped(capsys) -> None:
    before, sys.stdout = sys.stdout, io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    try:
        assert exit_code(lambda argv: print("92.0 ± 5.2 %"), []) == 0
        assert sys.stdout.buffer.getvalue() == b"92.0 \\xb1 5.2 %\n"
    finally:
        sys.stdout = before


def test_broken_pipe_to_another_process_keeps_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    assert "BrokenPipeError" in launch(tmp_path / "talkative.py", "elsewhere").stderr


def test_interruption_message_says_how_to_resume(tmp_path: Path) -> None:
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    done = launch(tmp_path / "talkative.py", "interrupted")
    assert (done.returncode, done.stderr) == (130, "interrupted: the same command resumes from here\n")


UNUSABLE = [
    PermissionError(errno.EACCES, "Permission denied", "videos/a.mp4"),
    PermissionError(errno.EPERM, "Operation not permitted", "videos"),
    IsADirectoryError(errno.EISDIR, "Is a directory", "gallery.safetensors"),
    NotADirectoryError(errno.ENOTDIR, "Not a directory", "run/adapter"),
    UnusableFileError("a pipe instead of a regular file"),
    OSError(errno.ENAMETOOLONG, "File name too long", "n" * 6000),
    OSError(errno.ENOSPC, "No space left on device"),
]


@pytest.mark.parametrize("error", UNUSABLE, ids=lambda error: str(error.strerror))
def test_a_path_that_cannot_be_used_gives_one_message(capsys, error):
    def run(argv):
        raise error

    assert exit_code(run, []) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: A file or folder cannot be used.\n  received: ") and "what to do: " in printed
    assert (error.filename or "")[:300] in printed and reason(error) in printed and "Traceback" not in printed

"""Progress bars on terminals and in pipes, and printed log messages."""

from __future__ import annotations

import io
import logging
import os
import pty
import subprocess
import sys
import termios

import pytest

from dmgal import progress
from dmgal.progress import close_bars, printed_messages, progress_bar
from dmgal.recipes.run.cli_errors import exit_code


class Clock:
    """A clock that tests advance."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(progress._PlainLines, "last_line", 0.0)
        monkeypatch.setattr("tqdm.std.time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_short_job_prints_nothing_in_a_pipe(clock, capsys) -> None:
    for _ in progress_bar(range(100), desc="encode", unit="batch"):
        clock.now += 0.09
    assert capsys.readouterr().err == ""


def test_long_job_prints_one_plain_line_per_ten_seconds(clock, capsys) -> None:
    with progress_bar(total=300, desc="check", unit="video") as bar:
        for _ in range(300):
            clock.now += 0.15
            bar.update()
            bar.set_postfix(loss="0.1")
    printed = capsys.readouterr().err
    lines = printed.splitlines()
    assert "\r" not in printed and "\x1b" not in printed
    assert len(lines) == 4
    assert all(line.startswith("check: ") and "video/s" in line and "loss=0.1" in line for line in lines)
    assert "67/300" in lines[0]


def test_several_bars_share_the_interval(clock, capsys) -> None:
    with progress_bar(total=100, desc="outer") as outer:
        for _ in range(100):
            for _ in progress_bar(range(11), desc="inner", leave=False):
                clock.now += 1
            outer.update()
    printed = capsys.readouterr().err
    assert "\r" not in printed and 50 <= len(printed.splitlines()) <= 110


def test_hidden_bar_prints_nothing(clock, capsys) -> None:
    for _ in progress_bar(range(100), progress=False):
        clock.now += 1
    assert capsys.readouterr().err == ""


def test_terminal_shows_a_bar() -> None:
    code = "from dmgal.progress import progress_bar\nfor _ in progress_bar(range(3), desc='encode'): pass"
    shown = printed_on_terminal(code)
    assert "\rencode: 100%|" in shown and "3/3" in shown


def test_messages_are_printed_above_the_bar() -> None:
    code = """
import logging
from dmgal.progress import printed_messages, progress_bar
with printed_messages(), progress_bar(total=3, desc="encode") as bar:
    bar.update()
    logging.getLogger("dmgal.recipes.x").info("%d of 3", 1)
"""
    lines = printed_on_terminal(code).replace("\r\n", "\n").split("\n")
    assert any(line.split("\r")[-1] == "1 of 3" for line in lines)
    assert lines[-2].split("\r")[-1].startswith("encode:")


def test_interruption_closes_the_bar_first() -> None:
    code = """
from dmgal.progress import progress_bar
from dmgal.recipes.run.cli_errors import run_recipe
def main(argv):
    bar = progress_bar(total=3, desc="encode")
    bar.update()
    raise KeyboardInterrupt("saved")
run_recipe(main)
"""
    lines = printed_on_terminal(code, code_of_exit=130).replace("\r\n", "\n").split("\n")
    assert lines[-3].split("\r")[-1].startswith("encode:") and lines[-2:] == ["interrupted: saved", ""]


def printed_on_terminal(code: str, code_of_exit: int = 0) -> str:
    """Run code in a fresh Python whose stderr is a terminal, and return what it prints there."""
    terminal, stderr = pty.openpty()
    termios.tcsetwinsize(stderr, (24, 80))
    try:
        process = subprocess.Popen([sys.executable, "-c", code], stderr=stderr)
        os.close(stderr)
        printed = b""
        while True:
            try:
                printed += os.read(terminal, 1024)
            except OSError:  # the process has closed the terminal
                break
        assert process.wait() == code_of_exit, printed.decode()
    finally:
        os.close(terminal)
    return printed.decode()


def test_closed_bars_are_not_closed_twice(monkeypatch) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stream)
    bar = progress_bar(total=3, desc="encode")
    close_bars()
    printed = stream.getvalue()
    bar.close()
    assert stream.getvalue() == printed and printed.endswith("\n")


@pytest.mark.parametrize(("rank", "expected"), [("0", "a\nb\n"), ("1", "b\n")])
def test_commands_print_messages(rank, expected, capsys, monkeypatch) -> None:
    monkeypatch.setenv("RANK", rank)

    def main(argv: list[str] | None) -> None:
        logging.getLogger("dmgal.recipes.run").info("a")
        logging.getLogger("dmgal.videos").warning("b")

    assert exit_code(main, []) == 0
    assert capsys.readouterr() == ("", expected)


def test_configured_root_logger_does_not_print_messages_again(capsys) -> None:
    root, handler = logging.getLogger(), logging.StreamHandler(sys.stderr)

    def main(argv: list[str] | None) -> None:
        root.addHandler(handler)
        logging.getLogger("dmgal.videos").warning("b")

    try:
        assert exit_code(main, []) == 0
    finally:
        root.removeHandler(handler)
    assert capsys.readouterr().err == "b\n"


def test_commands_in_threads_leave_the_loggers_as_they_were() -> None:
    ours = logging.getLogger("dmgal")
    before = ours.level, ours.propagate, list(ours.handlers)
    first, second = printed_messages(), printed_messages()
    first.__enter__()
    second.__enter__()
    assert len(ours.handlers) == len(before[2]) + 1
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert (ours.level, ours.propagate, list(ours.handlers)) == before


def test_messages_are_silent_outside_commands(capsys) -> None:
    with printed_messages():
        pass
    logging.getLogger("dmgal.recipes.run").info("a")
    assert capsys.readouterr() == ("", "")

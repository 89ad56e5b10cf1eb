"""The command line: what it prints, what it hands on, and how it ends."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

import dmgal
from dmgal.cli import SUBCOMMANDS, main
from dmgal.errors import DmgalError


def fake_recipe(monkeypatch: pytest.MonkeyPatch, function) -> None:
    monkeypatch.setitem(sys.modules, "dmgal.recipes.train", SimpleNamespace(main=function))


@pytest.mark.parametrize("flag", ["--help", "-h", "help"])
def test_help_lists_every_command_with_examples(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    printed = capsys.readouterr().out
    for name, summary in SUBCOMMANDS.items():
        assert f"  {name} " in printed and summary in printed
    assert "examples:" in printed


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dmgal {dmgal.__version__}\n"


def test_no_command_is_a_mistake_and_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("usage: dmgal")


@pytest.mark.parametrize(("typed", "advice"), [("evalute", "'dmgal evaluate'"), ("xyzzy", "'dmgal --help'")])
def test_unknown_command_names_the_nearest(typed: str, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([typed]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and repr(typed) in printed.err and advice in printed.err
    assert len(printed.err.splitlines()) == 4


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3)])
def test_arguments_and_exit_code_are_handed_on(
    monkeypatch: pytest.MonkeyPatch, returned: int | None, code: int
) -> None:
    received: list[list[str]] = []
    fake_recipe(monkeypatch, lambda argv: received.append(argv) or returned)
    assert main(["train", "--help", "--shots", "1"]) == code
    assert received == [["--help", "--shots", "1"]]


def test_arguments_default_to_those_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[list[str]] = []
    fake_recipe(monkeypatch, received.append)
    monkeypatch.setattr(sys, "argv", ["dmgal", "train", "--list"])
    assert main() == 0
    assert received == [["--list"]]


def test_a_mistake_of_the_user_is_one_message_and_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def recipe(argv: list[str]) -> None:
        raise DmgalError("cannot do it", received="this", expected="that", remedy="do that")

    fake_recipe(monkeypatch, recipe)
    assert main(["train"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "error: cannot do it\n  received: this\n  expected: that\n  what to do: do that\n"


def test_an_interruption_is_one_line_and_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def recipe(argv: list[str]) -> None:
        raise KeyboardInterrupt

    fake_recipe(monkeypatch, recipe)
    assert main(["train"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_our_own_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def recipe(argv: list[str]) -> None:
        raise ValueError("a bug")

    fake_recipe(monkeypatch, recipe)
    with pytest.raises(ValueError, match="a bug"):
        main(["train"])

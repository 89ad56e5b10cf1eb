"""Tests of the command line: output, forwarded arguments and exit codes."""

from __future__ import annotations

import gc
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace

import pytest

import dmgal
from dmgal import recipes
from dmgal.cli import COMMANDS, Command, main
from dmgal.errors import DmgalError
from dmgal.loader import Loader
from dmgal.videos.decoding.base import VideoError


def fake_recipe(monkeypatch: pytest.MonkeyPatch, function) -> None:
    monkeypatch.setitem(sys.modules, "dmgal.recipes.train", SimpleNamespace(main=function))


@pytest.mark.parametrize("flag", ["--help", "-h", "help"])
def test_help_lists_every_command_with_examples(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    printed = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in printed and command.summary in printed
    assert "examples:" in printed


def test_commands_are_the_modules_of_recipes_and_the_benchmark() -> None:
    modules = {path.stem for path in Path(recipes.__file__).parent.glob("*.py")} - {"__init__"}
    assert {name: command.module for name, command in COMMANDS.items()} == {
        "bench": "dmgal.bench.efficiency",
        "reproduce": "dmgal.bench.reproduce",
        **{name: f"dmgal.recipes.{name}" for name in modules},
    }


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dmgal {dmgal.__version__}\n"


def test_no_command_prints_usage_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("usage: dmgal")


@pytest.mark.parametrize(("typed", "advice"), [("evalute", "'dmgal evaluate'"), ("xyzzy", "'dmgal --help'")])
def test_unknown_command_suggests_a_similar_one(typed: str, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([typed]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and repr(typed) in printed.err and advice in printed.err
    assert len(printed.err.splitlines()) == 4


COMMAND_OF_A_TEST = """
import gc
was_enabled = gc.isenabled()
def main(argv):
    return 0 if gc.isenabled() and not was_enabled else 1
"""


def test_commands_are_imported_without_garbage_collection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "command_of_this_test.py").write_text(COMMAND_OF_A_TEST)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(COMMANDS, "mine", Command("command_of_this_test", "of this test"))
    frozen = gc.get_freeze_count()
    try:
        assert main(["mine"]) == 0
        assert gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()
    assert main(["mine"]) == 0 and gc.get_freeze_count() == 0  # only an import freezes objects


def test_collection_stays_off_if_the_caller_turned_it_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "quiet_command.py").write_text("import gc\ndef main(argv):\n    return int(gc.isenabled())\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(COMMANDS, "mine", Command("quiet_command", "of this test"))
    gc.disable()
    try:
        assert main(["mine"]) == 0
    finally:
        gc.enable()


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3)])
def test_arguments_and_exit_code_are_forwarded(
    monkeypatch: pytest.MonkeyPatch, returned: int | None, code: int
) -> None:
    received: list[list[str]] = []
    fake_recipe(monkeypatch, lambda argv: received.append(argv) or returned)
    assert main(["train", "--help", "--shots", "1"]) == code
    assert received == [["--help", "--shots", "1"]]


def test_arguments_default_to_sys_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[list[str]] = []
    fake_recipe(monkeypatch, received.append)
    monkeypatch.setattr(sys, "argv", ["dmgal", "train", "--list"])
    assert main() == 0
    assert received == [["--list"]]


def test_dmgal_error_prints_one_message_and_exits_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def recipe(argv: list[str]) -> None:
        raise DmgalError("cannot do it", received="this", expected="that", remedy="do that")

    fake_recipe(monkeypatch, recipe)
    assert main(["train"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "error: cannot do it\n  received: this\n  expected: that\n  what to do: do that\n"


def test_keyboard_interrupt_prints_one_line_and_exits_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def recipe(argv: list[str]) -> None:
        raise KeyboardInterrupt

    fake_recipe(monkeypatch, recipe)
    assert main(["train"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_other_errors_are_not_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def recipe(argv: list[str]) -> None:
        raise ValueError("a bug")

    fake_recipe(monkeypatch, recipe)
    with pytest.raises(ValueError, match="a bug"):
        main(["train"])


@pytest.mark.parametrize(
    "error",
    [
        DmgalError("Cannot do it.", received="two\nlines", expected="that", remedy="Do that."),
        DmgalError("Only a problem."),
        VideoError("/videos/1.mp4", "damaged"),
    ],
)
def test_errors_are_pickled_with_their_parts(error: DmgalError) -> None:
    copied = ForkingPickler.loads(ForkingPickler.dumps(error))
    assert (type(copied), str(copied), vars(copied)) == (type(error), str(error), vars(error))


class DamagedVideos(list):
    def __getitem__(self, index: int) -> int:
        if index == 3:
            raise VideoError("/videos/1.mp4", "damaged")
        return index


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("options", [{"batch_size": 2}, {"batch_size": None, "collate_fn": str}])
def test_error_of_a_loader_worker_keeps_its_parts(workers: int, options: dict) -> None:
    with pytest.raises(VideoError) as caught:
        list(Loader(DamagedVideos(range(5)), num_workers=workers, **options))
    error = VideoError("/videos/1.mp4", "damaged")
    assert (str(caught.value), vars(caught.value)) == (str(error), vars(error))
    assert caught.value.received == "damaged" and "Traceback" not in str(caught.value)


OUT_OF_RANGE = {
    "evaluate run": ["--episodes 0", "--episodes 1000000000", "--shots 0", "--ways -1", "--queries 0", "--seed -1"],
    "evaluate run --split val": ["--until 0", "--until nan", "--until 101", "--shots 99999"],
    "evaluate run --split test": ["--data.num-workers -1"],
    "compare run": ["--episodes -5", "--disagreements -1"],
    "enroll clips": ["--views 0", "--views 100000"],
    "recognize gallery clip": ["--top 0", "--fps 0", "--fps inf"],
    "prepare --root clips": ["--workers 0", "--num-frames 0", "--seconds-per-video 0", "--seconds-per-video nan"],
    "store method/frozen": ["--workers 0", "--quality 96", "--short-side 0", "--size 100000"],
    "bench --data clips": ["--steps 0", "--episodes 1", "--processes 0"],
    "generate moving_shapes": ["--workers 0", "--frames 7", "--pixels 513", "--clips-per-class 0", "--seed -1"],
    "demo": ["--episodes 1", "--seed -1", "--steps 0", "--train-seed 99999999999999999999"],
}


@pytest.mark.parametrize("words", [["enroll", "", "--class-name", "wave"], ["train", "--out", ""]])
def test_an_empty_argument_is_not_the_working_folder(words, capsys):
    assert main(words) == 2
    assert "An argument is empty" in capsys.readouterr().err


@pytest.mark.parametrize("words", [f"{c} {flag}" for c, flags in OUT_OF_RANGE.items() for flag in flags])
def test_number_out_of_range_is_refused_before_anything_is_read(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    error, flag = capsys.readouterr().err, words.split()[-2].removeprefix("--")
    name = {"shots": "k-shot", "ways": "n-way", "queries": "n-query"}.get(flag, flag).replace("-", "_")
    assert name in error.replace("-", "_") and "must be at" in error and not list(tmp_path.iterdir())

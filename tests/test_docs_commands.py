"""Every command of the documentation is accepted by its real parser. Nothing runs: `test_docs_run.py` runs what it can.

The commands are those of the README, of the pages below docs, and of the comments in recipe layers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import re
import shlex
import sys
import tomllib
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import peft
import pytest
import tyro
from doc_blocks import ROOT, Command, blocks, commands, inline_code, pages, words_of

from dmgal.adapters import ADAPTERS
from dmgal.cli import COMMANDS
from dmgal.cli import main as dmgal
from dmgal.episodes.heads import HEADS
from dmgal.errors import DmgalError
from dmgal.recipes.run.layers import bundled_layers

CONFIGS = ROOT / "recipes" / "configs"
LAYER = "data: {name: ssv2_small, root: videos}"
"""Content of a recipe layer of the user's that no page shows."""
SHELL = {"cd", "cp", "done", "export", "for", "git", "mkdir", "mv", "pytest", "sha256sum"}
"""Programs and words of the shell, which are not checked. `test_docs_run.py` runs those of tutorials."""
FLAG = re.compile(r"(?<![\w-])--([a-z][\w.-]*)")
OF_OTHERS = {"config-file", "cpu", "multi-gpu", "nproc-per-node", "num-processes", "shm-size"}
"""Options of pip, launchers and docker that the prose names."""


class AcceptedError(Exception):
    """The parser accepted a command line."""


def in_layers() -> Iterator[Command]:
    """Yield the commands in the comments of recipe layers."""
    for layer in sorted(CONFIGS.rglob("*.yaml")):
        for number, line in enumerate(layer.read_text().splitlines(), start=1):
            if line.startswith("#") and " dmgal " in line and "`" not in line:
                words = words_of(line.removeprefix("#"))
                if words[:1] == ("dmgal",):
                    yield Command(layer.relative_to(ROOT), number, words)


EVERY = [*(command for page in pages() for command in commands(page)), *in_layers()]


@pytest.mark.parametrize("command", EVERY, ids=str)
def test_parser_accepts_the_command(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check(command, monkeypatch)


def test_there_are_commands() -> None:
    by_page = {page.relative_to(ROOT).as_posix(): list(commands(page)) for page in pages()}
    names = {command.words[1] for command in by_page["README.md"] if command.words[0] == "dmgal"}
    assert names >= {"train", "prepare", "store", "evaluate"}
    assert len(EVERY) > 120 and len(list(in_layers())) > 20


@pytest.mark.parametrize(
    "line",
    [
        "dmgal train method/dmgal_adaptor data/moving_shapes",
        "dmgal evaluate runs/mine --epissodes 100",
        "dmgal bench --data clips --methods frozen smgaa",
        "dmgal bench bench/experiments/domain.json --out out",
        "dmgal trian method/smga",
        "dmgal train method/smga --adapter.bottle 3",
        "python -m dmgal.bench.docs_table --check",
        "python examples/custom_cnn.py",
        "torchrun --nproc-of-nodes 2 -m dmgal.recipes.train method/smga",
        "torchrun --nproc_per_node 2 -m dmgal.recipes.train method/smgaa",
        "accelerate launch --config_file recipes/configs/launch/one.yaml -m dmgal.recipes.train method/smga",
        "make tests",
        "pip install 'dmgal[everything]'",
        "curl example.org",
    ],
)
def test_broken_command_fails(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pytest.fail.Exception):
        check(Command(Path("README.md"), 1, tuple(shlex.split(line))), monkeypatch)


def check(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail unless the command would start."""
    words = [*command.words]
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    program, arguments = Path(words[0]).name, words[1:]
    if program in PROGRAMS:
        PROGRAMS[program](arguments, command.page, monkeypatch)
    elif program not in SHELL:
        pytest.fail(f"{command}: the test does not know {program}")


def check_dmgal(words: list[str], page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse the arguments of the command line."""
    accept(dmgal, words, page, monkeypatch)
    if "--methods" in words:
        names = words[words.index("--methods") + 1 :]
        names = names[: next((n for n, name in enumerate(names) if name.startswith("--")), len(names))]
        unknown = {name for name in names if not name.endswith(".yaml")} - methods()
        if unknown:
            pytest.fail(f"no method layers: {unknown}")


def check_python(words: list[str], page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse the arguments of a module of ours, and look for a script in the repository or on the page."""
    if words[0] != "-m":
        if not (ROOT / words[0]).is_file() and words[0] not in titles(page):
            pytest.fail(f"no script {words[0]}")
    elif words[1].startswith("dmgal"):
        accept_module(words[1], words[2:], page, monkeypatch)


def check_torchrun(words: list[str], page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse the options of torchrun and those of the module."""
    from torch.distributed.run import get_args_parser

    check_launched(get_args_parser(), words, page, monkeypatch)


def check_accelerate(words: list[str], page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse the options of ``accelerate launch`` and those of the module."""
    from accelerate.commands.launch import launch_command_parser

    if words[0] != "launch":
        pytest.fail(f"accelerate {words[0]}")
    launched = check_launched(launch_command_parser(), words[1:], page, monkeypatch)
    if launched.config_file and not (ROOT / launched.config_file).is_file():
        pytest.fail(f"no file {launched.config_file}")


def check_launched(parser: ArgumentParser, words: list[str], page: Path, monkeypatch: pytest.MonkeyPatch) -> Namespace:
    """Parse a launcher's options and those of the module that it launches."""
    try:
        launched = parser.parse_args(words)
    except SystemExit:
        pytest.fail(f"the launcher refuses {words}")
    if not launched.module:
        pytest.fail("nothing is launched by -m")
    accept_module(launched.training_script, launched.training_script_args, page, monkeypatch)
    return launched


def check_make(words: list[str], page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for the targets in the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    unknown = {word for word in words if "=" not in word} - targets
    if unknown:
        pytest.fail(f"no targets of the Makefile: {unknown}")


def check_pip(words: list[str], page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for the extras and files that are installed."""
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    wanted = {extra for word in words for names in re.findall(r"\[(.+)\]", word) for extra in names.split(",")}
    folders = [word for word in words if word.startswith("examples/")]
    if wanted - extras or not all((ROOT / folder).is_dir() for folder in folders):
        pytest.fail(f"pip cannot install {words}")


def check_sbatch(words: list[str], page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for the script."""
    if not (ROOT / words[0]).is_file():
        pytest.fail(f"no file {words[0]}")


Check = Callable[[list[str], Path, pytest.MonkeyPatch], None]
PROGRAMS: dict[str, Check] = {
    "accelerate": check_accelerate,
    "dmgal": check_dmgal,
    "make": check_make,
    "pip": check_pip,
    "python": check_python,
    "sbatch": check_sbatch,
    "torchrun": check_torchrun,
}


def accept_module(module: str, words: list[str], page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail unless a module of ours accepts the arguments. Without arguments it only has to exist."""
    if find_spec(module) is None:
        pytest.fail(f"no module {module}")
    if module == "dmgal":
        check_dmgal(words, page, monkeypatch)
    elif words:
        accept(import_module(module).main, words, page, monkeypatch)


def accept(main: Callable[[list[str]], object], words: list[str], page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail unless ``main`` parses the words. It stops there."""
    parse = tyro.cli

    def parse_and_stop(*args: object, **options: object) -> None:
        parse(*args, **options)  # type: ignore[call-overload]
        raise AcceptedError

    for word in words:
        if word.startswith(("bench/", "examples/")) and word.endswith(".json") and not (ROOT / word).is_file():
            pytest.fail(f"no file {word}")
        if word.endswith(".yaml"):
            Path(word).parent.mkdir(parents=True, exist_ok=True)
            Path(word).write_text(titles(page).get(word, LAYER))
        section, _, option = word.removeprefix("--").partition(".")
        if word.startswith("--") and section in open_options() and option not in open_options()[section]:
            pytest.fail(f"no {section} has the option {option}")
    monkeypatch.setattr(tyro, "cli", parse_and_stop)
    monkeypatch.setattr(sys, "argv", ["dmgal", *words])
    output = io.StringIO()
    with contextlib.redirect_stderr(output):
        try:
            code = main(words)
        except AcceptedError:
            return
        except SystemExit as ended:
            code = ended.code
        except DmgalError as error:
            pytest.fail(str(error))
        finally:
            monkeypatch.setattr(tyro, "cli", parse)
    if code or not {"--help", "--version"} & {*words}:
        pytest.fail(f"exit code {code}: {output.getvalue()}")


@cache
def titles(page: Path) -> dict[str, str]:
    """Return the files that a page shows, by name."""
    return {block.title: block.text for block in blocks(ROOT / page) if block.title} if page.suffix == ".md" else {}


@cache
def methods() -> set[str]:
    """Return the names of the bundled method layers."""
    return {name.removeprefix("method/") for name in bundled_layers() if name.startswith("method/")}


@cache
def open_options() -> dict[str, set[str]]:
    """Return the options of any adapter and of any head."""
    configs = [*ADAPTERS, peft.LoraConfig, peft.LoHaConfig]
    heads = [parameter for head in HEADS.values() for parameter in inspect.signature(head).parameters]
    adapters = [field.name for config in configs for field in dataclasses.fields(config)]
    names = {"adapter": {*adapters, "start", "peft_type"}, "head": {*heads, "name", "matcher.name"}}
    return {section: known | {name.replace("_", "-") for name in known} for section, known in names.items()}


# ---- options in the prose ----


@cache
def known_options() -> dict[str, set[str]]:
    """Return the options of each command, as its ``--help`` lists them, with hyphens."""
    found = {}
    for name in COMMANDS:
        output = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
            patch.setenv("COLUMNS", "200")
            try:
                assert dmgal([name, "--help"]) == 0
            except SystemExit as ended:
                assert not ended.code
        found[name] = {flag.replace("_", "-") for flag in FLAG.findall(output.getvalue())}
    return found


def test_commands_and_options_in_the_prose_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    unknown = []
    for page in pages():
        for line, code in inline_code(page):
            command = Command(page.relative_to(ROOT), line, tuple(code.split()))
            if command.words[:2] == ("python", "-m"):
                check(command, monkeypatch)
            else:
                unknown += [f"{command}: {flag}" for flag in unknown_options(command)]
    assert unknown == []


def unknown_options(command: Command) -> Iterator[str]:
    """Yield the options of a command that it does not have. An option without a command may be that of any."""
    known = known_options()
    name = command.words[1] if command.words[0] == "dmgal" and len(command.words) > 1 else None
    if name is not None and name.isalpha() and name not in COMMANDS:
        yield name
    of_any = OF_OTHERS.union(*known.values())
    options = {"help", "version", *known.get(name or "", of_any)}
    sections = (*(f"{section}." for section in open_options()), "train.loss-weights.")
    for flag in FLAG.findall(" ".join(command.words)):
        if not flag.startswith(sections) and flag.replace("_", "-") not in options:
            yield flag


def test_unknown_options_are_found() -> None:
    page = Path("README.md")
    assert list(unknown_options(Command(page, 1, ("dmgal", "evaluate", "--until", "--curves", "--train.steps")))) == [
        "curves",
        "train.steps",
    ]
    assert list(unknown_options(Command(page, 1, ("--train.loss-weights.LOSS", "--data.roots")))) == ["data.roots"]

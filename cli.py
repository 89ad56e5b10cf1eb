"""The command ``dmgal``, which passes the arguments after a subcommand to the module of that name in ``COMMANDS``.

Modules are imported on demand, so ``dmgal --help`` does not import torch. Plug-ins are imported before any command, and
may add to ``COMMANDS`` and to other registries (``dmgal.recipes.run.plugins``). ``dmgal --help`` only lists them.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from . import __version__
from .errors import DmgalError
from .recipes.run.cli_errors import BAD_INPUT, exit_code
from .recipes.run.plugins import described_plugins, load_plugins


class Command(NamedTuple):
    """A module with ``main(argv) -> int | None``, and its line in ``dmgal --help``."""

    module: str
    summary: str


COMMANDS = {
    name: Command(f"dmgal.recipes.{name}", summary)
    for name, summary in {
        "train": "train an adapter, a head or a whole model on episodes of the base classes",
        "evaluate": "measure a trained run, or a frozen backbone, on episodes of unseen classes",
        "compare": "compare several runs on the same episodes, with their paired differences",
        "enroll": "store new actions, each defined by a few clips, in a gallery file",
        "recognize": "recognize a gallery's actions in clips, or find when they occur in long videos",
        "watch": "recognize a gallery's actions in a webcam, a network stream or a file, as events in JSON lines",
        "export": "write a run as ONNX or torch programs that encode videos without dmgal",
        "report": "write a web page about one run, or several on the same episodes",
        "visualize": "draw where a model sees motion and where it looks, in clips of yours",
        "app": "open a web page to teach actions with your clips or webcam, and to recognize them",
        "store": "decode a data set's videos once, ahead of training and evaluation",
        "prepare": "find a data set's videos in your download, check them, and write the files that recipes need",
        "generate": "write a generated data set, or contact sheets and films of its classes",
        "demo": "generate videos, train and compare four methods, and write a table and a web page",
    }.items()
} | {
    "bench": Command("dmgal.bench.efficiency", "train and test a matrix of methods, with accuracy and cost together"),
    "reproduce": Command("dmgal.bench.reproduce", "repeat published results on a data set, over several seeds"),
}
"""All commands by name."""

HELP, VERSION = ("-h", "--help", "help"), ("-V", "--version")
EXAMPLES = (
    "dmgal demo",
    "dmgal prepare --dataset ssv2_small --root DOWNLOAD",
    "dmgal train --list",
    "dmgal train method/dmgal_adapter data/ssv2_small --shots 1",
    "dmgal enroll runs/mine FOLDER --out gallery.safetensors",
    "dmgal recognize runs/mine gallery.safetensors CLIP",
    "dmgal train --help",
)


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments after ``dmgal``, or ``None`` for those of this process.

    Returns:
        The exit code: 0 for success, 2 for a mistake of the user, 130 after Ctrl-C.
    """
    return exit_code(_dispatch, sys.argv[1:] if argv is None else argv)


def usage() -> str:
    """Return the text of ``dmgal --help``."""
    commands = _listed({name: command.summary for name, command in COMMANDS.items()})
    plugins = described_plugins()
    installed = f"plug-ins:\n{_listed(plugins)}\n\n" if plugins else ""
    examples = "\n".join(f"  {example}" for example in EXAMPLES)
    return (
        "usage: dmgal [--help] [--version] <command> [<arguments>]\n\n"
        "Few-shot action recognition: adapters for frozen backbones, trained and tested on episodes of videos.\n\n"
        f"commands:\n{commands}\n\n"
        f"{installed}"
        f"examples:\n{examples}\n\n"
        "'dmgal <command> --help' explains a command's arguments."
    )


def _listed(summaries: dict[str, str]) -> str:
    width = max(map(len, summaries))
    return "\n".join(f"  {name:<{width}}  {summary}".rstrip() for name, summary in summaries.items())


def _dispatch(argv: list[str] | None) -> int | None:
    is_question = not argv or argv[0] in (*HELP, *VERSION)
    load_plugins(installed=not is_question)
    if not argv:
        print(usage(), file=sys.stderr)
        return BAD_INPUT
    command, *arguments = argv
    if command in HELP:
        print(usage())
        return 0
    if command in VERSION:
        print(f"dmgal {__version__}")
        return 0
    if command not in COMMANDS:
        raise _unknown_command(command)
    run: Callable[[list[str]], int | None] = _imported(COMMANDS[command].module).main
    return run(arguments)


def _imported(module: str) -> ModuleType:
    """Import a command without garbage collection, which took a quarter of the time from the start to an answer.

    Imported modules are used until the process ends, so there is little to collect. Collections that visit them again,
    later and at the exit, find nothing either. Frozen objects are not visited.
    """
    if module in sys.modules or not gc.isenabled():
        return import_module(module)
    gc.disable()
    try:
        return import_module(module)
    finally:
        gc.freeze()
        gc.enable()


def _unknown_command(command: str) -> DmgalError:
    similar = get_close_matches(command, COMMANDS, n=1, cutoff=0.5)
    return DmgalError(
        "Unknown command.",
        received=repr(command),
        expected=f"one of {', '.join(COMMANDS)}",
        remedy=f"Did you mean 'dmgal {similar[0]}'?" if similar else "See 'dmgal --help'.",
    )

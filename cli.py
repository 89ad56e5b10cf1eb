"""The command ``dmgal``: finds the recipe that a subcommand names and hands the remaining arguments on to it.

A recipe is imported only when it is asked for, so that ``dmgal --help`` answers without importing torch.
"""

from __future__ import annotations

import sys
from difflib import get_close_matches
from importlib import import_module

from . import __version__
from .errors import DmgalError
from .recipes.entry import BAD_INPUT, exit_code

SUBCOMMANDS = {
    "train": "train an adapter, a head or a whole model on episodes of the base classes",
    "evaluate": "measure a trained run, or a frozen backbone, on episodes of classes it has never seen",
    "compare": "put several runs side by side on the same episodes, with their paired differences",
    "enroll": "keep new actions, each known by a few clips, in a gallery file",
    "recognize": "tell which of a gallery's actions clips show, or when long videos show them",
    "store": "decode a data set's videos once, so that training and evaluation need not",
    "prepare": "find a data set's videos in your download, check all of them, write what recipes take",
    "demo": "make videos, train and compare four methods, and write one table and one web page",
}
"""Each is the module of the same name in ``dmgal.recipes``, with a function ``main(argv) -> int | None``."""

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
        argv: the arguments behind ``dmgal``; ``None`` means those of this process.

    Returns:
        The exit code: 0 for success, 2 for a mistake in what the user gave, 130 after Ctrl-C.
    """
    return exit_code(_dispatch, sys.argv[1:] if argv is None else argv)


def usage() -> str:
    """Return the text of ``dmgal --help``."""
    width = max(map(len, SUBCOMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in SUBCOMMANDS.items())
    examples = "\n".join(f"  {example}" for example in EXAMPLES)
    return (
        "usage: dmgal [--help] [--version] <command> [<arguments>]\n\n"
        "Few-shot action recognition: adapters for frozen backbones, trained and tested on episodes of videos.\n\n"
        f"commands:\n{commands}\n\n"
        f"examples:\n{examples}\n\n"
        "'dmgal <command> --help' explains a command's arguments."
    )


def _dispatch(argv: list[str] | None) -> int | None:
    if not argv:
        print(usage(), file=sys.stderr)
        return BAD_INPUT
    command, *arguments = argv
    if command in ("-h", "--help", "help"):
        print(usage())
        return 0
    if command in ("-V", "--version"):
        print(f"dmgal {__version__}")
        return 0
    if command not in SUBCOMMANDS:
        raise _unknown(command)
    return import_module(f"dmgal.recipes.{command}").main(arguments)  # type: ignore[no-any-return]


def _unknown(command: str) -> DmgalError:
    nearest = get_close_matches(command, SUBCOMMANDS, n=1, cutoff=0.5)
    return DmgalError(
        "dmgal has no such command",
        received=repr(command),
        expected=f"one of {', '.join(SUBCOMMANDS)}",
        remedy=f"did you mean 'dmgal {nearest[0]}'?" if nearest else "see 'dmgal --help'",
    )

"""Command ``dmgal hardest-pairs``. Its module is imported when it runs, so that other commands start fast."""

from dmgal.cli import COMMANDS, Command

SUMMARY = "print the pairs of classes that a run confuses most"
COMMANDS["hardest-pairs"] = Command("dmgal_example_command.hardest_pairs", SUMMARY)

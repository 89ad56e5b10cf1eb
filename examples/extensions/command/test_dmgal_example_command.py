"""The pairs that the command prints."""

import sys

import dmgal_example_command
import numpy as np
from dmgal_example_command.hardest_pairs import hardest_pairs

from dmgal.cli import COMMANDS, usage


def test_pairs_count_both_directions_and_only_common_tasks():
    chosen = np.array([[5, 3, 0], [1, 6, 1], [0, 0, 4]])
    offered = np.array([[8, 8, 0], [8, 8, 4], [0, 4, 4]])
    pairs = hardest_pairs(chosen, offered)
    assert [(pair.one, pair.other, pair.offered, pair.confused) for pair in pairs] == [(0, 1, 16, 4), (1, 2, 8, 1)]
    assert pairs[0].rate == 0.25


def test_command_is_registered():
    assert COMMANDS["hardest-pairs"].module in sys.modules
    assert dmgal_example_command.SUMMARY in usage()

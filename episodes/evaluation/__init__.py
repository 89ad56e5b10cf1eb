"""Evaluation: every video encoded once, every task scored from the states."""

from .accuracy import Estimate, Evaluation, encode_videos, evaluate, paired_difference

__all__ = ["Estimate", "Evaluation", "encode_videos", "evaluate", "paired_difference"]

"""The probe beside a run's own head: ridge regression on the mean frames of the same encoder, on the same episodes.

A trained head is worth little if a plain probe of the same features does as well, so comparisons always show both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.evaluation import Evaluation
from dmgal.episodes.heads import RidgeProbe
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.encoding import EncodedSplit, Keep
from dmgal.recipes.run.evaluation import Protocol, encode, evaluate_tasks
from dmgal.videos import VideoCatalog


def probe_of(recognizer: FewShotRecognizer) -> FewShotRecognizer:
    """Return the recognizer with the probe in place of its head."""
    return FewShotRecognizer(recognizer.encoder, RidgeProbe()).eval()


def encode_for_probe(
    recognizer: FewShotRecognizer,
    recipe: Recipe,
    catalog: VideoCatalog,
    protocol: Protocol,
    progress: bool = True,
    keep: Keep | None = None,
) -> EncodedSplit:
    """Return the split encoded for the probe, a mean frame per video. Its states are beside those of the run's head."""
    if keep is not None and keep.folder is not None:
        keep = replace(keep, folder=keep.folder / "probe")
    return encode(probe_of(recognizer), recipe, catalog, protocol, progress, keep)


def evaluate_probe(
    recognizer: FewShotRecognizer,
    recipe: Recipe,
    encoded: EncodedSplit,
    protocol: Protocol,
    progress: bool = True,
    like: Mapping[str, Evaluation] | None = None,
    reversal: bool = True,
) -> dict[str, Evaluation]:
    """Return the evaluations of the probe, see `evaluate_tasks`."""
    return evaluate_tasks(probe_of(recognizer), recipe, encoded, protocol, progress, like, reversal)

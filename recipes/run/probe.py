"""The probe beside a run's own head: ridge regression on the mean frames of the same encoder, on the same episodes.

A trained head is worth little if a plain probe of the same features does as well, so comparisons always show both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dmgal.backbones import VideoState
from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.evaluation import Evaluation
from dmgal.episodes.evaluation.states import PrecomputedStates, SupportStates
from dmgal.episodes.heads import RidgeProbe
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.encoding import EncodedSplit, Keep
from dmgal.recipes.run.evaluation import Protocol, encode, evaluate_tasks
from dmgal.recipes.run.text_lora import learns_text
from dmgal.videos import VideoCatalog


class KeptFeatures(nn.Module):
    """In place of a head: keeps the features, from which `prepared_for` makes the states of any head."""

    def prepare(self, features: Tensor) -> VideoState:
        """Return features ``(V, T, D)`` as a state."""
        return VideoState(features=features)


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


def encode_for_both(
    recognizer: FewShotRecognizer, recipe: Recipe, catalog: VideoCatalog, protocol: Protocol, keep: Keep
) -> tuple[EncodedSplit, EncodedSplit]:
    """Return the split encoded for the run's head and for the probe. Each video is read and encoded once.

    A head that learns from pixels or text needs more than features. Then each of the two encodes the videos.
    """
    if getattr(recognizer.head, "wants_frames", False) or learns_text(recognizer):
        separate = encode(recognizer, recipe, catalog, protocol, False, keep)
        return separate, encode_for_probe(recognizer, recipe, catalog, protocol, False, keep)
    no_head: Any = KeptFeatures()  # compares nothing
    kept = FewShotRecognizer(recognizer.encoder, no_head).eval()
    encoded = encode(kept, recipe, catalog, protocol, False, keep)
    own, of_probe = (prepared_for(one, encoded.states) for one in (recognizer.eval(), probe_of(recognizer)))
    return replace(encoded, states=own), replace(encoded, states=of_probe)


@torch.no_grad()
def prepared_for(recognizer: FewShotRecognizer, kept: PrecomputedStates) -> PrecomputedStates:
    """Return the states of a recognizer's videos from those that `KeptFeatures` has kept of the same encoder."""
    device = next(recognizer.parameters()).device
    recognizer.to(device)
    if kept.support.attended is not None:
        state = recognizer.head.prepare(kept.support.state["features"].to(device)).to("cpu")
        return PrecomputedStates(SupportStates(state, kept.support.attended), kept.query)
    if recognizer.encoder.has_task_layer:
        return kept
    return PrecomputedStates.undivided(recognizer.head.prepare(kept.query["features"].to(device)).to("cpu"))


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

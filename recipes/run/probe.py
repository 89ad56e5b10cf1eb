"""The probe beside a run's own head: ridge regression on the mean frames of the same encoder, on the same episodes.

A trained head is worth little if a plain probe of the same features does as well, so comparisons always show both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from dmgal.backbones import VideoState
from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.evaluation import Evaluation
from dmgal.episodes.evaluation.states import PrecomputedStates, SupportStates, with_prefix
from dmgal.episodes.heads import RidgeProbe
from dmgal.episodes.recognizer import Head
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.encoding import EncodedSplit, Keep
from dmgal.recipes.run.evaluation import Protocol, encode, evaluate_tasks
from dmgal.recipes.run.text_lora import learns_text
from dmgal.videos import VideoCatalog

OF_PROBE = "of_probe."
"""Start of the names of the probe's states beside those of a head."""


class HeadWithProbe(nn.Module):
    """In place of a head: prepares the states of the head and, beside them, those of the probe."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head, self.probe = head, RidgeProbe()

    @property
    def wants_frames(self) -> bool:
        """True if the head receives the videos, too."""
        return bool(getattr(self.head, "wants_frames", False))

    def prepare(self, features: Tensor, **options: Tensor) -> VideoState:
        """Return the states of features ``(V, T, D)``, those of the probe under names that begin with `OF_PROBE`."""
        of_probe = {OF_PROBE + name: tensor for name, tensor in self.probe.prepare(features).items()}
        return VideoState(self.head.prepare(features, **options), **of_probe)


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

    A head that learns from text needs the names of the classes as well. Then each of the two encodes the videos.
    """
    if learns_text(recognizer):
        separate = encode(recognizer, recipe, catalog, protocol, False, keep)
        return separate, encode_for_probe(recognizer, recipe, catalog, protocol, False, keep)
    both: Any = HeadWithProbe(recognizer.head)  # compares nothing
    encoded = encode(FewShotRecognizer(recognizer.encoder, both), recipe, catalog, protocol, False, keep)
    own, of_probe = (_select(encoded.states, part) for part in (_own, _of_probe))
    return replace(encoded, states=own), replace(encoded, states=of_probe)


def _select(states: PrecomputedStates, part: Callable[[VideoState], VideoState]) -> PrecomputedStates:
    """Return the states with a part of what `HeadWithProbe` has prepared."""
    support = states.support
    if support.attended is None:
        return PrecomputedStates.undivided(part(states.query))
    return PrecomputedStates(SupportStates(part(support.state), support.attended), states.query)


def _own(state: VideoState) -> VideoState:
    return VideoState({name: tensor for name, tensor in state.items() if not name.startswith(OF_PROBE)})


def _of_probe(state: VideoState) -> VideoState:
    return with_prefix(state, OF_PROBE) or state  # with undivided task layers, no head has prepared anything yet


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

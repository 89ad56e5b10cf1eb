"""The state of one visit of the page: actions with their clips, answers, and the sample task. No web framework here."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock

from torch import Tensor

from dmgal.errors import DmgalError
from dmgal.files import printable
from dmgal.recipes.reports.films import read_film, strip
from dmgal.recipes.run.action_recognizer import ActionRecognizer
from dmgal.recipes.run.gallery import GalleryModel, decode_frames, test_frames
from dmgal.recipes.run.shown_layer import looking_layer
from dmgal.recipes.web.uploads import MOST_SECONDS, check_clip, discard, reading, shown_name, unreadable
from dmgal.videos.decoding.base import VideoError
from dmgal.videos.decoding.clip import TestTransform
from dmgal.videos.generated import write_video
from dmgal.videos.motion_world.clips import MotionWorld
from dmgal.visualization.drawing import heat_images
from dmgal.visualization.maps import motion_strength, received_attention, record

MOST_ACTIONS, MOST_CLIPS, MOST_NAME = 20, 5, 60
"""Actions of a visit, clips of an action, and characters of a name."""
ANSWER_PIXELS = 160
SAMPLE_ACTIONS = {
    "spins on the spot": "spin_on_spot",
    "two pass each other": "two_pass_by",
    "steps sideways": "side_step",
    "stacks one on another": "stack_on",
}
"""Names of the actions of the sample task, with their classes of motion world. All four are novel to its adapter."""
SAMPLE_CLIPS, SAMPLE_SECONDS, SAMPLE_PIXELS = 5, 1.6, 192
FIRST_QUERY = 14  # number of the first clip to recognize
_ONE_AT_A_TIME = Lock()  # the model is shared, and its layers are recorded by hooks


@dataclass(frozen=True)
class Bar:
    """An action in the answer, with its calibrated probability."""

    name: str
    probability: float
    is_best: bool


@dataclass(frozen=True)
class Answer:
    """Answer to a query, and pictures of what the model sees.

    Attributes:
        name: of the clip.
        recognized: the action, or None if it is unknown.
        best: the most similar action.
        probability: calibrated confidence that the best action is right if the clip shows one of the actions.
        bars: all actions, the most probable first.
        film, heat: data URIs of strips of frames, as they are and under the heat of the attention.
        frames: number of frames in a strip.
        heat_title: meaning of the heat.
        layer: the layer that it is of.
        seconds: time from the upload to this answer.
        truth: action of a sample clip.
    """

    name: str
    recognized: str | None
    best: str
    probability: float
    bars: tuple[Bar, ...]
    film: str
    heat: str
    frames: int
    heat_title: str
    layer: str
    seconds: float
    truth: str | None = None


@dataclass
class Visit:
    """Actions of one visitor.

    Args:
        recognizer: without classes. Visits share its model, see `ActionRecognizer.__sklearn_clone__`.
        folder: folder of all uploads. Files outside of it are refused.

    Attributes:
        actions: data URIs of the film strips of each action's clips, by its name.
        is_sample: the actions are those of the sample task.
    """

    recognizer: ActionRecognizer
    folder: Path
    actions: dict[str, list[str]] = field(default_factory=dict)
    is_sample: bool = False
    _num_samples: int = 0

    def __deepcopy__(self, memo: object) -> Visit:
        """Return a visit without actions that shares the model. Gradio copies the first one for each session."""
        return Visit(self.recognizer.__sklearn_clone__(), self.folder)

    def add(self, name: str, clips: Sequence[Path]) -> str:
        """Enroll clips of an action, delete them, and return a message. After an error, the actions are as before.

        A name that differs from an earlier one in case and spaces only adds to that action. Clips are deleted too if
        one of them is bad. They remain if only their name or number is, which a visitor can correct.

        Raises:
            DmgalError: the name or a clip cannot be used, or a limit is reached.
        """
        known = self._known(name)
        self._check(known, clips)
        try:
            for clip in clips:
                check_clip(clip, self.folder)
            strips = self._enroll({known: clips})[known]
        finally:
            discard(clips, self.folder)
        is_new = known not in self.actions
        self.actions.setdefault(known, []).extend(strips)
        self.is_sample = False
        added = "1 clip" if len(clips) == 1 else f"{len(clips)} clips"
        if not is_new:
            return f"“{known}” was there already, so {added} joined it. It has {len(self.actions[known])} now."
        missing = " Add a second action, then show me a clip." if len(self.actions) == 1 else ""
        return f"“{known}” is learned from {added}.{missing}"

    def remove(self, name: str) -> None:
        """Forget an action. Raise a DmgalError if there is none of this name."""
        if name not in self.actions:
            raise DmgalError(
                "There is no such action any more.",
                received=printable(name),
                expected="an action on the page",
                remedy="Load the page again.",
            )
        if len(self.actions) == 1:
            self.clear()
            return
        with _ONE_AT_A_TIME:
            self.recognizer.remove(name)
            self.recognizer.clip_recognizer()
        del self.actions[name]
        self.is_sample = False

    def clear(self) -> None:
        """Forget all actions."""
        self.recognizer = self.recognizer.__sklearn_clone__()
        self.actions, self.is_sample = {}, False

    def recognize(self, clip: Path) -> Answer:
        """Return the answer for a clip, which is deleted.

        Raises:
            DmgalError: there are fewer than two actions, or the clip cannot be used.
        """
        started = time.monotonic()
        try:
            if len(self.actions) < 2:
                raise DmgalError(
                    "There is nothing to choose from yet.",
                    received=f"{len(self.actions)} of at least 2 actions",
                    expected="two actions or more, each with a clip",
                    remedy="Add actions first, or try the sample task.",
                )
            check_clip(clip, self.folder)
            return self._answer(clip, started)
        finally:
            discard([clip], self.folder)

    def sample(self) -> Answer:
        """Replace the actions by those of the sample task, and return the answer to a clip of one of them.

        A second call keeps the actions and shows another clip. All clips are generated.
        """
        world = MotionWorld(seed=3, clips_per_class=10**5, frames=round(10 * SAMPLE_SECONDS), pixels=SAMPLE_PIXELS)
        number_of = {motion.name: number for number, motion in enumerate(world.classes())}
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            folder = Path(name)
            if not self.is_sample:
                self.clear()
                clips = {
                    action: [folder / f"{action} {clip + 1}.mp4" for clip in range(SAMPLE_CLIPS)]
                    for action in SAMPLE_ACTIONS
                }
                for action, paths in clips.items():
                    for number, path in enumerate(paths):
                        write_video(path, world.clip(number_of[SAMPLE_ACTIONS[action]], number))
                self.actions = self._enroll(clips)
                self.is_sample, self._num_samples = True, 0
            names = [*SAMPLE_ACTIONS]
            # In steps of three, every action of four is shown before one is repeated, and not in the order of the list.
            truth = names[(2 + 3 * self._num_samples) % len(names)]
            query = folder / f"sample clip {self._num_samples + 1}.mp4"
            write_video(query, world.clip(number_of[SAMPLE_ACTIONS[truth]], FIRST_QUERY + self._num_samples))
            self._num_samples += 1
            return self._answer(query, time.monotonic(), truth)

    def _known(self, name: str) -> str:
        """Return the name of an existing action that is equal but for case and spaces, or the name itself."""
        name = printable(" ".join(name.split()))
        return next((known for known in self.actions if known.casefold() == name.casefold()), name)

    def _check(self, name: str, clips: Sequence[Path]) -> None:
        if not name:
            raise DmgalError(
                "The action has no name.",
                expected="a word or two, such as “wave”",
                remedy="Name the action.",
            )
        if len(name) > MOST_NAME:
            raise DmgalError(
                "The name is too long.",
                received=f"{len(name)} characters",
                expected=f"at most {MOST_NAME}",
                remedy="Choose a shorter name.",
            )
        if not clips:
            raise DmgalError(
                "The action has no clip.",
                received=f"“{name}” without a clip",
                expected=f"1 to {MOST_CLIPS} clips that show it, of at most {MOST_SECONDS} seconds",
                remedy="Drop clips, or record one with the webcam.",
            )
        count = len(self.actions.get(name, [])) + len(clips)
        if count > MOST_CLIPS:
            raise DmgalError(
                "These are too many clips of one action.",
                received=f"{count} clips of “{name}”",
                expected=f"1 to {MOST_CLIPS}",
                remedy="Choose the clips that show it best.",
            )
        if name not in self.actions and len(self.actions) >= MOST_ACTIONS:
            raise DmgalError(
                "These are too many actions for this page.",
                received=f"“{name}”, action {MOST_ACTIONS + 1}",
                expected=f"at most {MOST_ACTIONS}",
                remedy="Remove an action. The command dmgal enroll has no such limit.",
            )

    def _enroll(self, actions: Mapping[str, Sequence[Path]]) -> dict[str, list[str]]:
        """Enroll clips by action, compute the threshold of unknown actions, and return the film strips."""
        strips = {name: [reading(clip, _strip_of) for clip in clips] for name, clips in actions.items()}
        every = [clip for clips in actions.values() for clip in clips]
        with _ONE_AT_A_TIME:
            try:
                self.recognizer.enroll({name: [*clips] for name, clips in actions.items()})
            except VideoError as error:
                raise unreadable(next((clip for clip in every if str(clip) in str(error)), every[0]), error) from error
            self.recognizer.clip_recognizer()
        return strips

    def _answer(self, clip: Path, started: float, truth: str | None = None) -> Answer:
        model = self.recognizer.model
        decoded = reading(clip, partial(decode_frames, model))
        with _ONE_AT_A_TIME:
            answer = self.recognizer.recognize(decoded)
            heat, title, layer = _heat(model, test_frames(model).transform(decoded))
        frames = TestTransform(ANSWER_PIXELS)(decoded)
        ranked = sorted(answer.scores.items(), key=lambda item: -item[1].probability)
        return Answer(
            name=shown_name(clip),
            recognized=None if answer.recognized is None else str(answer.recognized),
            best=str(answer.best),
            probability=answer.probability,
            bars=tuple(Bar(str(name), score.probability, name == answer.best) for name, score in ranked),
            film=strip(frames),
            heat=strip(heat_images(frames, heat)),
            frames=len(frames),
            heat_title=title,
            layer=layer,
            seconds=time.monotonic() - started,
            truth=truth,
        )


def _strip_of(clip: Path) -> str:
    return strip(read_film(clip))


def _heat(model: GalleryModel, frames: Tensor) -> tuple[Tensor, str, str]:
    """Return the attention or else the motion in each frame, ``(T, H, W)``, what it is, and the layer in words."""
    layer = looking_layer(model)
    has_attention = layer.attention != "none"
    recording = record(model.recognizer, frames[None], layer.name, relative=not has_attention)
    if has_attention:
        return received_attention(recording), "Where the model looks", recording.title
    return motion_strength(recording)[0], "Where the model sees motion", recording.title

"""Recognition of clips and long videos with a run and a gallery."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.decoding.timed_frames import TimedFrames
from dmgal.episodes.frames import uniform_frames
from dmgal.episodes.galleries.gallery_task import GalleryTask
from dmgal.episodes.galleries.recognition import Recognition, recognize_clips, recognize_windows
from dmgal.episodes.galleries.sliding_windows import WindowPlan, sliding_windows
from dmgal.episodes.galleries.timeline import Segment, WindowScore
from dmgal.episodes.gallery import Gallery, refuse_other_model
from dmgal.episodes.listing import printable
from dmgal.episodes.video import read_clip
from dmgal.recipes.build import test_transform
from dmgal.recipes.config import Recipe
from dmgal.recipes.galleries.gallery_making import gallery_task, with_rejection
from dmgal.recipes.galleries.made_with import made_with


@dataclass(frozen=True, eq=False)
class Recognized:
    """Result of one video, either for the whole clip or as a timeline of windows."""

    path: Path
    clip: Recognition | None = None
    segments: tuple[Segment, ...] = ()
    windows: tuple[WindowScore, ...] = ()
    damage: str | None = None
    """Reason why only the beginning of a long video could be used."""

    @property
    def folder(self) -> str:
        """Class name by the parent folder."""
        return printable(self.path.absolute().parent.name)


class ClipRecognizer:
    """Recognizer of clips and long videos with a run and a gallery.

    Args:
        recipe, recognizer: recipe and recognizer of the run.
        gallery: made with this run.
        shortlist: see `GalleryTask`. None: that of the gallery's threshold. 0: no shortlist.
        unknown: allow unknown clips.
        progress: show a bar while the threshold for another shortlist is computed.

    Raises:
        DmgalError: the gallery was made with another model. The message lists the differences.
    """

    def __init__(
        self,
        recipe: Recipe,
        recognizer: FewShotRecognizer,
        gallery: Gallery,
        shortlist: int | None = None,
        unknown: bool = True,
        progress: bool = True,
    ) -> None:
        refuse_other_model(gallery.made_with, made_with(recipe, recognizer), "The run")
        own = gallery.rejection.shortlist if gallery.rejection is not None else None
        wanted = own if shortlist is None else shortlist or None
        if gallery.rejection is None or wanted != own:
            gallery = with_rejection(gallery, recognizer, wanted, progress)
        recognizer.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.gallery = gallery
        self.num_frames = recipe.data.num_frames
        self.transform = test_transform(recipe, recognizer.encoder.image_size)
        self.task: GalleryTask = gallery_task(gallery, recognizer, wanted)
        self.threshold = gallery.rejection.threshold if unknown and gallery.rejection is not None else None
        self._decoder = recipe.data.decoder

    def clip(self, path: Path) -> Recognition:
        """Recognize a clip. Raise a VideoError if it cannot be read."""
        frames = read_clip(path, lambda n: uniform_frames(n, self.num_frames), self.num_frames, self._decoder)
        return recognize_clips(self.task, self.transform(frames).unsqueeze(0), self.threshold)[0]

    def long_video(
        self, path: Path, plan: WindowPlan, frames_per_second: float | None = None, progress: bool = True
    ) -> Recognized:
        """Recognize the actions in a long video. Raise a VideoError if none of it can be read."""
        frames, kept = TimedFrames(path, frames_per_second), list[WindowScore]()

        def keep(window: WindowScore) -> None:
            kept.append(window)
            bar.update(round(min(window.end, bar.total or window.end), 2) - bar.n)

        title, total = printable(path.name), None if frames.seconds is None else round(frames.seconds, 2)
        with tqdm(total=total, desc=title, unit="s", leave=False, disable=not progress) as bar:
            windows = sliding_windows(frames, plan, self.num_frames, self.transform)
            segments = recognize_windows(self.task, windows, self.threshold, plan.stride, on_window=keep)
        return Recognized(path, segments=tuple(segments), windows=tuple(kept), damage=frames.damage)

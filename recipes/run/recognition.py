"""Recognition of clips and long videos with a run and a gallery."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dmgal.episodes.gallery.gallery import Gallery
from dmgal.episodes.gallery.recognition import (
    Recognition,
    Segment,
    WindowScore,
    recognize_clips,
    recognize_windows,
)
from dmgal.episodes.gallery.task import GalleryTask
from dmgal.episodes.gallery.windows import WindowPlan, sliding_windows
from dmgal.errors import DmgalError
from dmgal.files import printable
from dmgal.progress import progress_bar
from dmgal.recipes.run.gallery import GalleryModel, gallery_task, make_ready, test_frames, with_rejection
from dmgal.recipes.run.text import with_gallery_texts
from dmgal.videos.bad_videos import OnBadVideo
from dmgal.videos.catalog.files import SHOWN_EXTENSIONS, content_hash, frame_files, subfolders, videos_in
from dmgal.videos.decoding.base import OpenVideo, VideoError
from dmgal.videos.decoding.stream import TimedFrames
from dmgal.videos.decoding.video import read_clip

logger = logging.getLogger(__name__)


def find_videos(paths: tuple[Path, ...]) -> list[Path]:
    """Return the clips in ``paths``, and all clips below its folders, in natural order.

    Raises:
        DmgalError: there is no path, or a folder without a clip.
    """
    found: list[Path] = []
    for path in paths:
        is_clip = not path.is_dir() or (frame_files(path) and not videos_in(path))
        clips = [path] if is_clip else list(_below(path))
        if not clips:
            raise DmgalError(
                "There is no clip to recognize.",
                received=f"{printable(str(path))}, a folder without one",
                expected=f"files ({SHOWN_EXTENSIONS}) or folders of jpg or png frames",
                remedy="Correct the path.",
            )
        found += clips
    if not found:
        raise DmgalError(
            "There is no clip to recognize.",
            received="no path",
            expected="clips or folders of clips",
            remedy="Run dmgal recognize [RUN] GALLERY CLIP ...",
        )
    return found


def _below(folder: Path) -> Iterator[Path]:
    videos = videos_in(folder)
    yield from (folder / name for name in videos)
    for name in subfolders(folder):
        if name not in videos:
            yield from _below(folder / name)


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
        model, gallery: the gallery was made with the model.
        shortlist: see `GalleryTask`. None: that of the gallery's threshold. 0: no shortlist.
        unknown: allow unknown clips.
        progress: show a bar while the threshold for another shortlist is computed.

    Raises:
        DmgalError: the gallery was made with another model. The message lists the differences.
    """

    def __init__(
        self,
        model: GalleryModel,
        gallery: Gallery,
        shortlist: int | None = None,
        unknown: bool = True,
        progress: bool = True,
    ) -> None:
        gallery.check_model(model.made_with)
        recipe, recognizer = model.recipe, with_gallery_texts(model.recognizer, model.recipe, gallery)
        own = gallery.rejection.shortlist if gallery.rejection is not None else None
        wanted = own if shortlist is None else shortlist or None
        if gallery.rejection is None or wanted != own:
            gallery = with_rejection(gallery, recognizer, wanted, progress)
        make_ready(recognizer)
        self.gallery = gallery
        self.frames = test_frames(model)
        self.task: GalleryTask = gallery_task(gallery, recognizer, wanted)
        self.unknown = unknown and gallery.rejection is not None
        self._decoder = recipe.data.decoder

    def clip(self, video: Path | OpenVideo) -> Recognition:
        """Recognize a clip. Raise a VideoError if it cannot be read."""
        read = partial(read_clip, video, at_least=self.frames.num_frames, decoder=self._decoder)
        return recognize_clips(self.task, self.frames.clip(read).unsqueeze(0), self.gallery.rejection, self.unknown)[0]

    def long_video(
        self, path: Path, plan: WindowPlan, frames_per_second: float | None = None, progress: bool = True
    ) -> Recognized:
        """Recognize the actions in a long video. Raise a VideoError if none of it can be read."""
        frames, kept = TimedFrames(path, frames_per_second), list[WindowScore]()

        def keep(window: WindowScore) -> None:
            kept.append(window)
            bar.update(round(min(window.end, bar.total or window.end), 2) - bar.n)

        title, total = printable(path.name), None if frames.seconds is None else round(frames.seconds, 2)
        with progress_bar(progress=progress, total=total, desc=title, unit="s", leave=False) as bar:
            windows = sliding_windows(frames, plan, self.frames.num_frames, self.frames.transform)
            segments = recognize_windows(
                self.task, windows, self.gallery.rejection, plan.stride, unknown=self.unknown, on_window=keep
            )
        return Recognized(path, segments=tuple(segments), windows=tuple(kept), damage=frames.damage)


def recognize_videos(
    ready: ClipRecognizer,
    paths: Sequence[Path],
    plan: WindowPlan | None = None,
    frames_per_second: float | None = None,
    on_bad_video: OnBadVideo = "error",
    progress: bool = True,
) -> tuple[list[Recognized], list[dict[str, str]]]:
    """Recognize clips, or long videos if there is a ``plan``. Return the results and the skipped bad videos.

    Raises:
        VideoError: a video cannot be read and must not be skipped.
    """
    results: list[Recognized] = []
    bad: list[dict[str, str]] = []
    several = progress and len(paths) > 1
    for path in progress_bar(paths, progress=several, desc="recognize", unit="video", leave=False):
        try:
            if plan is None:
                results.append(Recognized(path, ready.clip(path)))
            else:
                results.append(ready.long_video(path, plan, frames_per_second, progress))
        except VideoError as error:
            if on_bad_video == "error":
                raise
            reason = error.received or str(error)
            bad.append({"video": printable(str(path)), "reason": printable(reason)})
            logger.warning("bad video: %s: %s; skipped", printable(str(path)), printable(reason))
    return results, bad


def folder_accuracy(gallery: Gallery, results: Sequence[Recognized]) -> dict[str, object] | None:
    """Return the accuracy on clips in folders named after classes, without enrolled clips. None if there are none."""
    named = [one for one in results if one.clip is not None and one.folder in gallery.class_names]
    counted = [one for one in named if content_hash(one.path) not in gallery.contents]
    if not counted:
        return None
    right = sum(one.clip is not None and gallery.class_names[one.clip.label] == one.folder for one in counted)
    unknown = sum(one.clip is not None and not one.clip.known for one in counted)
    counts = {"clips": len(counted), "right": right, "called_unknown": unknown, "enrolled": len(named) - len(counted)}
    return {"percent": 100 * right / len(counted), **counts}

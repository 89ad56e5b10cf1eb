"""Recognition of clips and long videos with a gallery that 'dmgal enroll' made with the same run.

    dmgal recognize runs/mine gallery.safetensors clip.mp4
    dmgal recognize runs/mine gallery.safetensors FOLDER --json
    dmgal recognize runs/mine gallery.safetensors long.mp4 --window 4 --stride 2

A clip is compared with every class of the gallery. Its scores are the softmax of the logits, and the margin is the best
logit minus the second best. A clip is unknown if its best logit is below the gallery's threshold. With --window a video
is cut into overlapping windows, each recognized as a clip. A segment shows the class of the best window at each moment.
Frames are decoded once, and memory does not grow with the length of the video. If folders of clips are named after
classes of the gallery, the accuracy is printed too. Enrolled clips do not count.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from dmgal.episodes.gallery.gallery import Gallery, load_gallery
from dmgal.episodes.gallery.recognition import WindowPlan
from dmgal.errors import DmgalError
from dmgal.files import printable
from dmgal.progress import progress_bar
from dmgal.recipes.enroll import rejection_text
from dmgal.recipes.reports.recognition import clip_as_json, print_clips, print_timeline, timeline_as_json
from dmgal.recipes.run.cli_errors import as_description, run_recipe
from dmgal.recipes.run.evaluation import load_run
from dmgal.recipes.run.folder import Run
from dmgal.recipes.run.gallery import ClipRecognizer, Recognized
from dmgal.videos.bad_videos import OnBadVideo
from dmgal.videos.catalog.files import VIDEO_EXTENSIONS, content_hash, frame_files, subfolders, videos_in
from dmgal.videos.decoding.base import VideoError


@dataclass(frozen=True)
class Recognize:
    """Options of the command."""

    run: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """Folder of the run that the gallery was made with."""
    gallery: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="GALLERY")]]
    """Gallery file, written by dmgal enroll."""
    videos: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="CLIP")]]
    """Clips, or folders with clips at any depth."""
    window: float | None = None
    """Find actions in long videos, in windows of this many seconds. None: each video is one clip."""
    stride: float | None = None
    """Seconds from one window to the next. None: half a window."""
    fps: float | None = None
    """Frames per second of a folder or zip file of frames, with --window."""
    shortlist: int | None = None
    """Number of preselected classes to compare with, see dmgal enroll. 0: all. None: as in the gallery."""
    unknown: bool = True
    """Call clips below the threshold unknown. --no-unknown always names a class."""
    top: int = 5
    """Number of classes to print for a single clip."""
    json: bool = False
    """Print all classes and scores as JSON."""
    on_bad_video: Annotated[OnBadVideo, tyro.conf.arg(aliases=["--data.on-bad-video"])] = "error"
    """What to do if a clip cannot be read. error: stop. skip: continue without it and report it."""
    quiet: bool = False
    """Hide progress bars."""


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
                expected=f"files ({' '.join(VIDEO_EXTENSIONS)}) or folders of jpg or png frames",
                remedy="Correct the path.",
            )
        found += clips
    if not found:
        raise DmgalError(
            "There is no clip to recognize.",
            received="no path",
            expected="clips or folders of clips",
            remedy="Run dmgal recognize RUN GALLERY CLIP ...",
        )
    return found


def _below(folder: Path) -> Iterator[Path]:
    videos = videos_in(folder)
    yield from (folder / name for name in videos)
    for name in subfolders(folder):
        if name not in videos:
            yield from _below(folder / name)


def run(options: Recognize) -> dict[str, Any]:
    """Recognize the videos and print the results. Return the content of ``--json``.

    Raises:
        DmgalError: the run, the gallery or a video cannot be used.
    """
    plan = None
    if options.window is not None:
        plan = WindowPlan(options.window, options.window / 2 if options.stride is None else options.stride)
    elif options.stride is not None or options.fps is not None:
        raise DmgalError(
            "These options require windows of a long video.",
            received="--stride or --fps without --window",
            expected="--window SECONDS together with them",
            remedy="Pass --window, or remove them.",
        )
    paths = find_videos(options.videos)
    gallery = load_gallery(options.gallery)
    recipe, recognizer = load_run(Run(options.run))
    progress = not options.quiet
    ready = ClipRecognizer(recipe, recognizer, gallery, options.shortlist, options.unknown, progress)
    results, bad = _recognized(ready, paths, plan, options)
    report = {**_gallery_as_json(ready), "videos": [_as_json(ready.gallery, one) for one in results], "bad": bad}
    if plan is not None:
        report["window"], report["stride"] = plan.seconds, plan.stride
    else:
        report["accuracy"] = _accuracy(ready.gallery, results)
    if options.json:
        print(json.dumps(report, indent=2, allow_nan=False))
    else:
        _print(ready, results, report, options)
    return report


def _recognized(
    ready: ClipRecognizer, paths: list[Path], plan: WindowPlan | None, options: Recognize
) -> tuple[list[Recognized], list[dict[str, str]]]:
    results: list[Recognized] = []
    bad: list[dict[str, str]] = []
    progress = not options.quiet and len(paths) > 1
    for path in progress_bar(paths, progress=progress, desc="recognize", unit="video", leave=False):
        try:
            if plan is None:
                results.append(Recognized(path, ready.clip(path)))
            else:
                results.append(ready.long_video(path, plan, options.fps, progress=not options.quiet))
        except VideoError as error:
            if options.on_bad_video == "error":
                raise
            reason = error.received or str(error)
            bad.append({"video": printable(str(path)), "reason": printable(reason)})
            tqdm.write(f"bad video: {printable(str(path))}: {printable(reason)}; skipped", file=sys.stderr)
    return results, bad


def _gallery_as_json(ready: ClipRecognizer) -> dict[str, Any]:
    gallery, rejection = ready.gallery, ready.gallery.rejection
    assert rejection is not None
    names = [printable(name) for name in gallery.class_names]
    details = {name: value for name, value in vars(rejection).items() if name != "shortlist"} | {"score": "best logit"}
    return {
        "classes": names,
        "clips_per_class": list(gallery.shots),
        "shortlist": ready.task.shortlist,
        "rejection": details if ready.threshold is not None else None,
    }


def _as_json(gallery: Gallery, one: Recognized) -> dict[str, Any]:
    names = [printable(name) for name in gallery.class_names]
    if one.clip is not None:
        return {"video": printable(str(one.path)), **clip_as_json(one.clip, names)}
    timeline = timeline_as_json(one.segments, one.windows, names)
    return {"video": printable(str(one.path)), **timeline, "damage": one.damage and printable(one.damage)}


def _accuracy(gallery: Gallery, results: list[Recognized]) -> dict[str, Any] | None:
    """Return the accuracy on clips in folders named after classes, without enrolled clips. None if there are none."""
    named = [one for one in results if one.clip is not None and one.folder in gallery.class_names]
    counted = [one for one in named if content_hash(one.path) not in gallery.contents]
    if not counted:
        return None
    right = sum(one.clip is not None and gallery.class_names[one.clip.label] == one.folder for one in counted)
    unknown = sum(one.clip is not None and not one.clip.known for one in counted)
    counts = {"clips": len(counted), "right": right, "called_unknown": unknown, "enrolled": len(named) - len(counted)}
    return {"percent": 100 * right / len(counted), **counts}


def _print(ready: ClipRecognizer, results: list[Recognized], report: dict[str, Any], options: Recognize) -> None:
    names = [printable(name) for name in ready.gallery.class_names]
    clips = [(printable(str(one.path)), one.clip) for one in results if one.clip is not None]
    if clips:
        print_clips(clips, names, options.top)
    for one in results:
        if one.clip is None:
            print_timeline(printable(str(one.path)), one.segments, names)
            if one.damage:
                print(f"  only part of it could be used: {printable(one.damage)}")
    accuracy = report.get("accuracy")
    if accuracy and len(results) > 1:
        enrolled = f"; {accuracy['enrolled']} enrolled clips not counted" if accuracy["enrolled"] else ""
        print(
            f"right: {accuracy['right']} of {accuracy['clips']} clips in folders named as classes "
            f"({accuracy['percent']:.1f} %), the {accuracy['called_unknown']} called unknown included{enrolled}"
        )
    if report["shortlist"] is not None:
        print(f"shortlist: compared with {min(report['shortlist'], len(names))} of {len(names)} classes")
    rejection = ready.gallery.rejection
    assert rejection is not None
    print(f"unknown: {rejection_text(rejection)}" if ready.threshold is not None else "unknown: never, as asked")


def main(argv: list[str] | None = None) -> int | None:
    """Recognize the videos named on the command line."""
    run(
        tyro.cli(
            Recognize,
            prog="dmgal recognize",
            args=sys.argv[1:] if argv is None else argv,
            description=as_description(__doc__),
        )
    )
    return 0


if __name__ == "__main__":
    run_recipe(main)

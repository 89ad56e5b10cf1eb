"""Recognition of clips and long videos with a gallery that 'dmgal enroll' made with the same run.

    dmgal recognize gallery.safetensors clip.mp4
    dmgal recognize runs/mine gallery.safetensors clip.mp4
    dmgal recognize runs/mine gallery.safetensors FOLDER --json
    dmgal recognize runs/mine gallery.safetensors long.mp4 --window 4 --stride 2
    dmgal recognize gallery.safetensors long.mp4 --window 4 --out segments.csv      .json: Label Studio, .xml: CVAT

A clip is compared with every class of the gallery. Its scores are calibrated probabilities of the classes, and the
margin is the best logit minus the second best. A clip is unknown if its score is below the gallery's threshold. The
scores of the classes then do not hold. With --window a video is cut into overlapping windows, each recognized as a
clip. A segment shows the class of the best window at each moment. Frames are decoded once, and memory does not grow
with the length of the video. If folders of clips are named after classes of the gallery, the accuracy is printed too.
Enrolled clips do not count.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from dmgal.episodes.gallery.windows import WindowPlan
from dmgal.errors import DmgalError
from dmgal.files import printable
from dmgal.recipes.reports.recognition import gallery_as_json, print_results, video_as_json
from dmgal.recipes.reports.segments import check_output, write_segments
from dmgal.recipes.run.action_recognizer import ActionRecognizer
from dmgal.recipes.run.cli_errors import parse_options, run_recipe, used_flags
from dmgal.recipes.run.evaluation import is_run
from dmgal.recipes.run.ranges import TASKS, Range
from dmgal.recipes.run.recognition import find_videos, folder_accuracy, recognize_videos
from dmgal.videos.bad_videos import OnBadVideo


@dataclass(frozen=True)
class Recognize:
    """Options of the command."""

    paths: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="[RUN] GALLERY CLIP")]]
    """RUN: folder of the run that the gallery was made with, if dmgal enroll was given one. GALLERY: file that dmgal
    enroll wrote. CLIP: clips, or folders with clips at any depth."""
    window: float | None = None
    """Find actions in long videos, in windows of this many seconds. None: each video is one clip."""
    stride: float | None = None
    """Seconds from one window to the next. None: half a window."""
    fps: Annotated[float | None, Range(0.001, 100_000)] = None
    """Frames per second of a folder or zip file of frames, with --window."""
    shortlist: int | None = None
    """Number of preselected classes to compare with, see dmgal enroll. 0: all. None: as in the gallery."""
    unknown: bool = True
    """Call clips below the threshold unknown. --no-unknown always names a class."""
    top: Annotated[int, Range(1, TASKS)] = 5
    """Number of classes to print for a single clip."""
    out: Path | None = None
    """Write the known segments of long videos as annotations: .csv (video, label, start, end), .json (predictions for
    Label Studio) or .xml (tracks of one video for CVAT). Needs --window."""
    json: bool = False
    """Print all classes and scores as JSON."""
    on_bad_video: Annotated[OnBadVideo, tyro.conf.arg(aliases=["--data.on-bad-video"])] = "error"
    """What to do if a clip cannot be read. error: stop. skip: continue without it and report it."""
    quiet: bool = False
    """Hide progress bars."""

    @property
    def run(self) -> Path | None:
        """Folder of the run, or None for the default."""
        return None if not self.paths or self.paths[0].is_file() else self.paths[0]

    @property
    def gallery(self) -> Path | None:
        """The gallery, if there is one."""
        rest = self.paths if self.run is None else self.paths[1:]
        return rest[0] if rest else None

    @property
    def videos(self) -> tuple[Path, ...]:
        """Clips, or folders of clips."""
        return self.paths[1:] if self.run is None else self.paths[2:]


def run(options: Recognize) -> dict[str, object]:
    """Recognize the videos and print the results. Return the content of ``--json``.

    Raises:
        DmgalError: the run, the gallery or a video cannot be used.
    """
    plan = None
    if options.window is not None:
        plan = WindowPlan(options.window, options.window / 2 if options.stride is None else options.stride)
    elif flags := used_flags({"--stride": options.stride, "--fps": options.fps, "--out": options.out}):
        raise DmgalError(
            "These options require windows of a long video.",
            received=f"{flags} without --window",
            expected="--window SECONDS with these options",
            remedy="Pass --window, or remove them.",
        )
    if options.run is not None and not is_run(options.run) and len(options.paths) < 3:
        raise DmgalError(
            "This path is neither a run nor a gallery.",
            received=printable(str(options.run)),
            expected="[RUN] GALLERY CLIP: a gallery file that dmgal enroll wrote, after the run it was made with",
            remedy="Check the path.",
        )
    if options.gallery is None:
        raise DmgalError(
            "There is no gallery to recognize with.",
            received=" ".join(printable(str(path)) for path in options.paths) or "nothing",
            expected="[RUN] GALLERY CLIP, with the gallery file that dmgal enroll wrote",
            remedy="See dmgal recognize --help.",
        )
    paths = find_videos(options.videos)
    if options.out is not None:
        check_output(options.out, len(paths))
    progress = not options.quiet
    settings: dict[str, Any] = {"run": options.run, "unknown": options.unknown, "verbose": progress}
    if options.shortlist is not None:
        settings["shortlist"] = options.shortlist
    ready = ActionRecognizer.load(options.gallery, **settings).clip_recognizer()
    results, bad = recognize_videos(ready, paths, plan, options.fps, options.on_bad_video, progress)
    report = {**gallery_as_json(ready), "videos": [video_as_json(ready.gallery, one) for one in results], "bad": bad}
    if plan is not None:
        report["window"], report["stride"] = plan.seconds, plan.stride
    else:
        report["accuracy"] = folder_accuracy(ready.gallery, results)
    if options.out is not None:
        write_segments(options.out, results, ready.gallery.class_names, options.fps)
    if options.json:
        print(json.dumps(report, indent=2, allow_nan=False))
    else:
        print_results(ready, results, report, options.top)
    return report


def main(argv: list[str] | None = None) -> int | None:
    """Recognize the videos named on the command line."""
    run(parse_options(Recognize, argv, "recognize", __doc__))
    return 0


if __name__ == "__main__":
    run_recipe(main)

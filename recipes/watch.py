"""Recognition of actions in a live video, with a gallery that 'dmgal enroll' made.

    dmgal watch gallery.safetensors 0                                            webcam 0
    dmgal watch gallery.safetensors rtsp://camera.local/stream
    dmgal watch runs/mine gallery.safetensors http://camera.local:8080/live.ts --out events.jsonl
    dmgal watch gallery.safetensors long.mp4 --window 3
    dmgal watch gallery.safetensors FOLDER --fps 25                              frames of a video, one image each

Each event is a line of JSON when it begins and when it ends. Windows of the last seconds are recognized as clips. An
event begins with a known action of at least --begin probability. It lasts while the action is known and at least --stay
probable, and ends after --patience windows without it. Times are seconds after the first frame. What was computed for
frames alone is reused by the next windows. If the model is slower than --stride, windows are skipped: the result lags
by at most one window, and frames in no window are counted as dropped. All windows of a file are recognized.

A source that ends, fails or sends nothing for --wait seconds is opened again after 1, 2, 4, 8 and 16 seconds, then it
is lost. Ctrl-C ends the command with the summary, as does q in the window of --display.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dmgal.backbones.streams import remember_recent_frames
from dmgal.episodes.gallery.events import EventRule
from dmgal.episodes.gallery.recognition import WindowScore
from dmgal.episodes.gallery.windows import Window, WindowPlan
from dmgal.errors import DmgalError
from dmgal.files import printable
from dmgal.progress import progress_bar
from dmgal.recipes.reports.events import EventLines
from dmgal.recipes.run.action_recognizer import ActionRecognizer
from dmgal.recipes.run.cli_errors import parse_options, run_recipe
from dmgal.recipes.run.display import Display, DisplayClosed
from dmgal.recipes.run.ranges import Range
from dmgal.recipes.run.watching import Watcher
from dmgal.videos.decoding.live import RETRIES, LiveFrames, live_input
from dmgal.videos.decoding.stream import TimedFrames


@dataclass(frozen=True)
class Watch:
    """Options of the command."""

    paths: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="[RUN] GALLERY SOURCE")]]
    """RUN: folder of the run that the gallery was made with, if dmgal enroll was given one. GALLERY: file that dmgal
    enroll wrote. SOURCE: number of a webcam, URL of a stream (rtsp, http and others), a video file, or a folder
    of frames."""
    window: float = 2.0
    """Seconds of a window. Choose about the length of the enrolled clips."""
    stride: float = 0.5
    """Seconds from one window to the next."""
    begin: Annotated[float, Range(0, 1)] = 0.6
    """Lowest probability with which an event begins."""
    stay: Annotated[float, Range(0, 1)] = 0.4
    """Lowest probability with which an event lasts."""
    patience: Annotated[int, Range(1, 1000)] = 2
    """Number of windows without its action after which an event ends."""
    unknown: bool = True
    """Ignore actions below the gallery's threshold. --no-unknown always takes the best class."""
    out: Path | None = None
    """File for the lines of JSON. None: standard output."""
    fps: Annotated[float | None, Range(0.001, 100_000)] = None
    """Frames per second of a folder or zip file of frames. A live source has its own."""
    display: bool = False
    """Show each window's newest frame, as the model sees it, and its best action on the screen. Needs an OpenCV with
    windows."""
    seconds: Annotated[float | None, Range(0.001, 10**9)] = None
    """End after this time of the video. None: never."""
    wait: Annotated[float, Range(0.1, 3600)] = 5.0
    """Seconds without a frame after which a live source counts as interrupted."""
    retries: Annotated[int, Range(0, 100)] = RETRIES
    """Number of attempts to open an interrupted source again."""
    quiet: bool = False
    """Hide the progress bar."""


def run(options: Watch) -> dict[str, object]:
    """Watch the source, and write its events. Return the summary.

    Raises:
        DmgalError: the run, the gallery or the source cannot be used, or the source was lost.
    """
    if len(options.paths) not in (2, 3):
        raise DmgalError(
            "There is nothing to watch.",
            received=" ".join(map(printable, options.paths)) or "nothing",
            expected="[RUN] GALLERY SOURCE, with the gallery file that dmgal enroll wrote",
            remedy="See dmgal watch --help.",
        )
    *run_folder, gallery, source = options.paths
    plan, rule = WindowPlan(options.window, options.stride), EventRule(options.begin, options.stay, options.patience)
    end = float("inf") if options.seconds is None else options.seconds
    live = live_input(source)
    if live is not None and options.fps is not None:
        raise DmgalError(
            "A live source has times of its own.",
            received=f"--fps {options.fps:g} for {live.name}",
            expected="--fps for a folder or zip file of frames",
            remedy="Remove --fps.",
        )
    file = TimedFrames(source, options.fps) if live is None else None
    screen = Display() if options.display else None
    recognizer = ActionRecognizer.load(
        gallery, run=run_folder[0] if run_folder else None, unknown=options.unknown, verbose=not options.quiet
    )
    watcher = Watcher(recognizer.clip_recognizer(), plan, rule)
    remember_recent_frames(recognizer.model.recognizer.encoder)
    names = [printable(name) for name in watcher.ready.gallery.class_names]
    with ExitStack() as stack:
        if screen is not None:
            stack.callback(screen.close)
        lines = stack.enter_context(EventLines(options.out, names))
        bar = stack.enter_context(progress_bar(progress=not options.quiet, desc="watch", unit="window", leave=False))

        def on_window(window: Window, score: WindowScore) -> None:
            if screen is not None:
                action = names[score.label] if score.known else "(unknown)"
                screen.show(window.clip[-1], f"{action}  {score.probability:.0%}")
            bar.set_postfix_str(f"{watcher.counts.dropped_frames} frames dropped", refresh=False)
            bar.update()

        watcher.on_window = on_window
        try:
            if live is not None:
                watcher.live(LiveFrames(live, options.wait, options.retries, end), lines.event)
            elif file is not None:
                watcher.file(file, lines.event, end)
        except (KeyboardInterrupt, DisplayClosed):
            pass  # the usual end
        finally:
            bar.close()
            summary = lines.summary(watcher.counts)
    return summary


def main(argv: list[str] | None = None) -> int | None:
    """Watch the source named on the command line."""
    run(parse_options(Watch, argv, "watch", __doc__))
    return 0


if __name__ == "__main__":
    run_recipe(main)

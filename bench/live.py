"""Live recognition in real time: does ``dmgal watch`` keep up with a camera, and how long does ``dmgal app`` take?

    python -m dmgal.bench.live --seconds 60

Run it on an idle machine. The camera is a generated video of 640 x 480 pixels, decoded again and again at 25 frames per
second. Windows of two seconds are recognized at a stride of 0.5 s. The page answers a clip of three seconds, from the
uploaded file to the pictures of the answer. Writes ``bench/results/live.json``.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import torch
import tyro
from torch.nn.functional import interpolate

from dmgal.backbones.streams import remember_recent_frames
from dmgal.bench.measuring import hardware, write_report
from dmgal.episodes.gallery.events import EventRule
from dmgal.episodes.gallery.windows import WindowPlan
from dmgal.recipes.run.action_recognizer import ActionRecognizer
from dmgal.recipes.run.watching import Watcher
from dmgal.recipes.web.visit import Visit
from dmgal.videos.decoding.live import LiveFrame
from dmgal.videos.decoding.stream import TimedFrames
from dmgal.videos.generated import write_video
from dmgal.videos.moving_shapes.clips import MovingShapes

RATE, HEIGHT, WIDTH = 25, 480, 640
WINDOW, STRIDE = 2.0, 0.5
ACTIONS = {"moves right": 12, "moves down": 18, "grows": 30, "circles": 36}
"""Names of the enrolled actions, with their classes of moving shapes."""


@dataclass(frozen=True)
class Live:
    """Options of the command."""

    seconds: float = 60
    """Duration of the live video."""
    answers: int = 7
    """Answers of the page. The median counts."""
    out: Path = Path(__file__).parent / "results" / "live.json"


def camera(path: Path, seconds: float) -> Iterator[LiveFrame]:
    """Yield the frames of a file again and again at `RATE`, each not before its time."""
    again = itertools.chain.from_iterable(TimedFrames(path) for _ in itertools.count())
    start = time.monotonic()
    for number, (_, read) in enumerate(itertools.islice(again, round(seconds * RATE))):
        time.sleep(max(0.0, start + number / RATE - time.monotonic()))
        yield LiveFrame(Fraction(number, RATE), read, number == 0)


def watched(folder: Path, seconds: float) -> dict[str, object]:
    """Return the counts of a live video, and the processor time for each of its seconds."""
    recognizer = ActionRecognizer(unknown=False)
    clips = {name: [MovingShapes(pixels=128).clip(motion, 0)] for name, motion in ACTIONS.items()}
    recognizer.enroll(clips)
    film = torch.cat([clip for [clip] in clips.values()])
    write_video(folder / "camera.mp4", interpolate(film, (HEIGHT, WIDTH)))
    watcher = Watcher(recognizer.clip_recognizer(), WindowPlan(WINDOW, STRIDE), EventRule())
    remember_recent_frames(recognizer.model.recognizer.encoder)
    before = time.process_time()
    watcher.live(camera(folder / "camera.mp4", seconds), lambda event: None)
    return {**asdict(watcher.counts), "processor_seconds_per_second": (time.process_time() - before) / seconds}


def answered(folder: Path, answers: int) -> dict[str, object]:
    """Return the seconds of the page's answers to a clip of three seconds."""
    visit = Visit(ActionRecognizer(), folder)
    visit.sample()  # enrolls the actions
    clip = MovingShapes(frames=30, pixels=256).clip(ACTIONS["circles"], 20)
    write_video(folder / "query.mp4", clip)
    seconds = []
    for number in range(answers):
        upload = Path(shutil.copy(folder / "query.mp4", folder / f"upload {number}.mp4"))
        seconds.append(visit.recognize(upload).seconds)
    return {"median": statistics.median(seconds), "longest": max(seconds), "answers": answers}


def main(argv: list[str] | None = None) -> None:
    """Measure and write the report."""
    options = tyro.cli(Live, args=argv, description=__doc__)
    with tempfile.TemporaryDirectory() as name:
        report: dict[str, object] = {
            "what": "tiny-clip with tiny-clip-motion: a live video at 25 frames per second, and answers of the page",
            "hardware": hardware(),
            "window": WINDOW,
            "stride": STRIDE,
            "watch": watched(Path(name), options.seconds),
            "page_seconds": answered(Path(name), options.answers),
        }
    write_report(report, options.out)


if __name__ == "__main__":
    main()

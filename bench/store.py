"""Cost of reading 8 uniform frames from a store, compared to decoding them with decord and PyAV.

    python -m dmgal.bench.store

H.264 clips of 100 frames, 320 x 240, made here; CPU time per clip in one thread, warm page cache. Everything alternates
in one run, and each case is compared with decord within the same pair; decord has one thread, opens the file, decodes,
and is given nothing more to do. What the store gives has been resized and cropped besides. Transforms are timed alone.
Writes ``bench/results/store.json``.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import av
import decord
import numpy as np
import torch
import tyro
from torch import Tensor

from dmgal.bench.measuring import hardware, median_with_interval, paired_seconds, write_report
from dmgal.videos import VideoCatalog
from dmgal.videos.decoding.clip import TestTransform, TrainTransform, uniform_frames
from dmgal.videos.decoding.video import read_clip
from dmgal.videos.store.build import build_store
from dmgal.videos.store.content import EvaluationClips
from dmgal.videos.store.store import StoredClips, StoredFrames

Item = TypeVar("Item")
OUT = Path(__file__).parent / "results" / "store.json"
LENGTH, HEIGHT, WIDTH, FRAMES = 100, 240, 320, 8
TRANSFORM = TestTransform(224, resize=256 / 224)
CHOOSE = partial(uniform_frames, num_wanted=FRAMES)


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    clips: int = 24
    """Number of clips."""
    rounds: int = 15
    """Number of paired measurements of each case."""
    out: Path = OUT
    """Where the result goes."""


def write_clips(root: Path, count: int) -> None:
    """Write clips of a camera that pans over a texture, with a few moving shapes and a little noise."""
    for number in range(count):
        generator = np.random.default_rng(number)
        path = root / "class" / f"{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"crf": "23", "preset": "medium"})
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for image in _pictures(generator):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())


def _pictures(generator: np.random.Generator) -> Iterator[np.ndarray]:
    coarse = torch.from_numpy(generator.uniform(0, 255, (1, 3, 40, 60)))
    large = torch.nn.functional.interpolate(coarse, (400, 600), mode="bicubic")[0].permute(1, 2, 0).numpy()
    speed, shapes = generator.uniform(-1, 1, 2), generator.uniform(0, 1, (4, 4))
    for place in range(LENGTH):
        top, left = (80 + 70 * speed[0] * place / LENGTH, 140 + 120 * speed[1] * place / LENGTH)
        image = large[int(top) : int(top) + HEIGHT, int(left) : int(left) + WIDTH].copy()
        for x, y, direction, color in shapes:
            row = int((y * HEIGHT + place * 2 * (direction - 0.5)) % (HEIGHT - 40))
            column = int((x * WIDTH + place * 3 * direction) % (WIDTH - 40))
            image[row : row + 40, column : column + 40] = 255 * color
        yield (image + generator.normal(scale=2, size=image.shape)).clip(0, 255).astype(np.uint8)


def _decord_clip(path: Path) -> np.ndarray:
    reader = decord.VideoReader(str(path), num_threads=1)
    frames: np.ndarray = reader.get_batch(CHOOSE(len(reader))).asnumpy()
    return frames


def cases(catalog: VideoCatalog, folder: Path, rounds: int) -> dict[str, Callable[[], object]]:
    """Return functions that read all clips once, by name."""
    videos, paths = range(len(catalog)), [catalog.path(video) for video in range(len(catalog))]
    content = EvaluationClips(FRAMES, TRANSFORM)
    clips, frames = StoredClips(folder, catalog, content), StoredFrames(folder, catalog)
    fresh = iter([StoredClips(folder, catalog, content) for _ in range(rounds + 1)])
    return {
        "store_test_clips": lambda: _each(clips.read, videos),
        "store_test_clips_first_read_in_a_process": lambda: _each(next(fresh).read, videos),
        "store_training_jpegs": lambda: _each(lambda video: frames.read(video, CHOOSE), videos),
        "pyav": lambda: _each(lambda path: read_clip(path, CHOOSE), paths),
        "pyav_and_transform": lambda: _each(lambda path: TRANSFORM(read_clip(path, CHOOSE)), paths),
    }


def _each(read: Callable[[Item], object], items: Iterable[Item]) -> None:
    """Read items in sequence and drop them, like a loader that copies every clip into its batch."""
    for item in items:
        read(item)


def transforms(clip: Tensor) -> dict[str, Callable[[], object]]:
    """Return functions that transform a clip ten times, by name."""
    generator = torch.Generator().manual_seed(0)
    plain, jitter = TrainTransform(224), TrainTransform(224, flip=True, color_jitter=0.2)
    last = clip.contiguous(memory_format=torch.channels_last)
    return {
        "test": lambda: [TRANSFORM(clip) for _ in range(10)],
        "test_channels_last": lambda: [TRANSFORM(last) for _ in range(10)],
        "train_crop": lambda: [plain(clip, generator) for _ in range(10)],
        "train_crop_flip_color": lambda: [jitter(clip, generator) for _ in range(10)],
        "train_crop_flip_color_channels_last": lambda: [jitter(last, generator) for _ in range(10)],
    }


def measure(root: Path, options: Options) -> dict[str, object]:
    """Write clips and a store into a folder, and time reading them."""
    write_clips(root, options.clips)
    catalog, folder = VideoCatalog.from_folders(root), root / "store"
    reports = build_store(catalog, folder, EvaluationClips(FRAMES, TRANSFORM), workers=1, progress=False)
    exact = [TRANSFORM(read_clip(catalog.path(video), CHOOSE)) for video in range(options.clips)]
    stored = StoredClips(folder, catalog, EvaluationClips(FRAMES, TRANSFORM))
    paths = [catalog.path(video) for video in range(options.clips)]
    pairs = paired_seconds(lambda: _each(_decord_clip, paths), cases(catalog, folder, options.rounds), options.rounds)
    alone = paired_seconds(lambda: None, transforms(read_clip(paths[0], CHOOSE)), options.rounds)
    return {
        "clips": f"{options.clips} H.264 clips of {LENGTH} frames, {WIDTH} x {HEIGHT}, {FRAMES} uniform frames of each",
        "bit_equal_test_clips": sum(torch.equal(stored.read(video), clip) for video, clip in enumerate(exact)),
        "store_bytes_per_clip": {report.name: report.size // options.clips for report in reports},
        "video_bytes_per_clip": sum(path.stat().st_size for path in paths) // options.clips,
        "decord_ms_per_clip": _milliseconds((base for rows in pairs.values() for _, base in rows), options.clips),
        "ms_per_clip": {name: _milliseconds((case for case, _ in rows), options.clips) for name, rows in pairs.items()},
        "times_decord": {name: median_with_interval([b / a for a, b in rows]) for name, rows in pairs.items()},
        "transform_ms_per_clip": {name: _milliseconds((case for case, _ in rows), 10) for name, rows in alone.items()},
    }


def _milliseconds(seconds: Iterable[float], clips: int) -> float:
    return round(1000 * statistics.median(seconds) / clips, 4)


def main(argv: list[str] | None = None) -> None:
    """Measure and write the report."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        report = {**hardware(), "decord": decord.__version__, "av": av.__version__, **measure(Path(folder), options)}
    write_report(report, options.out)


if __name__ == "__main__":
    main()

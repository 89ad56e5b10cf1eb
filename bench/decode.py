"""Cost and correctness of decoding: our reader against decord, and torchcodec if it can be imported.

    python -m dmgal.bench.decode

Speed: CPU time per clip of 8 uniform frames of 320 x 240 H.264 videos of 100 frames, one thread, from the path to the
array, all readers in turn within each round; and the time of decoding alone the packets that the frames need, below
which no reader of ours can get. Wrong frames: uniform, random and reverse reads of clips whose frames say their number,
and whether our frames are bit for bit those of plain decoding. Writes ``bench/results/decode.json``.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from importlib.metadata import version
from pathlib import Path

import av
import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from dmgal.bench.barcode_clips import KINDS, NUM_FRAMES, ClipKind, read_barcode, write_clip
from dmgal.bench.measuring import hardware, median_with_interval, paired_seconds, write_report
from dmgal.videos.decoding.clip import uniform_frames
from dmgal.videos.decoding.packets import PacketIndex, PacketStream
from dmgal.videos.decoding.video import read_clip

OUT = Path(__file__).parent / "results" / "decode.json"
WIDTH, HEIGHT, LENGTH, WANTED = 320, 240, 100, 8
GOPS = {"GOP 12": "12", "GOP 250": "250"}


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    rounds: int = 40
    """Number of paired measurements of each video."""
    contents: int = 3
    """Number of videos for each length of a GOP."""
    wrong_frames: bool = True
    """Count wrong frames as well."""
    out: Path = OUT
    """Where the result goes."""


Frames = NDArray[np.uint8]
"""A clip, RGB ``(T, H, W, 3)``."""
Reader = Callable[[Path, Sequence[int]], Frames]


def read_ours(path: Path, indices: Sequence[int]) -> Frames:
    """Read with our reader as training does. Its ``(T, 3, H, W)`` is viewed as ``(T, H, W, 3)`` here."""
    return read_clip(path, lambda _: indices).permute(0, 2, 3, 1).numpy()


def read_plainly(path: Path, indices: Sequence[int]) -> Frames:
    """Decode from the start and convert the requested frames. This is the reference."""
    wanted: dict[int, Frames] = {}
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for place, frame in enumerate(container.decode(video=0)):
            if place in indices:
                wanted[place] = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
            if place == max(indices):
                break
    return np.stack([wanted[index] for index in indices])


def read_with_decord(path: Path, indices: Sequence[int]) -> Frames:
    """Read with decord as in its documentation."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    clip: Frames = decord.VideoReader(str(path), num_threads=1).get_batch(list(indices)).asnumpy()
    return clip


def read_with_torchcodec(path: Path, indices: Sequence[int]) -> Frames:
    """Read with torchcodec in its exact mode."""
    from torchcodec.decoders import VideoDecoder  # type: ignore[import-not-found]

    frames = VideoDecoder(str(path), num_ffmpeg_threads=1).get_frames_at(indices=list(indices)).data  # (T, 3, H, W)
    clip: Frames = frames.permute(0, 2, 3, 1).numpy()
    return clip


def readers() -> tuple[dict[str, Reader], dict[str, str]]:
    """Return the readers that can be imported, and the reason for each of the others."""
    found: dict[str, Reader] = {"ours": read_ours}
    missing: dict[str, str] = {}
    for name, reader in {"decord": read_with_decord, "torchcodec": read_with_torchcodec}.items():
        try:
            __import__(f"{name}.decoders" if name == "torchcodec" else name)
            found[name] = reader
        except (ImportError, OSError, RuntimeError) as error:
            missing[name] = f"cannot be imported: {_first_cause(error)}"
    return found, missing


def _first_cause(error: BaseException) -> str:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"


def moving_texture(content: int) -> Iterator[Frames]:
    """Yield frames ``(240, 320, 3)`` with features of real video: a drifting camera, a moving object and noise."""
    generator = np.random.default_rng(content)
    far, near = (_texture(generator) for _ in range(2))
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    speed = 0.5 + 0.5 * content
    for time in range(LENGTH):
        down, right = int(40 + 20 * np.cos(time / 22)), int(20 + 15 * np.sin(time / 15) + speed * time)
        image = far[down : down + HEIGHT, right : right + WIDTH]
        center = 160 + 90 * np.sin(speed * time / 12), 120 + 60 * np.cos(time / 9)
        inside = (columns - center[0]) ** 2 + (rows - center[1]) ** 2 < 50**2
        down, right = int(50 + 0.4 * time), int(20 + 1.3 * time)
        image = np.where(inside[..., None], near[down : down + HEIGHT, right : right + WIDTH] + 20, image)
        yield (image + generator.normal(scale=3, size=(HEIGHT, WIDTH, 1))).clip(0, 255).astype(np.uint8)


def _texture(generator: np.random.Generator) -> NDArray[np.float64]:
    """Return an image ``(512, 512, 3)`` with detail at all scales."""
    octaves = []
    for octave in range(2, 8):
        grid = generator.normal(scale=30 * 0.6 ** (octave - 2), size=(2**octave, 2**octave, 3))
        octaves.append(np.kron(grid, np.ones((512 // 2**octave, 512 // 2**octave, 1))))
    picture = np.sum(octaves, axis=0)
    return 128 + sum(np.roll(picture, shift, axis) for shift in range(-2, 3) for axis in (0, 1)) / 10


def write_texture(folder: Path, gop: str, content: int) -> Path:
    """Write a video with default x264 options, including B-frames."""
    path = folder / f"{gop}_{content}.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": gop})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for time, image in enumerate(moving_texture(content)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decoding_alone(path: Path, indices: Sequence[int]) -> tuple[Callable[[], None], int]:
    """Return a function that decodes the required packets from memory, and their number."""
    with PacketStream(path, 1) as stream:
        packets = list(stream.packets())
        index = PacketIndex(map(stream.entry, packets), stream.context.reorder_depth > 0)
        context = stream.context
    needed = index.needed(indices)

    def decode() -> None:
        for place in needed:
            context.decode(packets[place])
        context.decode(None)
        context.flush_buffers()

    return decode, len(needed)


def measure_speed(folder: Path, found: dict[str, Reader], rounds: int, contents: int) -> dict[str, object]:
    """Return CPU milliseconds by GOP length, and the time of the other readers relative to ours."""
    indices = uniform_frames(LENGTH, WANTED)
    report: dict[str, object] = {}
    for gop_name, gop in GOPS.items():
        pairs: dict[str, list[tuple[float, float]]] = {}  # seconds of a reader, and of ours in the same round
        decoded = []
        for content in range(contents):
            path = write_texture(folder, gop, content)
            if not np.array_equal(read_ours(path, indices), read_plainly(path, indices)):
                raise AssertionError(f"The frames differ from plain decoding: {gop_name}, content {content}")
            alone, count = decoding_alone(path, indices)
            decoded.append(count)
            others = {name: read for name, read in {**found, "plain": read_plainly}.items() if name != "ours"}
            cases: dict[str, Callable[[], object]] = {
                name: partial(read, path, indices) for name, read in others.items()
            }
            cases["limit"] = alone
            measured = paired_seconds(partial(read_ours, path, indices), cases, rounds, seed=content)
            for name, seconds in measured.items():
                pairs.setdefault(name, []).extend(seconds)
        report[gop_name] = {
            "packets_decoded": f"{min(decoded)} to {max(decoded)} of {indices[-1] + 1} up to the last wanted frame",
            "cpu_ms_per_clip": {
                "ours": median_with_interval([1000 * ours for values in pairs.values() for _, ours in values]),
                **{name: median_with_interval([1000 * one for one, _ in values]) for name, values in pairs.items()},
            },
            "times_as_long_as_ours": {
                name: median_with_interval([one / ours for one, ours in values]) for name, values in pairs.items()
            },
            "bit_equal_to_plain_decoding": True,
        }
    return report


def count_wrong_frames(path: Path, kind: ClipKind, read: Reader) -> dict[str, object]:
    """Return the number of wrong frames in three reading orders, or the error that prevented reading."""
    numbers = range(kind.first, NUM_FRAMES)
    draw = random.Random(0)
    orders = {
        "uniform": uniform_frames(len(numbers), WANTED),
        "random": [draw.randrange(len(numbers)) for _ in range(40)],
        "reverse": list(reversed(range(len(numbers)))),
    }
    wrong: dict[str, object] = {}
    for name, order in orders.items():
        try:
            found = [read_barcode(image) for image in read(path, order)]
        except Exception as error:  # each library has its own errors, and the table has room for their names only
            return {"error": type(error).__name__}
        wrong[name] = sum(one != numbers[index] for one, index in zip(found, order, strict=True))
    return {"of": {name: len(order) for name, order in orders.items()}, **wrong}


def table_of_wrong_frames(
    folder: Path, found: dict[str, Reader], kinds: dict[str, ClipKind] = KINDS
) -> dict[str, dict[str, dict[str, object]]]:
    """Count wrong frames by clip kind and reader, and check that our frames equal those of plain decoding."""
    table: dict[str, dict[str, dict[str, object]]] = {}
    for name, kind in kinds.items():
        path = write_clip(folder, f"clip{len(table)}", kind)
        everything = range(NUM_FRAMES - kind.first)
        table[name] = {reader: count_wrong_frames(path, kind, read) for reader, read in found.items()}
        backward = list(reversed(everything))
        equal = np.array_equal(read_ours(path, backward), read_plainly(path, everything)[::-1])
        table[name]["ours"]["bit_equal_to_plain_decoding"] = equal
    return table


def main(argv: list[str] | None = None) -> None:
    """Measure and write the report."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    torch.set_num_threads(1)
    found, missing = readers()
    with tempfile.TemporaryDirectory() as folder:
        speed = measure_speed(Path(folder), found, options.rounds, options.contents)
        wrong = table_of_wrong_frames(Path(folder), found) if options.wrong_frames else {}
    report = {
        **hardware(),
        "versions": {name: version(name) for name in ("av", "decord", "torchcodec") if name in found or name == "av"},
        "not_measured": missing,
        "rounds": options.rounds,
        "speed": speed,
        "wrong_frames": wrong,
    }
    write_report(report, options.out, show=False)
    print(json.dumps(report["speed"], indent=2))
    for name, row in wrong.items():
        print(name, *(f"{reader}: {counts}" for reader, counts in row.items()), sep="\n    ")


if __name__ == "__main__":
    main()

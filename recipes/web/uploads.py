"""Checks of uploaded clips before anything decodes them, and their deletion.

An upload is untrusted. It must be a regular file inside the folder of uploads, of a limited size. FFmpeg recognizes it
by its content, reads no other file, and its headers tell how long it is. Nothing in it is executed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from dmgal.errors import DmgalError
from dmgal.files import open_regular, printable
from dmgal.videos.catalog.files import FRAME_EXTENSIONS
from dmgal.videos.decoding.base import VideoError
from dmgal.videos.decoding.clip import one_frame
from dmgal.videos.decoding.packets import PacketStream, as_video_error, open_container
from dmgal.videos.decoding.stream import TimedFrames

T = TypeVar("T")
MOST_MEGABYTES, MOST_SECONDS = 100, 30
"""Largest size and duration of a clip."""
SLACK = 1.0  # seconds by which recorders miss a limit
STILL_FORMATS = ("image2", "_pipe", "ico", "svg")  # FFmpeg's demuxers of single images


def check_clip(path: Path, folder: Path) -> None:
    """Raise a DmgalError unless an upload is a video within the limits. No frame is decoded.

    Args:
        path: the upload.
        folder: folder of all uploads.

    Raises:
        DmgalError: the path is not a regular file inside the folder, the file is too large, it is a still image, it is
            no video, or the video is too long or has one frame. The message has the file's name without its folder.
    """
    name = shown_name(path)
    if not is_inside(path, folder):
        raise _refusal("This file was not uploaded.", name, "a file from your device", "Choose the clip again.")
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
        if size > MOST_MEGABYTES * 2**20:
            raise _refusal(
                "This file is too large.",
                f"{name}, {size / 2**20:,.0f} MB",
                f"at most {MOST_MEGABYTES} MB",
                "Cut the clip to the action, or save it with a smaller picture.",
            )
        if _is_still(path):
            raise _refusal(
                "This is a picture, not a video.",
                name,
                "a video, because an action is a motion",
                "Choose a clip that shows the action.",
            )
        seconds = _seconds(path)
    except VideoError as error:
        raise unreadable(path, error) from error
    except OSError as error:
        raise _refusal("This file cannot be read.", name, "a video file", "Choose the clip again.") from error
    if seconds > MOST_SECONDS + SLACK:
        raise _refusal(
            "This video is too long.",
            f"{name}, {_duration(seconds)}",
            f"at most {MOST_SECONDS} seconds",
            "Cut the clip to the action. For long videos there is dmgal recognize --window.",
        )


def unreadable(path: Path, error: VideoError) -> DmgalError:
    """Return the error for a clip that does not decode, without the folder that it lies in."""
    reason = (error.received or error.problem).replace(str(path), path.name)
    return _refusal(
        "This file cannot be read as a video.",
        f"{shown_name(path)}: {printable(reason)}",
        "a video that plays, such as mp4, webm, mov or avi",
        "Check that the clip plays on your device, or save it as mp4.",
    )


def reading(path: Path, read: Callable[[Path], T]) -> T:
    """Return what a function reads from an upload. Its errors become errors without the folder of the upload."""
    try:
        return read(path)
    except VideoError as error:
        raise unreadable(path, error) from error
    except DmgalError as error:
        received = (error.received or "").replace(str(path), path.name)
        raise DmgalError(error.problem, received=received, expected=error.expected, remedy=error.remedy) from error


def discard(paths: Iterable[Path], folder: Path) -> None:
    """Delete uploads inside the folder of uploads, and their own folders if these hold nothing else."""
    for path in paths:
        if is_inside(path, folder):
            with suppress(OSError):
                path.unlink(missing_ok=True)
                if path.parent.resolve() != folder.resolve():
                    path.parent.rmdir()


def is_inside(path: Path, folder: Path) -> bool:
    """Return True if a path leads into a folder, also after links."""
    try:
        return path.resolve().is_relative_to(folder.resolve()) and path.resolve() != folder.resolve()
    except (OSError, ValueError, RuntimeError):
        return False


def shown_name(path: Path) -> str:
    """Return the name of a file for a message."""
    name = printable(path.name)
    return name if len(name) <= 60 else f"{name[:40]}…{name[-19:]}"


def _is_still(path: Path) -> bool:
    if path.suffix.lower() in FRAME_EXTENSIONS:
        return True
    with as_video_error(path), open_container(path) as container:
        return any(name.endswith(STILL_FORMATS) for name in container.format.name.split(","))


def _seconds(path: Path) -> float:
    """Return the duration in the header, or the time up to the packet that exceeds the limit.

    Raises:
        DmgalError: there is a single frame.
    """
    in_header = TimedFrames(path).seconds or 0.0
    if in_header > MOST_SECONDS + SLACK:
        return in_header
    last, count = 0.0, 0
    for last in _packet_times(path):
        count += 1
        if last > MOST_SECONDS + SLACK:
            break
    if count == 1:
        raise one_frame(f"{shown_name(path)} with one frame")
    return max(in_header, last)


def _packet_times(path: Path) -> Iterator[float]:
    """Yield the seconds from the first packet to each packet, by its time or else by the frame rate."""
    with PacketStream(path, threads=1) as stream:
        first: float | None = None
        rate = float(stream.context.framerate or 25)
        for index, packet in enumerate(stream.packets()):
            ticks = packet.pts if packet.pts is not None else packet.dts
            time = index / rate if ticks is None or packet.time_base is None else float(ticks * packet.time_base)
            first = time if first is None else first
            yield time - first


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _refusal(problem: str, received: str, expected: str, remedy: str) -> DmgalError:
    return DmgalError(problem, received=received, expected=expected, remedy=remedy)

"""Tracks of CVAT: ``CVAT for video 1.1`` (https://docs.cvat.ai/docs/manual/advanced/xml_format).

A track is an action as long as its shape is not ``outside``. Its frames are indices of frames in the video. The boxes
that we write cover the whole frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

from .markup import read_xml
from .segment import Annotation, Span
from .written import WrittenVideo


def read_cvat(path: Path) -> Iterator[Annotation]:
    """Yield the segments of a file's tracks.

    Raises:
        OSError, ValueError: the file cannot be read, see `read_xml`, or has no tracks of named videos.
    """
    root = read_xml(path)
    if root.tag != "annotations":
        raise ValueError(f"the root element <{root.tag[:50]}>, not <annotations>")
    sources = _sources(root)
    for number, track in enumerate(root.iter("track")):
        task = track.get("task_id", next(iter(sources), ""))
        video, name = sources.get(task), f"track {track.get('id', number)}"
        if video is None:
            raise ValueError(f"{name}, whose video is unknown: export the task with <source>, not a job")
        label = track.get("label", "").strip()
        if not label:
            raise ValueError(f"{name} has no label")
        for start, end in _visible(track, name):
            yield Annotation(video, label, Span.of_frames(start, end))


def _sources(root: ElementTree.Element) -> dict[str, str]:
    """Return the videos by the number of their task. A project has several."""
    meta = root.find("meta")
    tasks = [] if meta is None else [element for element in meta.iter() if element.find("source") is not None]
    return {(task.findtext("id") or "").strip(): (task.findtext("source") or "").strip() for task in tasks}


def _visible(track: ElementTree.Element, name: str) -> Iterator[tuple[int, int]]:
    """Yield the ranges of frames in which a track is visible. A shape lasts until the next one."""
    try:
        shapes = sorted((int(shape.get("frame", "")), shape.get("outside", "0") == "1") for shape in track)
    except ValueError as error:
        raise ValueError(f"{name} has a shape without the number of its frame") from error
    start: int | None = None
    for frame, is_outside in shapes:
        if is_outside and start is not None:
            if frame > start:
                yield start, frame
            start = None
        elif not is_outside and start is None:
            start = frame
    if start is not None:
        yield start, shapes[-1][0] + 1


def write_cvat(path: Path, videos: Sequence[WrittenVideo]) -> None:
    """Write the tracks of one video, to upload to its task in CVAT.

    Raises:
        ValueError: there are several videos.
    """
    if len(videos) != 1:
        raise ValueError(f"{len(videos)} videos, and a CVAT file holds one")
    [video] = videos
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    ElementTree.SubElement(task, "size").text = str(video.num_frames)
    ElementTree.SubElement(task, "mode").text = "interpolation"
    labels = ElementTree.SubElement(task, "labels")
    for name in dict.fromkeys(segment.label for segment in video.segments):
        ElementTree.SubElement(ElementTree.SubElement(labels, "label"), "name").text = name
    ElementTree.SubElement(task, "source").text = Path(video.name).name
    for number, segment in enumerate(video.segments):
        track = ElementTree.SubElement(root, "track", id=str(number), label=segment.label, source="auto")
        frames = [(segment.first, 0), (segment.last, 0), (segment.last + 1, 1)]
        for frame, outside in dict.fromkeys(frames):
            if frame < video.num_frames:
                corners = {"xtl": "0.00", "ytl": "0.00", "xbr": f"{video.width:.2f}", "ybr": f"{video.height:.2f}"}
                state = {"frame": str(frame), "outside": str(outside), "occluded": "0", "keyframe": "1"}
                ElementTree.SubElement(track, "box", state | corners | {"z_order": "0"})
    ElementTree.indent(root)
    path.write_bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))

"""Segments of Label Studio (https://labelstud.io/tags/timelinelabels).

Its JSON export has ``timelinelabels`` with frame numbers from 1 to the last one, included. Projects that label the
audio track of a video have ``labels`` with seconds. Other results, such as boxes, are ignored. So are predictions and
cancelled annotations. What we write are predictions, which Label Studio imports together with the tasks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from ...files import parse_json, read_text
from .segment import Annotation, Span, parse_time
from .written import WrittenSegment, WrittenVideo

MOST_TASKS_BYTES = 2**26
VIDEO_KEYS = ("video", "video_url", "url", "audio")
"""Names of the video in the data of a task. They depend on the project, and these are those of the templates."""


def read_label_studio(path: Path) -> Iterator[Annotation]:
    """Yield the segments of an exported file.

    Raises:
        OSError, ValueError: the file cannot be read, or is no export of Label Studio in the format JSON.
    """
    tasks = parse_json(read_text(path, MOST_TASKS_BYTES))
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise ValueError("no list of tasks: export in the format JSON")
    for number, task in enumerate(tasks):
        where = f"task {task.get('id', number)}"
        annotations = task.get("annotations", [])
        if not isinstance(annotations, list) or not all(isinstance(entry, dict) for entry in annotations):
            raise ValueError(f"{where} without a list of annotations: export in the format JSON, not JSON-MIN")
        results = [
            result
            for entry in annotations
            if not entry.get("was_cancelled")
            for result in _list(entry.get("result"), where)
        ]
        for result in results:
            yield from _segments(result, task, where)


def _segments(result: object, task: dict[str, object], where: str) -> Iterator[Annotation]:
    """Yield the segments of one result, if it is one in time."""
    value = result.get("value") if isinstance(result, dict) else None
    if not isinstance(value, dict):
        raise ValueError(f"{where} has a result without a value")
    if "ranges" in value:
        labels = _labels(value.get("timelinelabels"), where)
        spans = [_span_of_frames(one, where) for one in _list(value["ranges"], where)]
    elif "labels" in value and "sequence" not in value and {"start", "end"} <= value.keys():
        labels = _labels(value["labels"], where)
        spans = [Span(_seconds(value["start"], where), _seconds(value["end"], where))]
    else:
        return
    video = _video(task, where)
    yield from (Annotation(video, label, span) for label in labels for span in spans)


def _span_of_frames(ends: object, where: str) -> Span:
    if not isinstance(ends, dict) or not ends.keys() >= {"start", "end"}:
        raise ValueError(f"{where} has a range without start and end")
    first, last = ends["start"], ends["end"]
    if not all(isinstance(frame, int) and not isinstance(frame, bool) for frame in (first, last)) or first < 1:
        raise ValueError(f"{where} has a range from {str(first)[:20]} to {str(last)[:20]}, not of frames from 1")
    return Span.of_frames(first - 1, last)


def _seconds(value: object, where: str) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{where} has a time that is not a number")
    return parse_time(f"{value:.6f}" if isinstance(value, float) else str(value))


def _labels(labels: object, where: str) -> list[str]:
    names = [name.strip() if isinstance(name, str) else "" for name in _list(labels, where)]
    if not names or not all(names):
        raise ValueError(f"{where} has a segment without a label")
    return names


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{where} has a {type(value).__name__} in place of a list")
    return value


def _video(task: dict[str, object], where: str) -> str:
    """Return the path in the task's URL. Uploads have it in the URL, local files in its query ``d``."""
    data = task.get("data")
    names = [data[key] for key in VIDEO_KEYS if key in data] if isinstance(data, dict) else []
    if not names or not isinstance(names[0], str):
        raise ValueError(f'{where} does not name its video as "video"')
    parts = urlsplit(names[0])
    path = parse_qs(parts.query).get("d", [unquote(parts.path)])[0].strip().lstrip("/")
    if not path:
        raise ValueError(f"{where} has the video {names[0][:100]!r}")
    return path


def write_label_studio(path: Path, videos: Sequence[WrittenVideo]) -> None:
    """Write tasks with predictions, for a ``TimelineLabels`` with the name ``timelineLabels`` of a ``video``."""
    tasks = [
        {
            "data": {"video": video.name},
            "predictions": [{"model_version": "dmgal", "result": [*map(_result, video.segments)]}],
        }
        for video in videos
    ]
    path.write_text(json.dumps(tasks, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _result(segment: WrittenSegment) -> dict[str, object]:
    return {
        "type": "timelinelabels",
        "from_name": "timelineLabels",
        "to_name": "video",
        "score": segment.score,
        "value": {
            "ranges": [{"start": segment.first + 1, "end": segment.last + 1}],
            "timelinelabels": [segment.label],
        },
    }

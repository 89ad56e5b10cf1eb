"""Recognition results as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dmgal.episodes.gallery.recognition import Recognition, Segment, WindowScore

UNKNOWN = "(unknown)"


def clip_as_json(clip: Recognition, names: Sequence[str]) -> dict[str, Any]:
    """Return a clip's result. ``recognized`` is None for an unknown clip, ``logit`` for classes off the shortlist."""
    scores = zip(names, clip.probabilities.tolist(), clip.logits.tolist(), strict=True)
    return {
        "recognized": names[clip.label] if clip.known else None,
        "best": names[clip.label],
        "probability": clip.probabilities.max().item(),
        "logit": clip.logits.max().item(),
        "margin": clip.margin,
        "scores": {
            name: {"probability": probability, "logit": logit if math.isfinite(logit) else None}
            for name, probability, logit in scores
        },
    }


def timeline_as_json(
    segments: Sequence[Segment], windows: Sequence[WindowScore], names: Sequence[str]
) -> dict[str, Any]:
    """Return segments and the windows they were merged from. Times are in seconds."""
    return {
        "segments": [
            {
                "start": round(segment.start, 3),
                "end": round(segment.end, 3),
                "recognized": None if segment.label is None else names[segment.label],
                "probability": None if segment.label is None else segment.probability,
            }
            for segment in segments
        ],
        "windows": [
            {
                "start": round(window.start, 3),
                "end": round(window.end, 3),
                "best": names[window.label],
                "probability": window.probability,
                "logit": window.logit,
            }
            for window in windows
        ],
    }


def print_clips(clips: Sequence[tuple[str, Recognition]], names: Sequence[str], top: int) -> None:
    """Print the best classes of a single clip, or one row per clip."""
    if len(clips) == 1:
        _print_one(*clips[0], names, top)
        return
    rows = [("clip", "recognized", "score %", "logit", "margin", "nearest")]
    for name, clip in clips:
        nearest = "" if clip.known else names[clip.label]
        rows.append((name, _called(clip, names), *_numbers(clip), nearest))
    _print_table(rows, left={0, 1, 5})


def _print_one(name: str, clip: Recognition, names: Sequence[str], top: int) -> None:
    print(f"{name}: {_called(clip, names)}")
    ranked = clip.logits.argsort(descending=True).tolist()
    on_list = [label for label in ranked if math.isfinite(clip.logits[label].item())]
    rows = [("class", "score %", "logit")]
    for label in on_list[: max(1, top)]:
        rows.append((names[label], f"{100 * clip.probabilities[label]:.1f}", f"{clip.logits[label]:.2f}"))
    _print_table(rows, left={0})
    if len(on_list) > max(1, top):
        print(f"  and {len(on_list) - max(1, top)} more classes")
    if clip.margin is not None:
        print(f"margin: {clip.margin:.2f}")


def print_timeline(name: str, segments: Sequence[Segment], names: Sequence[str]) -> None:
    """Print one row per segment."""
    print(name)
    rows = [("from", "to", "action", "score %")]
    for segment in segments:
        action = UNKNOWN if segment.label is None else names[segment.label]
        score = "-" if segment.label is None else f"{100 * segment.probability:.0f}"
        rows.append((clock(segment.start), clock(segment.end), action, score))
    _print_table(rows, left={2})


def clock(seconds: float) -> str:
    """Return a time such as ``1:02:03.5``, without hours if there are none."""
    minutes, tenths = divmod(round(10 * seconds), 600)
    hours, minutes = divmod(minutes, 60)
    text = f"{minutes:02d}:{tenths / 10:04.1f}" if hours else f"{minutes}:{tenths / 10:04.1f}"
    return f"{hours}:{text}" if hours else text


def _called(clip: Recognition, names: Sequence[str]) -> str:
    return names[clip.label] if clip.known else UNKNOWN


def _numbers(clip: Recognition) -> tuple[str, str, str]:
    margin = "-" if clip.margin is None else f"{clip.margin:.2f}"
    return f"{100 * clip.probabilities.max().item():.1f}", f"{clip.logits.max().item():.2f}", margin


def _print_table(rows: Sequence[tuple[str, ...]], left: set[int]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print(f"  {'  '.join(cells)}".rstrip())

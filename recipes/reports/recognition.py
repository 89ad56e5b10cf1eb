"""Galleries and recognition results as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmgal.episodes.gallery.gallery import Gallery
from dmgal.episodes.gallery.recognition import Recognition, Segment, WindowScore
from dmgal.episodes.gallery.task import Rejection
from dmgal.episodes.gallery.texts import texts_as_json
from dmgal.files import printable
from dmgal.recipes.run.recognition import ClipRecognizer, Recognized

UNKNOWN = "(unknown)"
CLASSES_SHOWN = 30


def rejection_text(rejection: Rejection | None) -> str:
    """Return one line with the threshold and the clips it was computed from."""
    if rejection is None:
        return "never, class names alone give no threshold"
    text = f"best logit below {rejection.threshold:.3g}, from {rejection.known} {rejection.source}"
    text += f", of which {100 * rejection.known_kept:.0f} % pass"
    if rejection.unknown_accepted is None:
        return text + "; a single class leaves no unknown clips to evaluate"
    return text + f"; of {rejection.unknown} clips of held-out classes {100 * rejection.unknown_accepted:.0f} % pass"


def gallery_as_json(ready: ClipRecognizer) -> dict[str, Any]:
    """Return the classes of a gallery and the threshold in use."""
    gallery, rejection = ready.gallery, ready.gallery.rejection
    names = [printable(name) for name in gallery.class_names]
    details = None
    if rejection is not None and ready.threshold is not None:
        details = {name: value for name, value in vars(rejection).items() if name != "shortlist"}
        details["score"] = "best logit"
    return {
        "classes": names,
        "clips_per_class": list(gallery.shots),
        "shortlist": ready.task.shortlist,
        "rejection": details,
        "text": gallery.texts and {**texts_as_json(gallery.texts), "use": "fuse" if len(gallery) else "only"},
    }


def video_as_json(gallery: Gallery, one: Recognized) -> dict[str, Any]:
    """Return the result of one video."""
    names = [printable(name) for name in gallery.class_names]
    if one.clip is not None:
        return {"video": printable(str(one.path)), **clip_as_json(one.clip, names)}
    timeline = timeline_as_json(one.segments, one.windows, names)
    return {"video": printable(str(one.path)), **timeline, "damage": one.damage and printable(one.damage)}


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


def print_gallery(gallery: Gallery, path: Path) -> None:
    """Print the classes and the threshold of a gallery."""
    size = path.stat().st_size / 1024
    print(
        f"{printable(str(path))}: {_counted(gallery.n_way, 'class')}, {_counted(len(gallery), 'clip')}, {size:,.0f} KB"
    )
    rows: Sequence[tuple[str, int]] = list(zip(gallery.class_names, gallery.shots, strict=True))
    width = max(len(printable(name)) for name, _ in rows[:CLASSES_SHOWN])
    for name, shots in rows[:CLASSES_SHOWN]:
        print(f"  {printable(name):<{width}}  {_counted(shots, 'clip')}")
    if len(rows) > CLASSES_SHOWN:
        print(f"  and {len(rows) - CLASSES_SHOWN} more")
    print_text(gallery)
    print(f"unknown: {rejection_text(gallery.rejection)}")


def print_text(gallery: Gallery) -> None:
    """Print the use of class names, if the gallery has any."""
    if gallery.texts is None:
        return
    prompts = f"{len(gallery.texts.templates)} prompts per class by {gallery.texts.encoder}"
    use = f"class names beside clips, weight {gallery.texts.weight:g}" if len(gallery) else "class names alone"
    print(f"text: {use}, {prompts}")


def _counted(count: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"


def print_results(ready: ClipRecognizer, results: Sequence[Recognized], report: Mapping[str, Any], top: int) -> None:
    """Print the results of all videos, and a ``report``'s accuracy and shortlist."""
    names = [printable(name) for name in ready.gallery.class_names]
    clips = [(printable(str(one.path)), one.clip) for one in results if one.clip is not None]
    if clips:
        print_clips(clips, names, top)
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
    print_text(ready.gallery)
    rejection = ready.gallery.rejection
    is_asked = rejection is not None and ready.threshold is None
    print("unknown: never, as asked" if is_asked else f"unknown: {rejection_text(rejection)}")


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

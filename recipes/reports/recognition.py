"""Galleries and recognition results as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmgal.episodes.gallery.gallery import Gallery
from dmgal.episodes.gallery.recognition import Segment, WindowScore
from dmgal.episodes.gallery.task import Rejection
from dmgal.episodes.gallery.texts import texts_as_json
from dmgal.files import printable
from dmgal.recipes.run.action import UNKNOWN, RecognizedAction, table
from dmgal.recipes.run.recognition import ClipRecognizer, Recognized

CLASSES_SHOWN = 30


def rejection_text(rejection: Rejection | None) -> str:
    """Return one line with the threshold and the clips it was computed from."""
    if rejection is None:
        return "never, class names alone give no threshold"
    text = f"{rejection.score} below {rejection.threshold:.3g}, from {rejection.known} {rejection.source}"
    text += f", of which {100 * rejection.known_kept:.0f} % pass"
    if rejection.unknown_accepted is None:
        return text + "; a single class leaves no unknown clips to evaluate"
    return text + f"; of {rejection.unknown} clips of held-out classes {100 * rejection.unknown_accepted:.0f} % pass"


def gallery_as_json(ready: ClipRecognizer) -> dict[str, object]:
    """Return the classes of a gallery and the threshold in use."""
    gallery, rejection = ready.gallery, ready.gallery.rejection
    names = [printable(name) for name in gallery.class_names]
    details = None
    if rejection is not None and ready.unknown:
        details = {name: value for name, value in vars(rejection).items() if name != "shortlist"}
    return {
        "classes": names,
        "clips_per_class": list(gallery.shots),
        "shortlist": ready.task.shortlist,
        "negatives": 0 if gallery.negatives is None else len(gallery.negatives),
        "rejection": details,
        "text": gallery.texts and {**texts_as_json(gallery.texts), "use": "fuse" if len(gallery) else "only"},
    }


def video_as_json(gallery: Gallery, one: Recognized) -> dict[str, object]:
    """Return the result of one video."""
    names = [printable(name) for name in gallery.class_names]
    if one.clip is not None:
        return {"video": printable(str(one.path)), **RecognizedAction.by_name(one.clip, names).as_json()}
    timeline = timeline_as_json(one.segments, one.windows, names)
    return {"video": printable(str(one.path)), **timeline, "damage": one.damage and printable(one.damage)}


def timeline_as_json(
    segments: Sequence[Segment], windows: Sequence[WindowScore], names: Sequence[str]
) -> dict[str, object]:
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
    if gallery.negatives is not None:
        classes = _counted(len(gallery.negatives.class_names), "class")
        print(f"negatives: {_counted(len(gallery.negatives), 'clip')} of {classes}")
    print(f"unknown: {rejection_text(gallery.rejection)}")


def print_text(gallery: Gallery) -> None:
    """Print the use of class names, if the gallery has any."""
    if gallery.texts is None:
        return
    described = " and descriptions" if gallery.texts.descriptions else ""
    prompts = f"{len(gallery.texts.templates)} prompts{described} per class by {gallery.texts.encoder}"
    use = f"class names beside clips, weight {gallery.texts.weight:g}" if len(gallery) else "class names alone"
    print(f"text: {use}, {prompts}")


def _counted(count: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"


def print_results(ready: ClipRecognizer, results: Sequence[Recognized], report: Mapping[str, Any], top: int) -> None:
    """Print the results of all videos, and a ``report``'s accuracy and shortlist."""
    names = [printable(name) for name in ready.gallery.class_names]
    actions = [RecognizedAction.by_name(one.clip, names) for one in results if one.clip is not None]
    paths = [printable(str(one.path)) for one in results if one.clip is not None]
    if actions:
        print_clips(list(zip(paths, actions, strict=True)), top)
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
    is_asked = rejection is not None and not ready.unknown
    print("unknown: never, as asked" if is_asked else f"unknown: {rejection_text(rejection)}")


def print_clips(clips: Sequence[tuple[str, RecognizedAction]], top: int) -> None:
    """Print the best classes of a single clip, or one row per clip."""
    if len(clips) == 1:
        [(name, action)] = clips
        print(f"{name}: {action.text(top)}")
        return
    rows = [("clip", "recognized", "score %", "logit", "margin", "nearest")]
    for name, action in clips:
        nearest = "" if action.recognized is not None else str(action.best)
        margin = "-" if action.margin is None else f"{action.margin:.2f}"
        rows.append((name, action.title, f"{100 * action.probability:.1f}", f"{action.logit:.2f}", margin, nearest))
    print(*table(rows, left={0, 1, 5}), sep="\n")


def print_timeline(name: str, segments: Sequence[Segment], names: Sequence[str]) -> None:
    """Print one row per segment."""
    print(name)
    rows = [("from", "to", "action", "score %")]
    for segment in segments:
        action = UNKNOWN if segment.label is None else names[segment.label]
        score = "-" if segment.label is None else f"{100 * segment.probability:.0f}"
        rows.append((clock(segment.start), clock(segment.end), action, score))
    print(*table(rows, left={2}), sep="\n")


def clock(seconds: float) -> str:
    """Return a time such as ``1:02:03.5``, without hours if there are none."""
    minutes, tenths = divmod(round(10 * seconds), 600)
    hours, minutes = divmod(minutes, 60)
    text = f"{minutes:02d}:{tenths / 10:04.1f}" if hours else f"{minutes}:{tenths / 10:04.1f}"
    return f"{hours}:{text}" if hours else text

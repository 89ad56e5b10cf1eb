"""Output of `dmgal prepare`: the videos found of a standard split, the result of the check, and the next command."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from dmgal.files import listed as listed_names
from dmgal.files import printable
from dmgal.recipes.run.preparation import EQUAL, REPORT, EqualVideos, FoundData, Listed, describe_others
from dmgal.videos.catalog.lists import FACTS, SPLITS
from dmgal.videos.checking import CheckedVideo

PROBLEMS_SHOWN = 10
"""Lines of a list on the terminal. The files are complete."""
CLASSES_SHOWN = 5
SPREADS = ("across splits", "across classes", "within a class")
FEW = 0.9
"""Classes with a smaller share of found videos are printed."""


def print_found(data: FoundData) -> None:
    """Print counts per split, the most incomplete classes, and unused videos and folders."""
    head = f"{data.name} ({FACTS[data.name].source}) in {data.root}"
    print(f"{head}: {len(data.found):,} of {len(data.rows):,} videos found")
    counts = data.per_class()
    for split in SPLITS:
        _print_split(split, [(name, wanted, there) for s, name, wanted, there in counts if s == split])
    if data.matches.num_several:
        print(f"  {data.matches.num_several:,} videos exist more than once; the best match of each is used")
    if data.matches.num_other:
        print(f"  {describe_others(data.matches)} not listed")
    for folder in data.matches.closed_folders[:CLASSES_SHOWN]:
        print(f"  skipped, because permission is denied: {printable(folder)}")
    if len(data.matches.closed_folders) > CLASSES_SHOWN:
        print(f"  and {len(data.matches.closed_folders) - CLASSES_SHOWN:,} more folders")


def _print_split(split: str, counts: Sequence[tuple[str, int, int]]) -> None:
    """Print a split's ``counts``: class, videos listed, videos found."""
    lacking = [entry for entry in counts if entry[2] < entry[1]]
    print(
        f"  {split:<5} {sum(there for *_, there in counts):,} of {sum(wanted for _, wanted, _ in counts):,} videos; "
        f"{len(counts) - len(lacking)} of {len(counts)} classes complete"
    )
    absent = [name for name, _, there in lacking if not there]
    if absent:
        print(
            f"        without a video and so left out, {len(absent)} of {len(counts)} classes: {listed_names(absent)}"
        )
    few = sorted((entry for entry in lacking if 0 < entry[2] < FEW * entry[1]), key=lambda entry: entry[2] / entry[1])
    for class_name, wanted, there in few[:CLASSES_SHOWN]:
        print(f"        {there:,} of {wanted:,}  {class_name}")
    more = len(lacking) - len(absent) - len(few[:CLASSES_SHOWN])
    if more:
        print(f"        {more} more {'class lacks' if more == 1 else 'classes lack'} videos: found.csv")


def print_verdict(problems: dict[str, CheckedVideo], num_videos: int, num_frames: int, out: Path) -> dict[str, object]:
    """Print and return the results of the check."""
    bad = {video: checked for video, checked in problems.items() if checked.is_bad(num_frames)}
    salvaged = len(problems) - len(bad)
    print(
        f"checked {num_videos:,} videos: {num_videos - len(problems):,} sound, {salvaged:,} damaged but used (at least "
        f"{num_frames} frames decode), {len(bad):,} bad; report: {out / REPORT}"
    )
    for video, checked in sorted(problems.items(), key=lambda entry: (entry[0] not in bad, entry[0]))[:PROBLEMS_SHOWN]:
        used = "bad " if video in bad else f"used, {checked.frames} frames"
        print(f"  {used}  {printable(video)}: {printable(checked.problem or '')}")
    if len(problems) > PROBLEMS_SHOWN:
        print(f"  and {len(problems) - PROBLEMS_SHOWN:,} more")
    return {"num_frames": num_frames, "sound": num_videos - len(problems), "salvaged": salvaged, "bad": len(bad)}


def print_equal(equal: Sequence[EqualVideos], out: Path) -> dict[str, object]:
    """Print the groups of videos with equal content, and return their number by spread."""
    counts = {spread: sum(videos.spread == spread for videos in equal) for spread in SPREADS}
    if equal:
        copies = sum(len(videos.rows) - 1 for videos in equal)
        text = ", ".join(f"{count:,} {spread}" for spread, count in counts.items())
        are = "video is a copy of another" if copies == 1 else "videos are copies of others"
        print(f"equal content: {copies:,} {are}; groups: {text}; list: {out / EQUAL}")
    for videos in sorted(equal, key=lambda videos: SPREADS.index(videos.spread))[:PROBLEMS_SHOWN]:
        of_class = {name: video for _, name, video in reversed(videos.rows)}  # the first video of each class
        names = sorted((video for *_, video in videos.rows), key=lambda video: video not in of_class.values())
        print(f"  {videos.spread}  {listed_names(names)}")
    if len(equal) > PROBLEMS_SHOWN:
        print(f"  and {len(equal) - PROBLEMS_SHOWN:,} more")
    if counts["across splits"]:
        print("  copies across splits make results too high: remove them from the split file or the folders")
    return {"equal_content": {spread.replace(" ", "_"): count for spread, count in counts.items()}}


def print_next(listed: Listed, layers: Sequence[str], out: Path, skip_bad: bool) -> None:
    """Print the command that trains on the data, or the splits that training lacks."""
    empty = [split for split in ("train", "val") if listed.split and split not in (listed.split.class_splits or ())]
    if empty:
        print(f"training also requires videos of {' and '.join(empty)}")
    elif listed.catalog is not None:
        words = ["method/dmgal_adapter", *layers, str(out / "data.yaml")]
        skip = ["--data.on-bad-video", "skip"] if skip_bad else []
        print(f"next: {shlex.join(['dmgal', 'train', *words, *skip])}")

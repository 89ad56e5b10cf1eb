"""Gets a data set ready: finds a standard split's videos in a download, checks every video, writes what recipes take.

    dmgal prepare --dataset ssv2_small --root DOWNLOAD    match a standard split to whatever layout the download has
    dmgal prepare --root FOLDER                           class folders: check every video
    dmgal prepare --root FOLDER --split-file LISTS        a CSV file, a list, or a folder of train, val and test lists
    dmgal prepare data/moving_shapes                      the data of a recipe's layers

Into the folder --out go split.csv, missing.csv (listed videos that are not there), report.csv (videos that do not
decode to their end, with the reason and how many frames do), summary.json, and data.yaml: a layer for recipes that
names them. A video that is damaged behind its first --num-frames frames is used; one with fewer is bad, and training
follows --data.on-bad-video error or skip. A check that was stopped goes on where it was; files found bad are looked at
again once they have changed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
import yaml
from tqdm import tqdm

from dmgal.episodes import VideoCatalog
from dmgal.episodes.check_log import CheckLog, write_report
from dmgal.episodes.checking import CheckedVideo, check_videos
from dmgal.episodes.exclusive import exclusively
from dmgal.episodes.listing import printable
from dmgal.episodes.packed_names import PackedNames
from dmgal.episodes.parallel import available_cores
from dmgal.episodes.split_files import write_rows
from dmgal.episodes.standard_splits import FACTS, StandardSplit
from dmgal.episodes.video_files import subfolders, videos_in
from dmgal.errors import DmgalError
from dmgal.recipes.build import list_catalog
from dmgal.recipes.config import DataConfig, Recipe
from dmgal.recipes.entry import as_description, run_recipe
from dmgal.recipes.layers import bundled_layers, from_mapping, merged, read_layer
from dmgal.recipes.runs import write_text
from dmgal.recipes.standard_data import match_dataset

SHOWN = 10  # lines of a list on the terminal; the files hold all
SECONDS_BETWEEN_FLUSHES = 1.0


@dataclass(frozen=True)
class Prepare:
    """Options of the command."""

    layers: tyro.conf.Positional[tuple[str, ...]] = ()
    """Recipe layers that say where the data is, such as data/moving_shapes."""
    dataset: StandardSplit | None = None
    """Match this standard split to the videos below --root."""
    root: Path | None = None
    """Folder of the videos."""
    split_file: Path | None = None
    """CSV file, list, or folder of lists; without one the folders tell."""
    list_format: str | None = None
    """Format of the lists, where it cannot be found by itself."""
    out: Path | None = None
    """Folder for what is written; None: prepared/ and the name of the data set or of its folder."""
    num_frames: int | None = None
    """Frames that a damaged video must have to be used: those of a clip; None: as the recipe's layers say, or 8."""
    check: bool = True
    """Decode every video; --no-check only matches and lists."""
    workers: int | None = None
    """Processes that decode; None: one per core."""
    seconds_per_video: float = 120.0
    """A video that takes longer to decode is bad."""
    recheck: bool = False
    """Forget what was checked before."""
    quiet: bool = False
    """No progress bar."""


@dataclass(frozen=True)
class Listed:
    """What is to be checked: videos below a root, and their catalog where they have classes."""

    root: Path
    videos: Sequence[str]
    catalog: VideoCatalog | None


def run(options: Prepare) -> dict[str, Any]:
    """Match, list, check and write; returns what is in summary.json.

    Raises:
        DmgalError: no videos there, or files that cannot be read or written.
    """
    data = _data(options)
    out = options.out or Path("prepared") / (options.dataset or data.root.resolve().name)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with exclusively(out / ".lock", lambda: print(f"another dmgal prepare works in {out}; waiting", flush=True)):
            return _prepared(options, data, out)
    except OSError as error:
        raise DmgalError(
            "The data cannot be prepared.",
            received=printable(str(error)),
            expected="folders that can be read, and an --out that can be written to",
            remedy="mend the rights or make room, then start again: a check goes on where it was",
        ) from error


def _prepared(options: Prepare, data: DataConfig, out: Path) -> dict[str, Any]:
    summary: dict[str, Any] = {"dataset": options.dataset, "videos": 0, "missing": 0}
    missing: list[tuple[str, str, str]] = []
    if options.dataset is not None:
        matched, summary["found"] = match_dataset(options.dataset, data.root, out, missing)
        listed = Listed(data.root, matched.videos, matched)
    else:
        listed = _listed(data, missing, progress=not options.quiet)
    if listed.catalog is not None and listed.catalog.class_splits is not None:
        listed.catalog.to_csv(out / "split.csv")
    write_rows(out / "missing.csv", missing, ("split", "class_name", "video"))
    summary |= {"videos": len(listed.videos), "missing": len(missing)}
    if missing:
        print(f"{len(missing):,} listed videos are missing; all of them: {out / 'missing.csv'}")
    if options.check:
        problems = check(listed, out, options)
        num_frames = options.num_frames or data.num_frames
        summary |= _verdict(problems, len(listed.videos), num_frames, out)
    _write_layer(options, listed, out)
    write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    if listed.catalog is not None:
        known = [name for name in bundled_layers() if name == f"data/{options.dataset}"]
        layers = [*options.layers, *known, str(out / "data.yaml")]
        skip = " --data.on-bad-video skip" if summary.get("bad") else ""
        print(f"next: dmgal train method/dmgal_adapter {' '.join(layers)}{skip}")
    return summary


def check(listed: Listed, out: Path, options: Prepare) -> dict[str, CheckedVideo]:
    """Decodes what was not checked before and writes report.csv; returns the videos with a problem."""
    log = CheckLog(out / "checked.jsonl", listed.root, listed.videos)
    if options.recheck:
        log.path.unlink(missing_ok=True)
    done = log.done()
    left = np.flatnonzero(~done)
    if done.any():
        print(f"{int(done.sum()):,} of {len(done):,} videos were checked before")
    workers = max(1, min(options.workers or available_cores(), len(left)))
    paths = ((place, listed.root / listed.videos[place]) for place in map(int, left))
    bar = tqdm(total=len(done), initial=int(done.sum()), desc="check", unit="video", disable=options.quiet)
    flushed = time.monotonic()
    with bar, log.writer() as file:
        for place, checked in check_videos(paths, workers, options.seconds_per_video) if len(left) else ():
            log.write(file, place, checked)
            if time.monotonic() - flushed > SECONDS_BETWEEN_FLUSHES:
                file.flush()
                flushed = time.monotonic()
            bar.update()
    write_report(out / "report.csv", log.problems)
    return log.problems


def _verdict(problems: dict[str, CheckedVideo], num_videos: int, num_frames: int, out: Path) -> dict[str, Any]:
    """Prints what the check found; the counts."""
    bad = {video: checked for video, checked in problems.items() if checked.is_bad(num_frames)}
    salvaged = len(problems) - len(bad)
    print(
        f"checked {num_videos:,} videos: {num_videos - len(problems):,} sound, {salvaged:,} damaged but used (at least "
        f"{num_frames} frames decode), {len(bad):,} bad; report: {out / 'report.csv'}"
    )
    for video, checked in sorted(problems.items(), key=lambda entry: (entry[0] not in bad, entry[0]))[:SHOWN]:
        used = "bad " if video in bad else f"used, {checked.frames} frames"
        print(f"  {used}  {printable(video)}: {printable(checked.problem or '')}")
    if len(problems) > SHOWN:
        print(f"  and {len(problems) - SHOWN:,} more")
    return {"num_frames": num_frames, "sound": num_videos - len(problems), "salvaged": salvaged, "bad": len(bad)}


def _listed(data: DataConfig, missing: list[tuple[str, str, str]], progress: bool) -> Listed:
    """What the data's split file or folders list; a folder of nothing but videos is taken as it is."""
    if data.split_file is None and data.generate == "no" and data.root.is_dir() and not subfolders(data.root):
        videos = PackedNames(videos_in(data.root))
        if len(videos):
            print(f"{len(videos):,} videos in {data.root}, which has no class folders: they are checked, no more")
            return Listed(data.root, videos, None)
    catalog = list_catalog(data, progress, lambda *row: missing.append(row))
    return Listed(data.root, catalog.videos, catalog)


def _data(options: Prepare) -> DataConfig:
    data = from_mapping(Recipe, merged(map(read_layer, options.layers))).data
    if options.root is None and not options.layers:
        raise DmgalError(
            "Nothing says where the videos are.",
            received="neither --root nor a layer",
            expected="dmgal prepare --root FOLDER, or a layer such as data/moving_shapes",
            remedy="see dmgal prepare --help",
        )
    if options.dataset is not None and options.split_file is not None:
        raise DmgalError(
            "There can be one split only.",
            received=f"--dataset {options.dataset} and --split-file {options.split_file}",
            expected="one of the two",
            remedy="leave one out",
        )
    return replace(
        data,
        root=options.root or data.root,
        split_file=options.split_file or data.split_file,
        list_format=options.list_format or data.list_format,
    )


def _write_layer(options: Prepare, listed: Listed, out: Path) -> None:
    """A layer that names the data; paths are whole, so that it works from any folder."""
    data: dict[str, Any] = {"root": str(listed.root.resolve()), "generate": "no"}
    if listed.catalog is not None and listed.catalog.class_splits is not None:
        data["split_file"] = str((out / "split.csv").resolve())
    if options.check:
        data["report"] = str((out / "report.csv").resolve())
    if options.dataset is not None:
        data["name"] = options.dataset
        data["flip"] = data["may_flip"] = FACTS[options.dataset].mirror
    head = "# Written by dmgal prepare: a layer for dmgal train that says where the data is.\n"
    write_text(out / "data.yaml", head + yaml.safe_dump({"data": data}, sort_keys=False))


def main(argv: list[str] | None = None) -> int | None:
    """Prepare the data of a command line."""
    run(
        tyro.cli(
            Prepare,
            prog="dmgal prepare",
            args=sys.argv[1:] if argv is None else argv,
            description=as_description(__doc__),
        )
    )
    return 0


if __name__ == "__main__":
    run_recipe(main)

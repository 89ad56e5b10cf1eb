"""Gets a data set ready: finds a standard split's videos in a download, checks every video, writes what recipes take.

    dmgal prepare --dataset ssv2_small --root DOWNLOAD    match a standard split to whatever layout the download has
    dmgal prepare --root FOLDER                           class folders: check every video
    dmgal prepare --root FOLDER --split-file LISTS        a CSV file, a list, or a folder of train, val and test lists
    dmgal prepare data/moving_shapes                      the data of a recipe's layers

Into the folder --out go missing.csv (listed videos that are not there), report.csv (videos that do not decode to their
end, with the reason and how many frames do), summary.json, and data.yaml: a layer for recipes that names them and says
how training clips are cropped. Where classes have splits there is split.csv, with --dataset found.csv, too (videos
listed and found, by class). A video that is damaged behind its first --num-frames frames is used; one with fewer is
bad, and training follows --data.on-bad-video error or skip. A check that was stopped goes on where it was, by
checked.jsonl, what each video turned out to be; files that have changed since are looked at again.
"""

from __future__ import annotations

import json
import shlex
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
from dmgal.episodes.catalogs.check_log import CheckLog, write_report
from dmgal.episodes.catalogs.checking import CheckedVideo, check_videos
from dmgal.episodes.catalogs.packed_names import PackedNames
from dmgal.episodes.catalogs.split_files import write_rows
from dmgal.episodes.catalogs.standard_splits import StandardSplit
from dmgal.episodes.catalogs.video_files import subfolders, videos_in
from dmgal.episodes.exclusive import exclusively
from dmgal.episodes.listing import printable
from dmgal.episodes.parallel import available_cores
from dmgal.errors import DmgalError
from dmgal.recipes.build import list_catalog
from dmgal.recipes.config import DataConfig, Recipe
from dmgal.recipes.entry import as_description, resumable, run_recipe
from dmgal.recipes.layers import from_mapping, merged, read_layer, to_mapping
from dmgal.recipes.runs import write_text
from dmgal.recipes.standard_data import FoundData, find_dataset

LOG, REPORT = "checked.jsonl", "report.csv"
SHOWN = 10  # lines of a list on the terminal; the files hold all
SECONDS_BETWEEN_FLUSHES = 1.0
OWN_DATA = {"data": {"flip": False, "crop_scale": [0.5, 1.0], "color_jitter": 0.2, "test_resize": 1.142857}}
"""Layer below videos of which no layer tells anything: as the bundled ones, but never mirrored, for want of knowing."""
TRANSFORMS = ("flip", "may_flip", "crop_scale", "color_jitter", "test_resize")
Missing = list[tuple[str, str, str]]
"""Split, class and name of listed videos that are not there."""


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

    @property
    def split(self) -> VideoCatalog | None:
        """The catalog, where its classes belong to train, val or test."""
        return self.catalog if self.catalog is not None and self.catalog.class_splits is not None else None


def run(options: Prepare) -> dict[str, Any]:
    """Match, list, check and write; returns what is in summary.json.

    Raises:
        DmgalError: no videos there, or files that cannot be read or written.
    """
    _check_options(options)
    data = _data(options)
    out = options.out or Path("prepared") / (options.dataset or data.root.resolve().name)
    try:
        # nothing is made before something was found
        missing: Missing = []
        found: FoundData | Listed
        if options.dataset is None:
            found = _listed(data, missing, progress=not options.quiet)
        else:
            found = find_dataset(options.dataset, data.root)
            missing += found.missing
        out.mkdir(parents=True, exist_ok=True)
        with exclusively(out / ".lock", lambda: print(f"another dmgal prepare works in {out}; waiting", flush=True)):
            return _prepared(options, data, out, found, missing)
    except BrokenPipeError:  # of what is printed
        raise
    except OSError as error:
        raise DmgalError(
            "The data cannot be prepared.",
            received=printable(str(error)),
            expected="folders that can be read, and an --out that can be written to",
            remedy="mend the rights or make room, then start again: a check goes on where it was",
        ) from error


def _prepared(
    options: Prepare, data: DataConfig, out: Path, found: FoundData | Listed, missing: Missing
) -> dict[str, Any]:
    summary: dict[str, Any] = {"dataset": options.dataset, "videos": 0, "missing": 0}
    if isinstance(found, FoundData):
        found.tell()
        summary["found"] = found.per_split
        catalog = found.write(out)
        listed = Listed(data.root, catalog.videos, catalog)
    else:
        listed = found
        if listed.split is not None:
            listed.split.to_csv(out / "split.csv")
    write_rows(out / "missing.csv", missing, ("split", "class_name", "video"))
    summary |= {"videos": len(listed.videos), "missing": len(missing)}
    if missing:
        print(f"{len(missing):,} listed videos are missing; all of them: {out / 'missing.csv'}")
    if options.check:
        problems = check(listed, out, options)
        num_frames = options.num_frames or data.num_frames
        summary |= _verdict(problems, len(listed.videos), num_frames, out)
    _write_layer(data, listed, out, with_report=options.check or _checked_before(listed, out))
    write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    empty = [split for split in ("train", "val") if listed.split and split not in (listed.split.class_splits or ())]
    if empty:
        print(f"for training there must be videos of {' and '.join(empty)}, too")
    elif listed.catalog is not None:
        words = ["method/dmgal_adapter", *options.layers, str(out / "data.yaml")]
        skip = ["--data.on-bad-video", "skip"] if summary.get("bad") else []
        print(f"next: {shlex.join(['dmgal', 'train', *words, *skip])}")
    return summary


def _checked_before(listed: Listed, out: Path) -> bool:
    """Whether an earlier check of these videos' folder has left its report."""
    return (out / REPORT).exists() and CheckLog(out / LOG, listed.root, ()).is_of_root


def check(listed: Listed, out: Path, options: Prepare) -> dict[str, CheckedVideo]:
    """Decodes what was not checked before and writes report.csv; returns the videos with a problem."""
    log = CheckLog(out / LOG, listed.root, listed.videos)
    if options.recheck:
        log.path.unlink(missing_ok=True)
    elif log.path.exists() and not log.is_of_root:
        print("what was checked before was in another folder: every video is checked")
    done = log.done()
    left = np.flatnonzero(~done)
    if done.any():
        print(f"{int(done.sum()):,} of {len(done):,} videos were checked before")
    workers = min(options.workers or available_cores(), len(left))
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
    write_report(out / REPORT, log.problems)
    return log.problems


def _verdict(problems: dict[str, CheckedVideo], num_videos: int, num_frames: int, out: Path) -> dict[str, Any]:
    """Prints what the check found; the counts."""
    bad = {video: checked for video, checked in problems.items() if checked.is_bad(num_frames)}
    salvaged = len(problems) - len(bad)
    print(
        f"checked {num_videos:,} videos: {num_videos - len(problems):,} sound, {salvaged:,} damaged but used (at least "
        f"{num_frames} frames decode), {len(bad):,} bad; report: {out / REPORT}"
    )
    for video, checked in sorted(problems.items(), key=lambda entry: (entry[0] not in bad, entry[0]))[:SHOWN]:
        used = "bad " if video in bad else f"used, {checked.frames} frames"
        print(f"  {used}  {printable(video)}: {printable(checked.problem or '')}")
    if len(problems) > SHOWN:
        print(f"  and {len(problems) - SHOWN:,} more")
    return {"num_frames": num_frames, "sound": num_videos - len(problems), "salvaged": salvaged, "bad": len(bad)}


def _listed(data: DataConfig, missing: Missing, progress: bool) -> Listed:
    """What the data's split file or folders list; a folder of nothing but videos is taken as it is."""
    if data.split_file is None and data.generate == "no" and data.root.is_dir() and not subfolders(data.root):
        videos = PackedNames(videos_in(data.root))
        if len(videos):
            print(f"{len(videos):,} videos in {data.root}, which has no class folders: they are checked, no more")
            return Listed(data.root, videos, None)
    catalog = list_catalog(data, progress, lambda *row: missing.append(row))
    return Listed(data.root, catalog.videos, catalog)


def _check_options(options: Prepare) -> None:
    least = {"--workers": (options.workers, 1), "--num-frames": (options.num_frames, 1)}
    wrong = [f"{flag} {value}" for flag, (value, smallest) in least.items() if value is not None and value < smallest]
    if not options.seconds_per_video > 0:
        wrong.append(f"--seconds-per-video {options.seconds_per_video:g}")
    if wrong:
        raise DmgalError(
            "Data cannot be prepared like this.",
            received=", ".join(wrong),
            expected="at least 1 worker and 1 frame, and more than 0 seconds for a video",
            remedy="give another number, or leave it out",
        )


def _data(options: Prepare) -> DataConfig:
    """Where the videos are and how clips are taken of them: layers, and what the command line says of the places.

    Below the layers lies what is known of the data set.
    """
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
    below = [read_layer(f"data/{options.dataset}")] if options.dataset else [] if options.layers else [OWN_DATA]
    data = from_mapping(Recipe, merged([*below, *map(read_layer, options.layers)])).data
    return replace(
        data,
        root=options.root or data.root,
        split_file=options.split_file or data.split_file,
        list_format=options.list_format or data.list_format,
    )


def _write_layer(data: DataConfig, listed: Listed, out: Path, with_report: bool) -> None:
    """A layer that says all that there is to say of the data; paths are whole, so that it works from any folder."""
    layer: dict[str, Any] = {"name": data.name} if data.name else {}
    layer |= {"root": str(listed.root.resolve()), "generate": "no"}
    if listed.split is not None:
        layer["split_file"] = str((out / "split.csv").resolve())
    if with_report:
        layer["report"] = str((out / REPORT).resolve())
    layer |= {key: to_mapping(getattr(data, key)) for key in TRANSFORMS}
    head = "# Written by dmgal prepare: a layer for dmgal train that says where the data is and how clips are taken.\n"
    write_text(out / "data.yaml", head + yaml.safe_dump({"data": layer}, sort_keys=False))


def main(argv: list[str] | None = None) -> int | None:
    """Prepare the data of a command line."""
    options = tyro.cli(
        Prepare,
        prog="dmgal prepare",
        args=sys.argv[1:] if argv is None else argv,
        description=as_description(__doc__),
    )
    with resumable():
        run(options)
    return 0


if __name__ == "__main__":
    run_recipe(main)

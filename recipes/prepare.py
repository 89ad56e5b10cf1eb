"""Preparation of a data set: match a standard split to a download, check every video, write a recipe layer.

    dmgal prepare --dataset ssv2_small --root DOWNLOAD    match a standard split to whatever layout the download has
    dmgal prepare --root FOLDER                           class folders: check every video
    dmgal prepare --root FOLDER --split-file LISTS        a CSV file, a list, or a folder of train, val and test lists
    dmgal prepare data/moving_shapes                      the data of a recipe's layers

The folder --out receives missing.csv (listed videos that do not exist), report.csv (videos that do not decode to their
end, with the reason and the number of decodable frames), summary.json, and data.yaml, a recipe layer with these files
and the cropping of training clips. split.csv is written if classes have splits, and found.csv (videos listed and found
per class) with --dataset. A damaged video is used if its first --num-frames frames decode. Otherwise it is bad, and
training follows --data.on-bad-video. A stopped check resumes from checked.jsonl, the log of checked videos. Files that
have changed since are checked again.
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

from dmgal.errors import DmgalError
from dmgal.files import exclusively, printable
from dmgal.parallel import available_cores
from dmgal.progress import progress_bar
from dmgal.recipes.run.cli_errors import as_description, resumable, run_recipe
from dmgal.recipes.run.config import DataConfig, Recipe
from dmgal.recipes.run.data import list_catalog
from dmgal.recipes.run.folder import write_text
from dmgal.recipes.run.layers import from_mapping, merged, read_layer, to_mapping
from dmgal.recipes.run.standard_data import FoundData, find_dataset
from dmgal.videos import VideoCatalog
from dmgal.videos.catalog.files import subfolders, videos_in
from dmgal.videos.catalog.lists import StandardSplit, write_rows
from dmgal.videos.check_log import CheckLog, write_report
from dmgal.videos.checking import CheckedVideo, check_videos

LOG, REPORT = "checked.jsonl", "report.csv"
SHOWN = 10  # lines of a list on the terminal, the files are complete
SECONDS_BETWEEN_FLUSHES = 1.0
OWN_DATA = {"data": {"flip": False, "crop_scale": [0.5, 1.0], "color_jitter": 0.2, "test_resize": 1.142857}}
"""Base layer for data sets without a layer: as the bundled ones, but not mirrored, because labels are unknown."""
TRANSFORMS = ("flip", "may_flip", "crop_scale", "color_jitter", "test_resize")
Missing = list[tuple[str, str, str]]
"""Split, class and name of listed videos that do not exist."""


@dataclass(frozen=True)
class Prepare:
    """Options of the command."""

    layers: tyro.conf.Positional[tuple[str, ...]] = ()
    """Recipe layers that locate the data, such as data/moving_shapes."""
    dataset: StandardSplit | None = None
    """Standard split to match to the videos below --root."""
    root: Path | None = None
    """Folder of the videos."""
    split_file: Path | None = None
    """CSV file, list, or folder of lists. None: the folder names define the classes."""
    list_format: str | None = None
    """Format of the lists, needed only if it cannot be detected."""
    out: Path | None = None
    """Output folder. None: prepared/ and the name of the data set or of its folder."""
    num_frames: int | None = None
    """Decodable frames that a damaged video needs: those of a clip. None: as in the recipe's layers, or 8."""
    check: bool = True
    """Decode every video. --no-check only matches and lists."""
    workers: int | None = None
    """Number of decoding processes. None: one per core."""
    seconds_per_video: float = 120.0
    """Time limit of decoding. A video that takes longer is bad."""
    recheck: bool = False
    """Ignore earlier checks."""
    quiet: bool = False
    """Hide the progress bar."""


@dataclass(frozen=True)
class Listed:
    """Videos to check below a root, and their catalog if they have classes."""

    root: Path
    videos: Sequence[str]
    catalog: VideoCatalog | None

    @property
    def split(self) -> VideoCatalog | None:
        """The catalog, or None if its classes have no splits."""
        return self.catalog if self.catalog is not None and self.catalog.class_splits is not None else None


def run(options: Prepare) -> dict[str, Any]:
    """Match, list, check and write. Return the content of summary.json.

    Raises:
        DmgalError: there are no videos, or files cannot be read or written.
    """
    _check_options(options)
    data = _data(options)
    out = options.out or Path("prepared") / (options.dataset or data.root.resolve().name)
    try:
        # create nothing before videos are found
        missing: Missing = []
        found: FoundData | Listed
        if options.dataset is None:
            found = _listed(data, missing, progress=not options.quiet)
        else:
            found = find_dataset(options.dataset, data.root)
            missing += found.missing
        out.mkdir(parents=True, exist_ok=True)
        with exclusively(out / ".lock", lambda: print(f"waiting for another dmgal prepare in {out}", flush=True)):
            return _prepare(options, data, out, found, missing)
    except BrokenPipeError:  # an OSError of the output, not of the data
        raise
    except OSError as error:
        raise DmgalError(
            "The data cannot be prepared.",
            received=printable(str(error)),
            expected="folders that can be read, and an --out that can be written to",
            remedy="Correct the permissions or make room, then run the command again to resume.",
        ) from error


def _prepare(
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
        print(f"{len(missing):,} listed videos are missing, see {out / 'missing.csv'}")
    if options.check:
        problems = check(listed, out, options)
        num_frames = options.num_frames or data.num_frames
        summary |= _verdict(problems, len(listed.videos), num_frames, out)
    _write_layer(data, listed, out, with_report=options.check or _checked_before(listed, out))
    write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    empty = [split for split in ("train", "val") if listed.split and split not in (listed.split.class_splits or ())]
    if empty:
        print(f"training also requires videos of {' and '.join(empty)}")
    elif listed.catalog is not None:
        words = ["method/dmgal_adapter", *options.layers, str(out / "data.yaml")]
        skip = ["--data.on-bad-video", "skip"] if summary.get("bad") else []
        print(f"next: {shlex.join(['dmgal', 'train', *words, *skip])}")
    return summary


def _checked_before(listed: Listed, out: Path) -> bool:
    """Return True if there is a report of an earlier check of the same folder."""
    return (out / REPORT).exists() and CheckLog(out / LOG, listed.root, ()).is_of_root


def check(listed: Listed, out: Path, options: Prepare) -> dict[str, CheckedVideo]:
    """Decode all videos not checked before and write report.csv. Return the videos with a problem."""
    log = CheckLog(out / LOG, listed.root, listed.videos)
    if options.recheck:
        log.path.unlink(missing_ok=True)
    elif log.path.exists() and not log.is_of_root:
        print("the earlier check was of another folder, so every video is checked again")
    done = log.done()
    unchecked = np.flatnonzero(~done)
    if done.any():
        print(f"{int(done.sum()):,} of {len(done):,} videos were checked before")
    workers = min(options.workers or available_cores(), len(unchecked))
    paths = ((index, listed.root / listed.videos[index]) for index in map(int, unchecked))
    num_done = int(done.sum())
    bar = progress_bar(progress=not options.quiet, total=len(done), initial=num_done, desc="check", unit="video")
    flushed = time.monotonic()
    with bar, log.writer() as file:
        for index, checked in check_videos(paths, workers, options.seconds_per_video) if len(unchecked) else ():
            log.write(file, index, checked)
            if time.monotonic() - flushed > SECONDS_BETWEEN_FLUSHES:
                file.flush()
                flushed = time.monotonic()
            bar.update()
    write_report(out / REPORT, log.problems)
    return log.problems


def _verdict(problems: dict[str, CheckedVideo], num_videos: int, num_frames: int, out: Path) -> dict[str, Any]:
    """Print and return the results of the check."""
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
    """Return the videos of the split file or folders. A folder without class folders has no catalog."""
    if data.split_file is None and data.generate == "no" and data.root.is_dir() and not subfolders(data.root):
        videos = tuple(videos_in(data.root))
        if len(videos):
            print(f"{len(videos):,} videos in {data.root}, without class folders: they are only checked")
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
            "These options are out of range.",
            received=", ".join(wrong),
            expected="at least 1 worker and 1 frame, and more than 0 seconds for a video",
            remedy="Correct the number, or remove the option.",
        )


def _data(options: Prepare) -> DataConfig:
    """Return the data config from layers and command line, on top of the defaults for the data set."""
    if options.root is None and not options.layers:
        raise DmgalError(
            "The location of the videos is missing.",
            received="neither --root nor a layer",
            expected="dmgal prepare --root FOLDER, or a layer such as data/moving_shapes",
            remedy="See dmgal prepare --help.",
        )
    if options.dataset is not None and options.split_file is not None:
        raise DmgalError(
            "Only one split can be used.",
            received=f"--dataset {options.dataset} and --split-file {options.split_file}",
            expected="one of the two",
            remedy="Remove one of them.",
        )
    base: list[Any] = []
    if options.dataset:
        base = [read_layer(f"data/{options.dataset}")]
    elif not options.layers:
        base = [OWN_DATA]
    data = from_mapping(Recipe, merged([*base, *map(read_layer, options.layers)])).data
    return replace(
        data,
        root=options.root or data.root,
        split_file=options.split_file or data.split_file,
        list_format=options.list_format or data.list_format,
    )


def _write_layer(data: DataConfig, listed: Listed, out: Path, with_report: bool) -> None:
    """Write data.yaml, a layer with all data settings. Its paths are absolute, so that it works from any folder."""
    layer: dict[str, Any] = {"name": data.name} if data.name else {}
    layer |= {"root": str(listed.root.resolve()), "generate": "no"}
    if listed.split is not None:
        layer["split_file"] = str((out / "split.csv").resolve())
    if with_report:
        layer["report"] = str((out / REPORT).resolve())
    layer |= {key: to_mapping(getattr(data, key)) for key in TRANSFORMS}
    head = "# Written by dmgal prepare: a layer for dmgal train with the data's location and the sampling of clips.\n"
    write_text(out / "data.yaml", head + yaml.safe_dump({"data": layer}, sort_keys=False))


def main(argv: list[str] | None = None) -> int | None:
    """Prepare the data named on the command line."""
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

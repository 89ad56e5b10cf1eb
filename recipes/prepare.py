"""Preparation of a data set: match a standard split to a download, check every video, write a recipe layer.

    dmgal prepare --dataset ssv2_small --root DOWNLOAD    match a standard split to whatever layout the download has
    dmgal prepare --root FOLDER                           class folders: check every video
    dmgal prepare --root FOLDER --split-file LISTS        a CSV file, a list, or a folder of train, val and test lists
    dmgal prepare data/moving_shapes                      the data of a recipe's layers

The folder --out receives missing.csv (listed videos that do not exist), report.csv (videos that do not decode to their
end, with the reason and the number of decodable frames), equal.csv (groups of videos with equal content), summary.json,
and data.yaml, a recipe layer with these files and the cropping of training clips. split.csv is written if classes have
splits, and found.csv (videos listed and found per class) with --dataset. A damaged video is used if its first
--num-frames frames decode. Otherwise it is bad, and training follows --data.on-bad-video. A stopped check resumes from
checked.jsonl, the log of checked videos. Files that have changed since are checked again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dmgal.errors import DmgalError
from dmgal.files import exclusively, printable, write_text
from dmgal.recipes.reports.preparation import print_equal, print_found, print_next, print_verdict
from dmgal.recipes.run import preparation
from dmgal.recipes.run.cli_errors import parse_options, resumable, run_recipe
from dmgal.recipes.run.config import DataConfig
from dmgal.recipes.run.preparation import FoundData, Listed
from dmgal.recipes.run.ranges import WORKERS, Range
from dmgal.videos.catalog.lists import StandardSplit


@dataclass(frozen=True)
class Prepare:
    """Options of the command."""

    layers: tyro.conf.Positional[tuple[str, ...]] = ()
    """Recipe layers that locate the data, such as data/moving_shapes."""
    dataset: StandardSplit | None = None
    """Standard split to match to the videos below --root. None: the videos of --split-file, of the layers, or of class
    folders."""
    root: Path | None = None
    """Folder of the videos. None: that of the layers."""
    split_file: Path | None = None
    """CSV file, list, or folder of lists. None: that of the layers, or else the folder names define the classes."""
    list_format: str | None = None
    """Format of the lists, needed only if it cannot be detected."""
    out: Path | None = None
    """Output folder. None: prepared/ and the name of the data set or of its folder."""
    num_frames: Annotated[int | None, Range(1, 1024)] = None
    """Decodable frames that a damaged video needs: those of a clip. None: as in the recipe's layers, or 8."""
    check: bool = True
    """Decode every video. --no-check only matches and lists."""
    workers: Annotated[int | None, Range(1, WORKERS)] = None
    """Number of decoding processes. None: one per core."""
    seconds_per_video: Annotated[float, Range(0.001, 10**6)] = 120.0
    """Time limit for decoding a video, in seconds. A video that takes longer is bad."""
    recheck: bool = False
    """Ignore earlier checks, and check every video again."""
    quiet: bool = False
    """Hide the progress bar."""


def run(options: Prepare, suggest: bool = True) -> dict[str, object]:
    """Match, list, check and write. Return the content of summary.json. Print the next command if ``suggest``.

    Raises:
        DmgalError: there are no videos, or files cannot be read or written.
    """
    data = preparation.prepared_data(
        options.layers, options.dataset, options.root, options.split_file, options.list_format
    )
    out = options.out or Path("prepared") / (options.dataset or data.root.resolve().name)
    try:
        found: FoundData | Listed  # before anything is created
        if options.dataset is None:
            found = preparation.list_videos(data, progress=not options.quiet)
        else:
            found = preparation.find_dataset(options.dataset, data.root)
        out.mkdir(parents=True, exist_ok=True)
        with exclusively(out / ".lock", lambda: print(f"waiting for another dmgal prepare in {out}", flush=True)):
            return _prepare(options, data, out, found, suggest)
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
    options: Prepare, data: DataConfig, out: Path, found: FoundData | Listed, suggest: bool
) -> dict[str, object]:
    if isinstance(found, FoundData):
        print_found(found)
    listed, counts = preparation.write_lists(found, out)
    summary: dict[str, object] = {"dataset": options.dataset, **counts}
    if options.check:
        problems, equal = preparation.check(
            listed, out, options.workers, options.seconds_per_video, options.recheck, progress=not options.quiet
        )
        num_frames = options.num_frames or data.num_frames
        summary |= print_verdict(problems, len(listed.videos), num_frames, out) | print_equal(equal, out)
    preparation.write_layer(data, listed, out, with_report=options.check or preparation.checked_before(listed, out))
    write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    if suggest:
        print_next(listed, options.layers, out, skip_bad=bool(summary.get("bad")))
    return summary


def main(argv: list[str] | None = None) -> int | None:
    """Prepare the data named on the command line."""
    options = parse_options(Prepare, argv, "prepare", __doc__)
    with resumable():
        run(options)
    return 0


if __name__ == "__main__":
    run_recipe(main)

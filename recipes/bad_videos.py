"""Bad videos that are known before a run, from the report of ``dmgal prepare``: refused, or left out and told.

What turns bad later is met by the data sets (see ``dmgal.episodes.catalogs.bad_videos``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import torch

from dmgal.episodes import VideoCatalog
from dmgal.episodes.catalogs.bad_videos import BadVideos
from dmgal.episodes.catalogs.check_log import read_report
from dmgal.episodes.listing import listed
from dmgal.errors import DmgalError
from dmgal.recipes.config import DataConfig


def without_reported(catalog: VideoCatalog, data: DataConfig) -> VideoCatalog:
    """The catalog less the videos that the report calls bad for clips of ``data.num_frames`` frames.

    Raises:
        DmgalError: the report cannot be read; there are bad videos and they are not to be skipped, or a class has no
            other ones.
    """
    if data.report is None:
        return catalog
    reported = read_report(data.report)
    called_bad = {video for video, checked in reported.items() if checked.is_bad(data.num_frames)}
    bad = [video for video in catalog.videos if video in called_bad] if called_bad else []
    if not bad:
        return catalog
    if data.on_bad_video == "error":
        raise DmgalError(
            f"{len(bad)} of {len(catalog)} videos cannot be used.",
            received=listed([f"{video} ({reported[video].problem})" for video in bad]),
            expected=f"videos of which at least {data.num_frames} frames decode, or that are short but sound",
            remedy="replace them and run dmgal prepare again, or pass --data.on-bad-video skip to go on without them",
        )
    tell_skipped(len(bad), len(catalog), f"bad by {data.report}", bad)
    return catalog.without(bad)


def tell_met(bad_videos: BadVideos, split: str) -> None:
    """One line for a split: how many of its videos could not be read, by any process; all processes must ask for it."""
    from dmgal.recipes.training.sharding import any_process  # with accelerate, which other commands need not wait for

    catalog = bad_videos.catalog
    met = torch.zeros(len(catalog), dtype=torch.bool)
    met[bad_videos.met] = True
    videos = [catalog.videos[video] for video in any_process(met).nonzero().flatten().tolist()]
    if videos:
        tell_skipped(len(videos), len(catalog), "which could not be read", videos, f"{split} ")


def tell_skipped(count: int, of: int, why: str, videos: Sequence[str], split: str = "") -> None:
    """One line on the terminal, from one process of a launcher's."""
    if os.environ.get("RANK", "0") == "0":
        print(f"skipped {count:,} of {of:,} {split}videos, {why}: {listed(videos)}", file=sys.stderr, flush=True)

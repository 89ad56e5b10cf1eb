"""Bad videos known before a run from the report of ``dmgal prepare``. They are refused, or skipped and reported.

Data sets handle videos that fail later, see ``dmgal.episodes.catalogs.bad_videos``.
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
    """Return the catalog without the videos that are bad for clips of ``data.num_frames`` frames by the report.

    Raises:
        DmgalError: the report cannot be read, bad videos must not be skipped, or a class has no usable video.
    """
    if data.report is None:
        return catalog
    reported = read_report(data.report)
    reported_bad = {video for video, checked in reported.items() if checked.is_bad(data.num_frames)}
    bad = [video for video in catalog.videos if video in reported_bad] if reported_bad else []
    if not bad:
        return catalog
    if data.on_bad_video == "error":
        raise DmgalError(
            f"{len(bad)} of {len(catalog)} videos cannot be used.",
            received=listed([f"{video} ({reported[video].problem})" for video in bad]),
            expected=f"videos with at least {data.num_frames} decodable frames, or short videos without damage",
            remedy="Replace them and run dmgal prepare again, or pass --data.on-bad-video skip.",
        )
    tell_skipped(len(bad), len(catalog), f"bad by {data.report}", bad)
    return catalog.without(bad)


def tell_met(bad_videos: BadVideos, split: str) -> None:
    """Print how many videos of a split could not be read by any process. All processes must call this function."""
    from dmgal.recipes.training.sharding import any_process  # loads accelerate, slow and unused elsewhere

    catalog = bad_videos.catalog
    met = torch.zeros(len(catalog), dtype=torch.bool)
    met[bad_videos.met] = True
    videos = [catalog.videos[video] for video in any_process(met).nonzero().flatten().tolist()]
    if videos:
        tell_skipped(len(videos), len(catalog), "which could not be read", videos, f"{split} ")


def tell_skipped(count: int, of: int, why: str, videos: Sequence[str], split: str = "") -> None:
    """Print one line about skipped videos to stderr, from rank 0 only."""
    if os.environ.get("RANK", "0") == "0":
        print(f"skipped {count:,} of {of:,} {split}videos, {why}: {listed(videos)}", file=sys.stderr, flush=True)

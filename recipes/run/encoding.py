"""Encoded videos of a split, in memory or in a folder shared with later commands and other processes."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.evaluation import encode_videos
from dmgal.episodes.evaluation.cache import CachedStates, Processes, StateCache
from dmgal.episodes.evaluation.identity import describe
from dmgal.episodes.evaluation.states import PrecomputedStates, videos_at_a_time
from dmgal.errors import DmgalError
from dmgal.files import printable
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.data import log_skipped, test_clips, test_transform
from dmgal.videos import VideoCatalog
from dmgal.videos.bad_videos import without_bad
from dmgal.videos.catalog.files import stamp
from dmgal.videos.store.content import EvaluationClips

logger = logging.getLogger(__name__)
Kept = Literal["disk", "float16", "memory"]


@dataclass(frozen=True)
class Keep:
    """Storage of encoded videos, and the processes that share the encoding."""

    kept: Kept = "memory"
    folder: Path | None = None
    """Folder with a subfolder of states per split. Unused with ``memory``."""
    processes: Processes = field(default_factory=Processes)


@dataclass(frozen=True)
class EncodedSplit:
    """The readable videos of a split and their states.

    ``dtype`` is the dtype to convert the states to before use, or None if they are stored exactly.
    """

    catalog: VideoCatalog
    states: PrecomputedStates
    dtype: torch.dtype | None = None


def encode_split(
    recognizer: FewShotRecognizer,
    recipe: Recipe,
    catalog: VideoCatalog,
    keep: Keep,
    split: str,
    device: torch.device | str,
    progress: bool = True,
) -> EncodedSplit:
    """Encode the videos of a split's catalog with a recognizer on ``device``, or load their cached states."""
    clips = test_clips(catalog, recipe, recognizer.encoder.image_size)
    workers = recipe.data.num_workers
    dtype = None
    if keep.kept == "memory" or keep.folder is None:
        _check_single_process(keep.processes)
        states = encode_videos(recognizer, clips, num_workers=workers, device=device, progress=progress)
        bad = tuple(clips.bad_videos.met)
    else:
        cache = state_cache(recognizer, recipe, catalog, keep, split, device)
        fill = partial(cache.fill, recognizer, clips, workers, device, progress, keep.processes)
        try:
            cached = fill(lambda: clips.bad_videos.met)
            if cached.bad and recipe.data.on_bad_video == "error":
                for video in cached.bad:
                    clips[video]  # raises if the video is still bad
                cached = fill(no_longer_bad=cached.bad)
        except OSError as error:
            raise _cannot_write(cache.folder, error) from error
        states, bad = cached.states, cached.bad
        if progress and not keep.processes.rank:
            _log_cached(cached, len(catalog), cache.folder)
        if keep.kept == "float16":
            dtype = next(p.dtype for p in recognizer.parameters() if p.is_floating_point())
    if bad:
        if not keep.processes.rank:
            names = [catalog.videos[video] for video in bad]
            log_skipped(len(bad), len(catalog), "which could not be read", names)
        catalog, states = without_bad(catalog, states, bad)
    return EncodedSplit(catalog, states, dtype)


def state_cache(
    recognizer: FewShotRecognizer,
    recipe: Recipe,
    catalog: VideoCatalog,
    keep: Keep,
    split: str,
    device: torch.device | str,
) -> StateCache:
    """Return the cache of a split, keyed by everything that determines the states."""
    assert keep.folder is not None
    content = EvaluationClips(
        recipe.data.num_frames, test_transform(recipe, recognizer.encoder.image_size), recipe.data.decoder
    )
    key = describe(recognizer, device=torch.device(device).type, clips=content.description())
    half = keep.kept == "float16"
    folder = keep.folder / (f"{split}_float16" if half else split)
    return StateCache(folder, key, _identities(catalog), videos_at_a_time(device), half)


def launched_processes() -> Processes:
    """Return the rank and number of processes that accelerate or torchrun has launched."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return Processes(state.process_index, state.num_processes, state.wait_for_everyone)


def launched_device() -> torch.device:
    """Return the GPU of this process, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _identities(catalog: VideoCatalog) -> list[str]:
    """Return a text for each video that changes with its file."""
    return [f"{video} {' '.join(map(str, stamp(catalog.path(n))))}" for n, video in enumerate(catalog.videos)]


def _check_single_process(processes: Processes) -> None:
    if processes.count > 1:
        raise DmgalError(
            "Several processes cannot share states in memory.",
            received=f"{processes.count} processes and --states memory",
            expected="states on disk, or one process",
            remedy="Remove --states memory, or launch one process.",
        )


def _cannot_write(folder: Path, error: OSError) -> DmgalError:
    return DmgalError(
        "The states of the videos cannot be written.",
        received=f"{folder}: {error.strerror or error}",
        expected="a writable folder",
        remedy="To use another folder, pass --cache FOLDER. To write no states, pass --states memory.",
    )


def _log_cached(cached: CachedStates, num_videos: int, folder: Path) -> None:
    already = num_videos - cached.encoded
    known = f", {already} were cached or encoded by other processes" if already else ""
    size = f"{cached.size / 2**20:,.1f} MiB"
    logger.info(f"{cached.encoded} of {num_videos} videos encoded{known}; {size} in {printable(str(folder))}")

"""The videos of a split, encoded once: into memory, or into a folder that later commands and other processes read."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from dmgal.backbones import VideoState
from dmgal.episodes import FewShotRecognizer, VideoCatalog, encode_videos
from dmgal.episodes.cache import CachedStates, Processes, StateCache
from dmgal.episodes.catalogs.bad_videos import without_bad
from dmgal.episodes.catalogs.video_identity import stamp
from dmgal.episodes.listing import printable
from dmgal.episodes.states.cache_key import describe
from dmgal.episodes.states.sides import videos_at_a_time
from dmgal.episodes.store import EvaluationClips
from dmgal.errors import DmgalError
from dmgal.recipes.bad_videos import tell_skipped
from dmgal.recipes.build import test_clips, test_transform
from dmgal.recipes.config import Recipe

Kept = Literal["disk", "float16", "memory"]


@dataclass(frozen=True)
class Keep:
    """Where the states of videos are kept, and by whom they are made."""

    kept: Kept = "memory"
    folder: Path | None = None
    """Of the states, unless they are kept in memory; each split has a folder in it."""
    processes: Processes = field(default_factory=Processes)


@dataclass(frozen=True)
class EncodedSplit:
    """The readable videos of a split and their states.

    ``dtype`` is what the states are to be turned into when they are used, None where they are exact.
    """

    catalog: VideoCatalog
    states: VideoState
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
    """Encode a catalog, or take what was encoded before.

    Args:
        recognizer: on its device.
        catalog: of the split.
        keep: where to, and which process this is.
        split: its name, for the folder.
    """
    clips = test_clips(catalog, recipe, recognizer.encoder.image_size)
    workers = recipe.data.num_workers
    dtype = None
    if keep.kept == "memory" or keep.folder is None:
        _refuse_several(keep.processes)
        states = encode_videos(recognizer, clips, num_workers=workers, device=device, progress=progress)
        bad = tuple(clips.bad_videos.met)
    else:
        cache = state_cache(recognizer, recipe, catalog, keep, split, device)
        fill = partial(cache.fill, recognizer, clips, workers, device, progress, keep.processes)
        try:
            found = fill(lambda: clips.bad_videos.met)
            if found.bad and recipe.data.on_bad_video == "error":
                for video in found.bad:
                    clips[video]  # kept states tell that it was bad; where it still is, its reader says why, and raises
                found = fill(no_longer_bad=found.bad)
        except OSError as error:
            raise _cannot_be_kept(cache.folder, error) from error
        states, bad = found.states, found.bad
        if progress and not keep.processes.rank:
            _tell_found(found, len(catalog), cache.folder)
        if keep.kept == "float16":
            dtype = next(p.dtype for p in recognizer.parameters() if p.is_floating_point())
    if bad:
        if not keep.processes.rank:
            names = [catalog.videos[video] for video in bad]
            tell_skipped(len(bad), len(catalog), "which could not be read", names)
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
    """The cache of a split, keyed by all that shapes the states."""
    assert keep.folder is not None
    content = EvaluationClips(
        recipe.data.num_frames, test_transform(recipe, recognizer.encoder.image_size), recipe.data.decoder
    )
    key = describe(recognizer, device=torch.device(device).type, clips=content.description())
    half = keep.kept == "float16"
    folder = keep.folder / (f"{split}_float16" if half else split)
    return StateCache(folder, key, _identities(catalog), videos_at_a_time(device), half)


def launched_processes() -> Processes:
    """This process among those that accelerate or torchrun has started; alone where none has."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return Processes(state.process_index, state.num_processes, state.wait_for_everyone)


def launched_device() -> torch.device:
    """The accelerator of this process, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _identities(catalog: VideoCatalog) -> list[str]:
    """A text for each video that changes with it."""
    return [f"{video} {' '.join(map(str, stamp(catalog.path(n))))}" for n, video in enumerate(catalog.videos)]


def _refuse_several(processes: Processes) -> None:
    if processes.count > 1:
        raise DmgalError(
            "Several processes cannot share states that each keeps in its own memory.",
            received=f"{processes.count} processes and --states memory",
            expected="states kept on disk, or one process",
            remedy="leave --states out, or do not launch several processes",
        )


def _cannot_be_kept(folder: Path, error: OSError) -> DmgalError:
    return DmgalError(
        "The states of the videos cannot be kept.",
        received=f"{folder}: {error.strerror or error}",
        expected="a folder that may be written",
        remedy="pass --cache with another folder, or --states memory",
    )


def _tell_found(found: CachedStates, num_videos: int, folder: Path) -> None:
    already = num_videos - found.encoded
    known = f", {already} were there or are of other processes" if already else ""
    size = f"{found.size / 2**20:,.1f} MiB"
    print(f"{found.encoded} of {num_videos} videos encoded{known}; {size} in {printable(str(folder))}")

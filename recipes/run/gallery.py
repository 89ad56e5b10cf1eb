"""Galleries of a run, made from clips with augmented views and a threshold.

Augmented views replace a second clip in classes that only have one. They have other frames, another crop and other
colors, but are never mirrored, because labels may depend on left and right. A gallery stores the fingerprint of the
model and the settings that determine its states, and refuses states with another fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dmgal.adapters import is_added
from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.evaluation import encode_videos
from dmgal.episodes.evaluation.identity import normalization
from dmgal.episodes.gallery.gallery import Gallery
from dmgal.episodes.gallery.task import GalleryTask, find_rejection
from dmgal.errors import DmgalError
from dmgal.files import printable
from dmgal.recipes.run.adapter import construct
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.data import log_skipped, test_transform
from dmgal.recipes.run.encoding import launched_device
from dmgal.recipes.run.layers import to_mapping
from dmgal.recipes.run.weights import without_folder
from dmgal.videos import VideoCatalog
from dmgal.videos.bad_videos import OnBadVideo, without_bad
from dmgal.videos.catalog.files import content_hash, subfolders, videos_in
from dmgal.videos.dataset import ClipReader, ClipSource, VideoDataset
from dmgal.videos.decoding.clip import FrameSampler, Size, TrainTransform


def list_clips(folder: Path, class_name: str | None = None) -> VideoCatalog:
    """Return the clips to enroll, by class.

    Raises:
        DmgalError: there are no clips or no class folders, or a class has no clip.
    """
    if class_name is None:
        if folder.is_dir() and not subfolders(folder) and videos_in(folder):
            raise DmgalError(
                "The clips have no class.",
                received=f"{printable(str(folder))}, a folder of clips",
                expected="a folder of class folders with clips, or the class of all clips",
                remedy="Pass --class-name NAME, or the parent folder.",
            )
        return VideoCatalog.from_folders(folder)
    names = videos_in(folder) if folder.is_dir() else [folder.name] if folder.exists() else []
    is_frames = folder.is_dir() and not names and folder.name in videos_in(folder.parent)
    if is_frames:
        names = [folder.name]
    if not class_name.strip() or not names:
        raise DmgalError(
            "There is nothing to enroll.",
            received=f"class {class_name!r} and {printable(str(folder))}, with {len(names)} clips",
            expected="the name of a class, and a clip or a folder of clips",
            remedy="Correct the name or the path.",
        )
    root = folder if folder.is_dir() and not is_frames else folder.parent
    return VideoCatalog(root, names, np.zeros(len(names), dtype=np.int64), (printable(class_name.strip()),))


def make_gallery(
    catalog: VideoCatalog,
    recipe: Recipe,
    recognizer: FewShotRecognizer,
    views: int = 2,
    on_bad_video: OnBadVideo = "error",
    progress: bool = True,
) -> Gallery:
    """Return a gallery with the states of a catalog's clips, and of augmented views for classes with a single clip.

    Raises:
        VideoError: a clip cannot be read.
        DmgalError: a class has no readable clip, or a clip occurs twice.
    """
    size, data = recognizer.encoder.image_size, recipe.data
    source = ClipSource(catalog, data.decoder, on_bad_video=on_bad_video)
    clips = VideoDataset(source, FrameSampler(data.num_frames, test_transform(recipe, size)))
    device = make_ready(recognizer)
    states = encode_videos(recognizer, clips, num_workers=data.num_workers, device=device, progress=progress)
    bad = clips.bad_videos.met
    if bad:
        log_skipped(len(bad), len(catalog), "which could not be read", [catalog.videos[video] for video in bad])
        catalog, states = without_bad(catalog, states, bad)
    contents = [content_hash(catalog.path(place)) for place in range(len(catalog))]
    gallery = Gallery(
        class_names=catalog.class_names,
        labels=torch.from_numpy(catalog.labels.copy()),
        clips=tuple(catalog.videos),
        contents=tuple(contents),
        states=states,
        views=states.select(slice(0, 0)),
        view_clips=torch.empty(0, dtype=torch.int64),
        made_with=made_with(recipe, recognizer),
    )
    single = gallery.single_clips
    if not len(single):
        return gallery
    alone = replace(catalog, videos=[catalog.videos[p] for p in single.tolist()], labels=catalog.labels[single.numpy()])
    seeds = [contents[place] for place in single.tolist()]
    dataset = AugmentedViews(ClipSource(alone, data.decoder), data.num_frames, size, max(1, views), seeds)
    of_views = encode_videos(recognizer, dataset, num_workers=data.num_workers, device=device, progress=progress)
    return replace(gallery, views=of_views, view_clips=single.repeat_interleave(dataset.count))


def with_rejection(
    gallery: Gallery, recognizer: FewShotRecognizer, shortlist: int | None = None, progress: bool = True
) -> Gallery:
    """Return the gallery with a threshold for its task."""
    device = make_ready(recognizer)
    task = gallery_task(gallery, recognizer, shortlist)
    rejection = find_rejection(task, gallery.views.to(device), gallery.view_clips, progress=progress)
    return replace(gallery, rejection=rejection)


def gallery_task(gallery: Gallery, recognizer: FewShotRecognizer, shortlist: int | None = None) -> GalleryTask:
    """Return the task of a gallery, on the recognizer's device.

    Raises:
        DmgalError: the gallery has states that the recognizer cannot compare.
    """
    device = next(recognizer.parameters()).device
    states = gallery.states.to(device)

    def compared() -> GalleryTask:
        task = GalleryTask(recognizer, states, gallery.labels.to(device), shortlist)
        task.logits(states.select(slice(0, 1)))
        return task

    return cast(
        GalleryTask, construct("task of the gallery", compared, {}, (LookupError, TypeError, ValueError, RuntimeError))
    )


def make_ready(recognizer: FewShotRecognizer) -> torch.device:
    """Move the recognizer to the GPU if there is one, set it to evaluation mode, and return its device."""
    device = launched_device()
    recognizer.to(device).eval()
    return device


def made_with(recipe: Recipe, recognizer: FewShotRecognizer) -> dict[str, str]:
    """Return settings and weight hashes by name. A copied or moved run has the same ones."""
    options = to_mapping(recipe)
    backbone = recognizer.encoder.backbone.state_dict().items()
    frozen = ((name, tensor) for name, tensor in backbone if not is_added(name))
    added = ((name, tensor) for name, tensor in backbone if is_added(name))
    expert = {} if recipe.backbone.expert is None else {"motion expert": weights_hash(_weights(recognizer.encoder))}
    return expert | {
        "backbone": without_folder(recipe.backbone.name),
        "backbone weights": weights_hash(frozen),
        "adapter": _text(options["adapter"]),
        "adapter weights": weights_hash(added),
        "head": _text(options["head"]),
        "head weights": weights_hash(_weights(recognizer.head)),
        "pooling": _text(recipe.backbone.pooling),
        "normalization": _text(normalization(recognizer)),
        "frames": str(recipe.data.num_frames),
        "transform": repr(test_transform(recipe, recognizer.encoder.image_size)),
        "decoder": recipe.data.decoder,
        "precision": str(next(recognizer.parameters()).dtype).removeprefix("torch."),
    }


def _weights(part: object) -> Iterable[tuple[str, Tensor]]:
    return part.state_dict().items() if isinstance(part, torch.nn.Module) else ()


def weights_hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return a hash of names, shapes and bytes of tensors in any order, or ``none`` if there are none."""
    digest, found = blake2b(digest_size=8), False
    for name, tensor in sorted(tensors):
        found = True
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest() if found else "none"


def _text(option: object) -> str:
    return json.dumps(option, sort_keys=True, default=str)


CROP_SCALE = (0.7, 1.0)
COLOR_JITTER = 0.2


class AugmentedViews(Dataset[Tensor]):
    """``count`` reproducible views of each clip, one clip after the other, uint8 ``(T, 3, size, size)``.

    Args:
        source: the clips.
        num_frames: ``T``.
        size: height and width, pixels.
        count: views of each clip.
        seeds: one number per clip that determines its views, such as the hash of its content.

    Raises:
        VideoError: a clip cannot be read (on access).
    """

    def __init__(self, source: ClipSource, num_frames: int, size: Size, count: int, seeds: Sequence[int]) -> None:
        self.count = count
        self.seeds = seeds
        transform = TrainTransform(size, scale=CROP_SCALE, color_jitter=COLOR_JITTER)
        self._frames = FrameSampler(num_frames, transform, seed=0)
        self._reader = ClipReader(source, self._frames)

    def __len__(self) -> int:
        return self.count * len(self.seeds)

    def __getitem__(self, view: int) -> Tensor:
        if not 0 <= view < len(self):
            raise IndexError(f"View {view} is out of range for {len(self)} views.")
        clip, number = divmod(view, self.count)
        frames = replace(self._frames, seed=self.seeds[clip])
        return frames.clip(partial(self._reader.read, clip), number, "view")

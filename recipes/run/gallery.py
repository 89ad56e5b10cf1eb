"""Galleries of a run, made from clips with augmented views and a threshold.

Augmented views replace a second clip in classes that only have one. They have other frames, another crop and other
colors, but are never mirrored, because labels may depend on left and right. They are drawn by the name of the class, so
they are the same for a file and for its decoded frames. A gallery stores the fingerprint of the model and the settings
that determine its states, and refuses states with another fingerprint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dmgal.adapters import is_added
from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.evaluation import encode_videos
from dmgal.episodes.evaluation.identity import normalization
from dmgal.episodes.gallery.calibration import find_rejection
from dmgal.episodes.gallery.gallery import Gallery
from dmgal.episodes.gallery.negatives import Negatives
from dmgal.episodes.gallery.task import GalleryTask
from dmgal.episodes.gallery.texts import with_texts
from dmgal.files import printable
from dmgal.recipes.run.adapter import construct
from dmgal.recipes.run.build import build_recognizer
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.data import log_skipped, test_transform
from dmgal.recipes.run.encoding import launched_device
from dmgal.recipes.run.evaluation import default_recipe, load_run
from dmgal.recipes.run.folder import Run
from dmgal.recipes.run.layers import to_mapping
from dmgal.recipes.run.text_lora import lora_hash, text_lora_of
from dmgal.recipes.run.weights import weights_hash, without_folder
from dmgal.videos.bad_videos import without_bad
from dmgal.videos.dataset import ClipReader, ClipSource, VideoDataset
from dmgal.videos.decoding.clip import FrameSampler, Size, TrainTransform, hashed_seed, one_frame, uniform_frames
from dmgal.videos.decoding.video import read_clip


@dataclass(frozen=True, eq=False)
class GalleryModel:
    """A recipe and its recognizer, with the fingerprint that galleries store."""

    recipe: Recipe
    recognizer: FewShotRecognizer

    @cached_property
    def made_with(self) -> dict[str, str]:
        """Settings and weight hashes by name, see `made_with`. The weights must not change any more."""
        return made_with(self.recipe, self.recognizer)


def load_model(run: Path | None, backbone: str = "tiny-clip", adapter: str | None = "tiny-clip-motion") -> GalleryModel:
    """Return the model of a run, or one that needs no training: a backbone beside an adapter as its motion expert.

    Raises:
        DmgalError: the run, the backbone or the adapter cannot be loaded.
    """
    if run is not None:
        return GalleryModel(*load_run(Run(run)))
    recipe = default_recipe(backbone, adapter)
    return GalleryModel(recipe, build_recognizer(recipe).eval())


def test_frames(model: GalleryModel) -> FrameSampler:
    """Return the fixed choice and transform of the frames that a model sees."""
    size = model.recognizer.encoder.image_size
    return FrameSampler(model.recipe.data.num_frames, test_transform(model.recipe, size))


def decode_frames(model: GalleryModel, path: str | os.PathLike[str]) -> Tensor:
    """Return the frames of a clip that a model sees, of the size in the file, uint8 ``(T, 3, H, W)``.

    Raises:
        VideoError: the clip cannot be read.
        DmgalError: it has a single frame.
    """
    num_frames = model.recipe.data.num_frames

    def choose(count: int) -> list[int]:
        if count < 2:
            raise one_frame(f"{printable(os.fspath(path))} with one frame")
        return uniform_frames(count, num_frames)

    return read_clip(path, choose, num_frames, model.recipe.data.decoder)


def read_frames(model: GalleryModel, path: str | os.PathLike[str]) -> Tensor:
    """Return the frames of a clip as a model sees them, uint8 ``(T, 3, *image_size)``. Errors: see `decode_frames`."""
    clip: Tensor = test_frames(model).transform(decode_frames(model, path))
    return clip


def make_gallery(
    source: ClipSource,
    model: GalleryModel,
    views: int = 2,
    num_workers: int = 0,
    progress: bool = True,
    has_views: bool = True,
) -> Gallery:
    """Return a gallery with the states of a source's clips, and of augmented views for classes with a single clip.

    ``has_views=False`` leaves the views out.

    Raises:
        VideoError: a clip cannot be read.
        DmgalError: a class has no readable clip, a clip occurs twice, or the model's states are not finite.
    """
    recognizer, catalog, num_frames = model.recognizer, source.catalog, model.recipe.data.num_frames
    size = recognizer.encoder.image_size
    clips = VideoDataset(source, test_frames(model))
    device = make_ready(recognizer)
    encode = partial(encode_videos, recognizer, num_workers=num_workers, device=device, progress=progress)
    states, bad = encode(clips), clips.bad_videos.met
    used = np.setdiff1d(np.arange(len(catalog)), bad)
    if bad:
        log_skipped(len(bad), len(catalog), "which could not be read", [catalog.videos[video] for video in bad])
        catalog, states = without_bad(catalog, states, bad)
    gallery = Gallery(
        class_names=catalog.class_names,
        labels=torch.from_numpy(catalog.labels.copy()),
        clips=tuple(Path(name).name if os.path.isabs(name) else name for name in catalog.videos),
        contents=tuple(source.content_hash(video) for video in used.tolist()),
        states=states,
        views=states.select(slice(0, 0)),
        view_clips=torch.empty(0, dtype=torch.int64),
        made_with=model.made_with,
    )
    single = gallery.single_clips
    if not len(single) or not has_views:
        return gallery
    seeds = {int(used[clip]): hashed_seed(catalog.class_names[catalog.labels[clip]]) for clip in single.tolist()}
    dataset = AugmentedViews(source, num_frames, size, max(1, views), seeds)
    return replace(gallery, views=encode(dataset), view_clips=single.repeat_interleave(dataset.count))


def make_negatives(source: ClipSource, model: GalleryModel, num_workers: int = 0, progress: bool = True) -> Negatives:
    """Return clips of other actions with their states.

    Raises:
        VideoError: a clip cannot be read.
        DmgalError: a class has no readable clip.
    """
    gallery = make_gallery(source, model, 1, num_workers, progress, has_views=False)
    return Negatives(gallery.class_names, gallery.labels, gallery.contents, gallery.states)


def with_rejection(
    gallery: Gallery, recognizer: FewShotRecognizer, shortlist: int | None = None, progress: bool = True
) -> Gallery:
    """Return the gallery with a threshold for its task. Class names alone give none."""
    if not len(gallery):
        return replace(gallery, rejection=None)
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
    states, labels = with_texts(gallery.states.to(device), gallery.labels.to(device), gallery.texts)

    negatives = gallery.negatives and gallery.negatives.to(device)

    def compared() -> GalleryTask:
        task = GalleryTask(recognizer, states, labels, shortlist, negatives)
        first = states.select(slice(0, 1))
        task.scores(first, task.logits(first), gallery.rejection)
        return task

    return construct("task of the gallery", compared, {}, (LookupError, TypeError, ValueError, RuntimeError))


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
    quantized = {} if recipe.backbone.quantize is None else {"quantization": recipe.backbone.quantize}
    lora = text_lora_of(recognizer)
    text = {} if lora is None else {"LoRA of the text tower": lora_hash(lora)}
    return (
        expert
        | quantized
        | text
        | {
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
    )


def _weights(part: object) -> Iterable[tuple[str, Tensor]]:
    return part.state_dict().items() if isinstance(part, torch.nn.Module) else ()


def _text(option: object) -> str:
    return json.dumps(option, sort_keys=True, default=str)


CROP_SCALE = (0.7, 1.0)
COLOR_JITTER = 0.2


class AugmentedViews(Dataset[Tensor]):
    """``count`` reproducible views of clips, one clip after the other, uint8 ``(T, 3, size, size)``.

    Args:
        source: the clips.
        num_frames: ``T``.
        size: height and width of the result, pixels.
        count: views of each clip.
        seeds: a number by the index of each clip to view. It determines the views of the clip.

    Raises:
        VideoError: a clip cannot be read (on access).
    """

    def __init__(self, source: ClipSource, num_frames: int, size: Size, count: int, seeds: Mapping[int, int]) -> None:
        self.count = count
        self.seeds = [*seeds.items()]
        transform = TrainTransform(size, scale=CROP_SCALE, color_jitter=COLOR_JITTER)
        self._frames = FrameSampler(num_frames, transform, seed=0)
        self._reader = ClipReader(source, self._frames)

    def __len__(self) -> int:
        return self.count * len(self.seeds)

    def __getitem__(self, view: int) -> Tensor:
        if not 0 <= view < len(self):
            raise IndexError(f"View {view} is out of range for {len(self)} views.")
        index, number = divmod(view, self.count)
        clip, seed = self.seeds[index]
        frames = replace(self._frames, seed=seed)
        return frames.clip(partial(self._reader.read, clip), number, "view")

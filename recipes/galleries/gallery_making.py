"""Construction of a gallery from clips: states, augmented views and threshold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dmgal.episodes import FewShotRecognizer, VideoCatalog, encode_videos
from dmgal.episodes.catalogs.bad_videos import OnBadVideo, without_bad
from dmgal.episodes.catalogs.video_files import subfolders, videos_in
from dmgal.episodes.catalogs.video_identity import content_hash
from dmgal.episodes.dataset import VideoDataset
from dmgal.episodes.galleries.augmented_views import AugmentedViews
from dmgal.episodes.galleries.gallery_task import GalleryTask
from dmgal.episodes.galleries.rejection import find_rejection
from dmgal.episodes.gallery import Gallery
from dmgal.episodes.listing import printable
from dmgal.errors import DmgalError
from dmgal.recipes.bad_videos import tell_skipped
from dmgal.recipes.build import test_transform
from dmgal.recipes.config import Recipe
from dmgal.recipes.galleries.made_with import made_with


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
    transform = test_transform(recipe, size)
    clips = VideoDataset(catalog, data.num_frames, transform, decoder=data.decoder, on_bad_video=on_bad_video)
    device = _device(recognizer)
    states = encode_videos(recognizer, clips, num_workers=data.num_workers, device=device, progress=progress)
    bad = clips.bad_videos.met
    if bad:
        tell_skipped(len(bad), len(catalog), "which could not be read", [catalog.videos[video] for video in bad])
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
    dataset = AugmentedViews(alone, data.num_frames, size[0], max(1, views), seeds, data.decoder)
    of_views = encode_videos(recognizer, dataset, num_workers=data.num_workers, device=device, progress=progress)
    return replace(gallery, views=of_views, view_clips=single.repeat_interleave(dataset.count))


def with_rejection(
    gallery: Gallery, recognizer: FewShotRecognizer, shortlist: int | None = None, progress: bool = True
) -> Gallery:
    """Return the gallery with a threshold for its task."""
    device = _device(recognizer)
    task = gallery_task(gallery, recognizer.to(device).eval(), shortlist)
    rejection = find_rejection(task, gallery.views.to(device), gallery.view_clips, progress=progress)
    return replace(gallery, rejection=rejection)


def gallery_task(gallery: Gallery, recognizer: FewShotRecognizer, shortlist: int | None = None) -> GalleryTask:
    """Return the task of a gallery, on the recognizer's device."""
    device = next(recognizer.parameters()).device
    return GalleryTask(recognizer, gallery.states.to(device), gallery.labels.to(device), shortlist)


def _device(recognizer: FewShotRecognizer) -> torch.device:
    """Move the recognizer to the GPU if there is one, and return its device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recognizer.to(device)
    return device

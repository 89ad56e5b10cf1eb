"""Enrolls actions by a few clips each into a gallery, one file that 'dmgal recognize' compares other clips with.

    dmgal enroll runs/mine FOLDER --out gallery.safetensors                     FOLDER/ACTION/clip.mp4, 1-5 clips each
    dmgal enroll runs/mine MORE --out gallery.safetensors --add                 further actions, or further clips of one
    dmgal enroll runs/mine clip.mp4 --class-name wave --out gallery.safetensors --add
    dmgal enroll runs/mine --out gallery.safetensors --remove wave

Nothing is trained: an action is known by the states that the run's model gives to its clips. Adding and removing
leaves the states of all other clips as they are, bit for bit; only the threshold below which a clip counts as unknown
is found anew. It comes from the gallery's own clips: each is held out in turn where its class has several, else
augmented views of it stand in; two clips for each action make it a better one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from dmgal.backbones import VideoState
from dmgal.episodes import FewShotRecognizer, VideoCatalog, encode_videos
from dmgal.episodes.augmented_views import AugmentedViews
from dmgal.episodes.bad_videos import OnBadVideo, without_bad
from dmgal.episodes.dataset import VideoDataset
from dmgal.episodes.gallery import Gallery, refuse_other_model
from dmgal.episodes.gallery_file import load_gallery, save_gallery
from dmgal.episodes.gallery_task import GalleryTask
from dmgal.episodes.listing import printable
from dmgal.episodes.rejection import Rejection, find_rejection
from dmgal.episodes.video_files import subfolders, videos_in
from dmgal.episodes.video_identity import content_hash
from dmgal.errors import DmgalError
from dmgal.recipes.bad_videos import tell_skipped
from dmgal.recipes.build import test_transform
from dmgal.recipes.config import Recipe
from dmgal.recipes.entry import as_description, run_recipe
from dmgal.recipes.evaluate import load_run
from dmgal.recipes.made_with import made_with
from dmgal.recipes.runs import Run

CLASSES_SHOWN = 30


@dataclass(frozen=True)
class Enroll:
    """Options of the command."""

    run: tyro.conf.Positional[Path]
    """Folder of a run, as dmgal train writes it."""
    clips: tyro.conf.Positional[Path | None] = None
    """A folder of class folders with clips; with --class-name a folder of clips, or one clip."""
    out: Path = Path("gallery.safetensors")
    """The gallery."""
    class_name: str | None = None
    """The clips are all of this class."""
    add: bool = False
    """Add to the gallery that is there."""
    remove: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Take this class out of the gallery; may be given several times."""
    shortlist: int | None = None
    """Where the run has a Cmga: compare a clip with this many classes, those that look best without its attention
    between videos; None: with all of them."""
    views: int = 2
    """Augmented views that stand in for the missing second clip of a class."""
    on_bad_video: Annotated[OnBadVideo, tyro.conf.arg(aliases=["--data.on-bad-video"])] = "error"
    """A clip that cannot be read: stop, or go on without it and say so."""
    quiet: bool = False
    """No progress bars."""


def list_clips(folder: Path, class_name: str | None = None) -> VideoCatalog:
    """The clips to enroll, by class.

    Raises:
        DmgalError: nothing there, no class folders, or a class without a clip.
    """
    if class_name is None:
        if folder.is_dir() and not subfolders(folder) and videos_in(folder):
            raise DmgalError(
                "The clips have no class.",
                received=f"{printable(str(folder))}, a folder of clips",
                expected="a folder of class folders with clips, or the class of all clips",
                remedy="pass --class-name NAME, or give the folder above",
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
            remedy="mend the name or the path",
        )
    root = folder if folder.is_dir() and not is_frames else folder.parent
    return VideoCatalog(root, names, np.zeros(len(names), dtype=np.int64), (class_name,))


def make_gallery(
    catalog: VideoCatalog,
    recipe: Recipe,
    recognizer: FewShotRecognizer,
    views: int = 2,
    on_bad_video: OnBadVideo = "error",
    progress: bool = True,
) -> Gallery:
    """The states of a catalog's clips, and of augmented views of those that are alone in their class.

    Raises:
        VideoError: a clip cannot be read.
        DmgalError: a class without a readable clip, or the same clip twice.
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
    """The gallery with a threshold for its task."""
    device = _device(recognizer)
    task = gallery_task(gallery, recognizer.to(device).eval(), shortlist)
    rejection = find_rejection(task, gallery.views.to(device), gallery.view_clips, progress=progress)
    return replace(gallery, rejection=rejection)


def gallery_task(gallery: Gallery, recognizer: FewShotRecognizer, shortlist: int | None = None) -> GalleryTask:
    """The task of a gallery, on the recognizer's device."""
    device = next(recognizer.parameters()).device
    return GalleryTask(recognizer, gallery.states.to(device), gallery.labels.to(device), shortlist)


def rejection_text(rejection: Rejection) -> str:
    """What the threshold is and what it rests on, in one line."""
    text = f"best logit below {rejection.threshold:.3g}, from {rejection.known} {rejection.source}"
    text += f", of which {100 * rejection.known_kept:.0f} % pass"
    if rejection.unknown_accepted is None:
        return text + "; a single class leaves no unknown clips to look at"
    return text + f"; of {rejection.unknown} clips whose class is left out {100 * rejection.unknown_accepted:.0f} % do"


def run(options: Enroll) -> Gallery:
    """Enroll, add and remove as the options say; the gallery is written.

    Raises:
        DmgalError: clips, a gallery or a run that cannot be used.
    """
    _check(options)
    recipe, recognizer = load_run(Run(options.run))
    gallery = load_gallery(options.out) if options.add or options.remove else None
    if gallery is not None:
        refuse_other_model(gallery.made_with, made_with(recipe, recognizer), "The run")
        gallery = gallery.removed(options.remove) if options.remove else gallery
    if options.clips is not None:
        catalog = list_clips(options.clips, options.class_name)
        arguments = recipe, recognizer, options.views, options.on_bad_video, not options.quiet
        new = make_gallery(catalog, *arguments)
        gallery = new if gallery is None else gallery.added(new)
    assert gallery is not None
    gallery = with_rejection(gallery, recognizer, options.shortlist, progress=not options.quiet)
    save_gallery(gallery, options.out)
    return gallery


def _check(options: Enroll) -> None:
    if options.clips is None and not options.remove:
        raise DmgalError(
            "There is nothing to do.",
            received="neither clips nor --remove",
            expected="a folder of clips to enroll, or a class to take out",
            remedy="see dmgal enroll --help",
        )
    if options.out.exists() and not (options.add or options.remove):
        raise DmgalError(
            "This gallery is already there.",
            received=printable(str(options.out)),
            expected="a file that does not exist yet",
            remedy="pass --add to add to it, or another --out",
        )


def _device(recognizer: FewShotRecognizer) -> torch.device:
    """The accelerator where there is one; the recognizer is sent there."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recognizer.to(device)
    return device


def tell(gallery: Gallery, path: Path) -> None:
    """Prints what a gallery holds."""
    size = path.stat().st_size / 1024
    print(f"{printable(str(path))}: {gallery.n_way} classes, {len(gallery)} clips, {size:,.0f} KB")
    rows: Sequence[tuple[str, int]] = list(zip(gallery.class_names, gallery.shots, strict=True))
    width = max(len(printable(name)) for name, _ in rows[:CLASSES_SHOWN])
    for name, shots in rows[:CLASSES_SHOWN]:
        print(f"  {printable(name):<{width}}  {shots} {'clip' if shots == 1 else 'clips'}")
    if len(rows) > CLASSES_SHOWN:
        print(f"  and {len(rows) - CLASSES_SHOWN} more")
    assert gallery.rejection is not None
    print(f"unknown: {rejection_text(gallery.rejection)}")


def main(argv: list[str] | None = None) -> int | None:
    """Enroll the clips of a command line."""
    options = tyro.cli(
        Enroll, prog="dmgal enroll", args=sys.argv[1:] if argv is None else argv, description=as_description(__doc__)
    )
    tell(run(options), options.out)
    print(f"next: dmgal recognize {options.run} {printable(str(options.out))} CLIP")
    return 0


if __name__ == "__main__":
    run_recipe(main)

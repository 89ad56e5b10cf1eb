"""Recognition of actions from a Python program, with the same code and the same answers as the commands.

    from dmgal import ActionRecognizer

    recognizer = ActionRecognizer.from_backbone("tiny-clip")
    recognizer.enroll({"wave": ["wave1.mp4", "wave2.mp4"], "bend": ["bend1.mp4", "bend2.mp4"]})
    print(recognizer.recognize("clip.mp4"))
    recognizer.save("gallery.safetensors")

``dmgal enroll`` and ``dmgal recognize`` are this class on the command line.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dmgal.backbones import ClassTexts
from dmgal.episodes.gallery.gallery import Gallery
from dmgal.episodes.gallery.gallery_file import load_gallery, save_gallery
from dmgal.errors import DmgalError
from dmgal.files import listed, printable
from dmgal.recipes.run.action import RecognizedAction
from dmgal.recipes.run.clips import (
    Label,
    check_counts,
    collect_clips,
    list_clips,
    list_negatives,
    names_of,
    several_clips,
)
from dmgal.recipes.run.estimator import ClassifierConventions, not_fitted_error
from dmgal.recipes.run.gallery import GalleryModel, load_model, make_gallery, make_negatives
from dmgal.recipes.run.recognition import ClipRecognizer
from dmgal.recipes.run.text import TextOptions, gallery_of_names, texts_to_add, with_text
from dmgal.recipes.run.weights import without_folder
from dmgal.videos import VideoCatalog
from dmgal.videos.bad_videos import OnBadVideo
from dmgal.videos.dataset import ClipSource
from dmgal.videos.decoding.in_memory import VideoInMemory, as_video


class ActionRecognizer(ClassifierConventions):
    """A recognizer of actions, each enrolled by one or more clips. Nothing is trained.

    A clip is a path, a uint8 array ``(T, H, W, 3)``, a uint8 tensor ``(T, 3, H, W)`` or an open PyAV container, all RGB
    with any size and at least two frames. Frames are chosen, resized and normalized as the model requires.

    The class follows scikit-learn's conventions: the constructor only stores its arguments, and `fit` starts again.
    `load` and `from_backbone` load the model at once, otherwise the first clip does.

    Args:
        run: folder of a run of ``dmgal train``, which replaces ``backbone`` and ``adapter``.
        backbone: any name that `load_backbone` accepts.
        adapter: motion adapter beside the backbone: a bundled name, its folder, or the folder of a run with one. None:
            the frozen backbone alone.
        shortlist: compare a clip with this many preselected classes only, for runs with a Cmga. None: with all.
        views: augmented views of each clip that is the only one of its class. They calibrate the threshold.
        unknown: let `recognize` call an action unknown.
        verbose: show progress bars.
        text: use of the class names beside the clips. None: as the gallery has it, or none. It needs a backbone with a
            text tower.

    Attributes:
        classes_: names of the classes, ``(n_way,)``, in the order of enrollment.
    """

    _shared_state = ("_loaded",)
    _gallery: Gallery | None = None
    _labels: Mapping[str, Label] = {}
    _loaded: tuple[tuple[object, ...], GalleryModel] | None = None
    _prepared: tuple[tuple[object, ...], ClipRecognizer] | None = None

    def __init__(
        self,
        run: str | os.PathLike[str] | None = None,
        *,
        backbone: str = "tiny-clip",
        adapter: str | os.PathLike[str] | None = "tiny-clip-motion",
        shortlist: int | None = None,
        views: int = 2,
        unknown: bool = True,
        verbose: bool = False,
        text: TextOptions | None = None,
    ) -> None:
        self.run = run
        self.backbone = backbone
        self.adapter = adapter
        self.shortlist = shortlist
        self.views = views
        self.unknown = unknown
        self.verbose = verbose
        self.text = text

    @classmethod
    def from_backbone(
        cls, backbone: str = "tiny-clip", adapter: str | os.PathLike[str] | None = "tiny-clip-motion", **options: Any
    ) -> Self:
        """Return a recognizer without classes that needs no training.

        Args:
            backbone: see the class.
            adapter: see the class.
            options: other arguments of the constructor.

        Raises:
            DmgalError: the backbone or the adapter cannot be loaded.
        """
        recognizer = cls(backbone=backbone, adapter=adapter, **options)
        _ = recognizer.model
        return recognizer

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, run: str | os.PathLike[str] | None = None, **options: Any) -> Self:
        """Return the recognizer of a gallery file, or one without classes from the folder of a run.

        Args:
            path: file that `save` or ``dmgal enroll`` wrote, or a folder that ``dmgal train`` wrote.
            run: folder of the run that the gallery was made with, if it was.
            options: other arguments of the constructor. ``backbone`` and ``adapter`` are those of the gallery, unless
                they were absolute paths, of which it stores only the last part.

        Raises:
            DmgalError: the file or the run cannot be read, or they belong to different models.
        """
        path = Path(path)
        if run is None and path.is_dir():
            recognizer = cls(path, **options)
            _ = recognizer.model
            return recognizer
        gallery = load_gallery(path)
        recognizer = cls(**{**_options_of(gallery, path, run, options), **options})
        try:
            model = recognizer.model
        except DmgalError as error:
            if run is not None:
                raise
            raise _without_model(recognizer, path, error) from error
        gallery.check_model(model.made_with)
        recognizer._set_gallery(gallery, names_of(gallery.class_names))
        return recognizer

    # ---- classes ----

    @property
    def classes_(self) -> NDArray[np.generic]:
        """Names of the classes, ``(n_way,)``, in the order of enrollment."""
        return np.array([self._labels[name] for name in self._enrolled().class_names])

    def enroll(
        self,
        clips: Mapping[Any, object] | str | os.PathLike[str],
        *,
        on_bad_video: OnBadVideo = "error",
        num_workers: int = 0,
    ) -> Self:
        """Add classes, or clips to classes of the same name. If an error is raised, nothing is added.

        Args:
            clips: one or more clips by class, or a folder with one subfolder of clips per class. Instead of clips, a
                class can have the path of a folder of clips.
            on_bad_video: "error" raises an error for a video that cannot be read. "skip" continues without it.
            num_workers: processes that read files. Clips in memory are read in this process.

        Raises:
            DmgalError: something is not a clip, a clip is enrolled already, a class has no clip, or the model cannot be
                loaded.
        """
        if isinstance(clips, str | os.PathLike):
            catalog, in_memory = list_clips(Path(clips)), dict[int, VideoInMemory]()
            labels = names_of(catalog.class_names)
        elif not isinstance(clips, Mapping):
            raise DmgalError(
                "There is nothing to enroll.",
                received=f"a {type(clips).__name__}",
                expected='clips by class, for example {"wave": ["a.mp4", "b.mp4"]}, or a folder of class folders',
                remedy="Name the class of each clip, or call fit(videos, labels).",
            )
        else:
            labels = names_of(clips)
            catalog, in_memory = collect_clips({str(name): value for name, value in clips.items()})
        all_labels = {**self._labels, **labels}
        names_of(all_labels.values())  # raises if text and integers are mixed
        new = self._encode(catalog, in_memory, on_bad_video, num_workers, self._gallery)
        self._set_gallery(new if self._gallery is None else self._gallery.added(new), all_labels)
        return self

    def enroll_names(self, *names: str) -> Self:
        """Add classes that have a name and no clips. If an error is raised, nothing is added.

        Raises:
            DmgalError: the backbone has no text tower, a name cannot be used, or the other classes have clips.
        """
        labels, model = names_of(names), self.model
        texts = self._texts([*labels], self._gallery, is_only=True)
        assert texts is not None
        new = replace(gallery_of_names(texts, model.made_with), model=self._description())
        self._set_gallery(new if self._gallery is None else self._gallery.added(new), {**self._labels, **labels})
        return self

    def enroll_negatives(
        self, folder: str | os.PathLike[str], *, on_bad_video: OnBadVideo = "error", num_workers: int = 0
    ) -> Self:
        """Replace the negatives by a folder of clips of other actions. They only affect which actions are unknown.

        The more actions they show, the better: a few dozen classes, one clip each, are enough.

        Raises:
            DmgalError: there are no clips, the classes have text, or negatives are enrolled as a class.
        """
        gallery, model = self._enrolled(), self.model
        source = ClipSource(list_negatives(Path(folder)), model.recipe.data.decoder, on_bad_video=on_bad_video)
        negatives = make_negatives(source, model, num_workers, self.verbose)
        self._gallery = replace(gallery, negatives=negatives, rejection=None)
        return self

    def fit(self, videos: Iterable[object], labels: Iterable[object]) -> Self:
        """Replace all classes by those of the labelled clips.

        Args:
            videos: clips.
            labels: class of each clip, either text or integers. A saved gallery holds both as text.

        Raises:
            DmgalError: see `enroll`; or the numbers of videos and labels differ.
        """
        videos, given = list(several_clips(videos)), list(labels)
        check_counts(len(videos), len(given))
        known = names_of(given)
        clips: dict[str, list[object]] = {str(label): [] for label in sorted(known.values())}
        for video, label in zip(videos, given, strict=True):
            clips[str(label)].append(video)
        self._set_gallery(self._encode(*collect_clips(clips)), known)
        return self

    def remove(self, *names: Label) -> Self:
        """Remove classes. The states of the others stay bit-identical.

        Raises:
            DmgalError: there is no such class, or no class would remain.
        """
        gallery = self._enrolled().removed([str(name) for name in names])
        self._set_gallery(gallery, self._labels)
        return self

    # ---- answers ----

    def recognize(self, video: object) -> RecognizedAction:
        """Return the answer for one clip.

        Raises:
            NotFittedError: there are no classes yet.
            DmgalError: the clip cannot be used.
        """
        recognizer = self.clip_recognizer()
        return RecognizedAction.by_name(recognizer.clip(as_video(video)), self.classes_.tolist())

    def predict(self, videos: Iterable[object]) -> NDArray[np.generic]:
        """Return the best class of each clip, ``(V,)``. No clip is unknown here, so that `score` is the accuracy."""
        return np.array([answer.best for answer in self._answers(videos)])

    def predict_proba(self, videos: Iterable[object]) -> NDArray[np.float64]:
        """Return the probability of each class for each clip, ``(V, n_way)``, in the order of ``classes_``."""
        scores = [[score.probability for score in answer.scores.values()] for answer in self._answers(videos)]
        return np.array(scores, dtype=np.float64)

    def score(self, videos: Iterable[object], labels: Iterable[object], sample_weight: Any = None) -> float:
        """Return the share of clips whose best class is their label."""
        predicted, expected = self.predict(videos), list(labels)
        check_counts(len(predicted), len(expected))
        is_right = [str(best) == str(label) for best, label in zip(predicted, expected, strict=True)]
        return float(np.average(is_right, weights=sample_weight))

    # ---- files ----

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the classes to a gallery file for `load` and ``dmgal recognize``. An existing file is replaced.

        Raises:
            NotFittedError: there are no classes yet.
            DmgalError: the file cannot be written.
        """
        save_gallery(self.gallery, Path(path))

    @property
    def gallery(self) -> Gallery:
        """The enrolled clips and their threshold."""
        return self.clip_recognizer().gallery

    def clip_recognizer(self) -> ClipRecognizer:
        """Return the recognizer of clips and long videos, with a threshold for these classes."""
        gallery, model = self._enrolled(), self.model
        key = gallery, model, self.shortlist, self.unknown
        if self._prepared is None or self._prepared[0] != key:
            recognizer = ClipRecognizer(model, gallery, self.shortlist or 0, self.unknown, self.verbose)
            self._gallery = recognizer.gallery
            self._prepared = (recognizer.gallery, *key[1:]), recognizer
        return self._prepared[1]

    def __sklearn_is_fitted__(self) -> bool:
        return self._gallery is not None

    def __getstate__(self) -> dict[str, object]:
        """Return the state without the model, which is loaded again by the parameters."""
        return {name: value for name, value in vars(self).items() if name not in ("_loaded", "_prepared")}

    @property
    def model(self) -> GalleryModel:
        """The model, loaded by the parameters on first use."""
        run, adapter = (None if path is None else str(path) for path in (self.run, self.adapter))
        key = run, self.backbone, adapter
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = key, load_model(None if run is None else Path(run), self.backbone, adapter)
        return self._loaded[1]

    def _enrolled(self) -> Gallery:
        if self._gallery is None:
            raise not_fitted_error(
                "This recognizer knows no action yet.",
                received="no enrolled clips",
                expected="at least one class",
                remedy="Call enroll or fit first, or load a gallery.",
            )
        return self._gallery

    def _answers(self, videos: Iterable[object]) -> list[RecognizedAction]:
        self._enrolled()
        answers = [self.recognize(video) for video in several_clips(videos)]
        check_counts(len(answers))
        return answers

    def _encode(
        self,
        catalog: VideoCatalog,
        in_memory: Mapping[int, VideoInMemory],
        on_bad_video: OnBadVideo = "error",
        num_workers: int = 0,
        others: Gallery | None = None,
    ) -> Gallery:
        """Return a gallery of clips, which fits that of other classes if there are any."""
        decoder = self.model.recipe.data.decoder
        source = ClipSource(catalog, decoder, on_bad_video=on_bad_video, in_memory=in_memory)
        model, texts = self.model, self._texts(catalog.class_names, others, is_only=False)
        if texts is not None:
            model = replace(model, recognizer=with_text(model.recognizer, model.recipe, texts, is_only=False))
        gallery = make_gallery(source, model, self.views, 0 if in_memory else num_workers, self.verbose)
        return replace(gallery, made_with=self.model.made_with, model=self._description(), texts=texts)

    def _texts(self, class_names: Sequence[str], others: Gallery | None, is_only: bool) -> ClassTexts | None:
        """Return the texts of classes to add, or None if they are added without text."""
        options, model = self.text or TextOptions(), self.model
        return texts_to_add(options, model.recognizer, model.recipe, others, class_names, is_only)

    def _set_gallery(self, gallery: Gallery, labels: Mapping[str, Label]) -> None:
        self._gallery, self._labels = gallery, {name: labels[name] for name in gallery.class_names}

    def _description(self) -> dict[str, str | None]:
        """Return what a gallery stores to load the model again, without folders of this machine."""
        if self.run is not None:
            return {"run": Path(self.run).resolve().name}
        adapter = None if self.adapter is None else without_folder(str(self.adapter))
        return {"backbone": without_folder(self.backbone), "adapter": adapter}


def _without_model(recognizer: ActionRecognizer, path: Path, error: DmgalError) -> DmgalError:
    """Return an error for a gallery whose backbone or adapter is not found by the name that it stores."""
    return DmgalError(
        "The model of this gallery cannot be loaded.",
        received=f"{printable(str(path))} with {recognizer!r}: {error.problem} {error.received or ''}",
        expected="the backbone and the adapter that it was made with",
        remedy="Start in the folder that holds them, or call load(GALLERY, backbone=FOLDER, adapter=FOLDER).",
    )


def _options_of(
    gallery: Gallery, path: Path, run: str | os.PathLike[str] | None, options: Mapping[str, object]
) -> dict[str, object]:
    """Return the constructor's arguments that a gallery was made with."""
    names = () if run is not None else ("backbone", "adapter")
    if run is None and "run" in gallery.model and not options.keys() & {"backbone", "adapter"}:
        raise DmgalError(
            "This gallery was made with a run, and does not hold its weights.",
            received=f"{printable(str(path))} without the run {listed([str(gallery.model['run'])])}",
            expected="the gallery and the folder of the run",
            remedy="Run dmgal recognize RUN GALLERY CLIP, or call load(GALLERY, run=RUN).",
        )
    shortlist = None if gallery.rejection is None else gallery.rejection.shortlist
    return {
        "run": run,
        "shortlist": shortlist,
        **{name: gallery.model[name] for name in names if name in gallery.model},
    }

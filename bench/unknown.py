"""Unknown actions in galleries: scores compared on validation data, and those in use on novel classes.

    python -m dmgal.bench.unknown --clips VIDEOS/ut_interaction VIDEOS/mini/train,VIDEOS/mini/val

Galleries of half of the classes with five clips each, and five queries of every class: of moving shapes for the demo's
DMGAL-Adapter, which is trained first if --run is not there, and for ``method/motion``, and of real clips for the latter
alone. A real clip of UT-Interaction is never compared with a clip of the same sequence. Negatives are one clip of each
base class of moving shapes.

All choices (score, threshold rule, temperature) were made on validation data. Two were made again after the first
report on novel classes: the energy was dropped, and the rule of the temperature changed. Intervals are 95 % over
galleries. Writes ``bench/results/unknown.json``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from dmgal.backbones import encode_class_names, load_text_encoder
from dmgal.backbones.text import mean_frame
from dmgal.bench.gallery import shuffled, trained
from dmgal.bench.measuring import hardware, write_report
from dmgal.bench.motion_transfer import catalog_of, encoded
from dmgal.bench.text import TEMPLATES, caption
from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.evaluation import Estimate
from dmgal.episodes.evaluation.states import PrecomputedStates
from dmgal.episodes.gallery.calibration import find_rejection
from dmgal.episodes.gallery.negatives import Negatives
from dmgal.episodes.gallery.task import GalleryTask, Rejection
from dmgal.episodes.gallery.unknown import (
    accepted_unknown,
    agreement,
    area_under_roc,
    calibration_error,
    energy,
    find_temperature,
    known_over_others,
    largest_logit,
    mahalanobis,
    margin,
    nearest_clips,
    probability,
    profile,
    t_norm,
    z_norm,
)
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.data import build_catalog
from dmgal.recipes.run.evaluation import load_run
from dmgal.recipes.run.folder import Run
from dmgal.recipes.run.gallery import load_model
from dmgal.videos import VideoCatalog

SHOTS, QUERIES = 5, 5
KEPT = {"false_accepts_at_80": 0.8, "false_accepts_at_90": 0.9}
LARGEST, DEFAULT, WITH_NEGATIVES = "largest logit", "class-adjusted logit", "log odds to negatives"
IN_USE = (LARGEST, DEFAULT, WITH_NEGATIVES)
SEQUENCE = re.compile(r"seq\d+")


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    clips: tuple[str, ...] = ()
    """Data sets of real validation clips: folders of class folders, those of one data set separated by commas."""
    run: Path = Path("runs/gallery")
    """Run of method/dmgal_adapter."""
    data: Path = Path("data/moving_shapes")
    """Folder of moving shapes."""
    galleries: int = 30
    """Galleries per split of moving shapes. Real clips have fewer classes, and twice as many galleries."""
    novel: bool = True
    """Measure the scores in use on novel classes, too."""
    out: Path = Path(__file__).parent / "results" / "unknown.json"


@dataclass(frozen=True)
class Clips:
    """Clips with their states, and negatives.

    Attributes:
        groups: a query is in no group of a support clip, ``(V,)``. None: no groups.
        text_logits: of the class names, ``(V, classes)``. None for real clips.
    """

    recognizer: FewShotRecognizer
    catalog: VideoCatalog
    states: PrecomputedStates
    negatives: Negatives
    groups: Tensor | None = None
    text_logits: Tensor | None = None

    @cached_property
    def labels(self) -> Tensor:
        """Class of each clip, ``(V,)``."""
        return torch.from_numpy(self.catalog.labels.copy())


@dataclass(frozen=True)
class Sample:
    """One gallery: support clips of half of the classes, and queries of known and of unknown classes."""

    classes: Tensor
    support: Tensor
    labels: Tensor
    known: Tensor
    unknown: Tensor


def negatives_of(recipe: Recipe, recognizer: FewShotRecognizer) -> Negatives:
    """Return one clip of each base class of moving shapes."""
    base = build_catalog(recipe.data).split("train")
    first = [int((base.labels == label).argmax()) for label in sorted(set(base.labels.tolist()))]
    base = VideoCatalog(base.root, [base.videos[clip] for clip in first], base.labels[first], base.class_names)
    states = encoded(recipe, recognizer, base)
    return Negatives(base.class_names, torch.from_numpy(base.labels.copy()), tuple(range(len(base))), states)


def text_logits_of(class_names: Sequence[str], states: PrecomputedStates) -> Tensor:
    """Return the text logits of clips from states of ``method/motion``, whose first stream is the frozen tiny-clip."""
    texts = encode_class_names(load_text_encoder("tiny-clip"), [caption(name) for name in class_names], TEMPLATES)
    return texts.logits_of(mean_frame(states.query["frames"]))


def groups_of(catalog: VideoCatalog) -> Tensor | None:
    """Return the sequence of each clip of UT-Interaction, and None for other data."""
    found = [SEQUENCE.search(video) for video in catalog.videos]
    names = [match[0] for match in found if match is not None]
    return torch.tensor([sorted(set(names)).index(name) for name in names]) if len(names) == len(found) else None


def samples(labels: Tensor, count: int, groups: Tensor | None = None) -> list[Sample]:
    """Return random galleries of half of the classes. With groups, half of them are for queries."""
    generator, num_classes = torch.Generator().manual_seed(0), int(labels.max()) + 1
    drawn = []
    for _ in range(count):
        classes = torch.randperm(num_classes, generator=generator)
        order = None if groups is None else torch.randperm(int(groups.max()) + 1, generator=generator)
        support, query = [], []
        for label in classes:
            clips = shuffled((labels == label).nonzero().flatten(), generator)
            first, second = clips[:SHOTS], clips[SHOTS:]
            if groups is not None and order is not None:
                is_first = order[groups[clips]] < len(order) // 2
                first, second = clips[is_first][:SHOTS], clips[~is_first]
            support.append(first)
            query.append(second[:QUERIES])
        half = num_classes // 2
        labels_of_support = torch.arange(half).repeat_interleave(SHOTS)
        known, unknown = torch.cat(query[:half]), torch.cat(query[half:])
        drawn.append(Sample(classes, torch.cat(support[:half]), labels_of_support, known, unknown))
    return drawn


@dataclass
class Trial:
    """A gallery with its thresholds, and the scores of its queries."""

    data: Clips
    sample: Sample
    support: PrecomputedStates = field(init=False)
    plain: GalleryTask = field(init=False)
    beside: GalleryTask = field(init=False)
    rejections: dict[str, Rejection] = field(init=False)

    def __post_init__(self) -> None:
        self.support = self.data.states.select(self.sample.support)
        self.plain, self.beside = (
            GalleryTask(self.data.recognizer, self.support, self.sample.labels, negatives=others)
            for others in (None, self.data.negatives)
        )
        nothing = self.support.select(slice(0, 0)), torch.empty(0, dtype=torch.int64)
        self.rejections = {
            name: find_rejection(task, *nothing, progress=False)
            for name, task in ((DEFAULT, self.plain), (WITH_NEGATIVES, self.beside))
        }

    @cached_property
    def held_out(self) -> Tensor:
        """Logits ``(S, n_way)`` of each enrolled clip, compared with the others."""
        clips = torch.arange(len(self.sample.labels))
        rows = [self.plain.subset(clips != c).logits(self.support.select(slice(c, c + 1))) for c in clips.tolist()]
        return torch.cat(rows)

    def scores(self, videos: Tensor, names: Sequence[str] = ()) -> dict[str, Tensor]:
        """Return scores of videos by name, all or some of them."""
        query, labels = self.data.states.select(videos), self.sample.labels
        logits = self.plain.logits(query)
        known, negative = self.beside.logits_beside_negatives(query)
        adjusted = self.plain.scores(query, logits, self.rejections[DEFAULT])

        def of_nearest(count: int) -> Tensor:
            clips = GalleryTask(self.data.recognizer, self.support, torch.arange(len(labels)))
            return nearest_clips(clips.logits(query), count)

        def of_profile() -> Tensor:
            return profile(logits, self.held_out, labels)

        def of_both() -> Tensor:
            offsets = logits.new_tensor(self.rejections[DEFAULT].offsets)
            of_support = (self.held_out - offsets).max(dim=1).values, profile(self.held_out, self.held_out, labels)
            return adjusted / of_support[0].std() + of_profile() / of_support[1].std()

        def of_negatives() -> Tensor:
            return profile(negative, self.beside.logits_beside_negatives(self.support)[1], labels)

        made: dict[str, Callable[[], Tensor]] = {
            LARGEST: lambda: largest_logit(logits),
            DEFAULT: lambda: adjusted,
            WITH_NEGATIVES: lambda: self.beside.scores(query, logits, self.rejections[WITH_NEGATIVES]),
            "energy": lambda: energy(logits),
            "margin": lambda: margin(logits),
            "probability": lambda: probability(logits),
            **{f"nearest clips, {n}": partial(of_nearest, n) for n in (1, 3, 5)},
            **{f"Mahalanobis, shrinkage {s:g}": partial(self._mahalanobis, query, s) for s in (0.1, 0.5, 1.0)},
            "profile": of_profile,
            "class-adjusted logit and profile": of_both,
            "Z-norm": lambda: z_norm(logits, self.plain.logits(self.data.negatives.states)),
            "T-norm": lambda: t_norm(known, negative),
            "log odds to negatives alone": lambda: known_over_others(known, negative, -torch.inf),
            "profile of negatives": of_negatives,
        }
        text = self.data.text_logits
        if text is not None:
            made["text-visual agreement"] = lambda: agreement(
                logits, text[videos][:, self.sample.classes[: self.plain.n_way]]
            )
        return {name: score() for name, score in made.items() if name in names or not names}

    def _mahalanobis(self, query: PrecomputedStates, shrinkage: float) -> Tensor:
        return mahalanobis(_flat(query), _flat(self.support), self.sample.labels, shrinkage)


def _flat(states: PrecomputedStates) -> Tensor:
    """Return one vector per video, ``(V, D)``, with each tensor of the head's state at unit length."""
    tensors = [tensor.flatten(1) for tensor in states.support.state.values()]
    return torch.cat([tensor / tensor.norm(dim=1, keepdim=True).clamp_min(1e-9) for tensor in tensors], dim=1)


@dataclass(frozen=True)
class Measured:
    """Scores of the known and the unknown queries of a gallery, its thresholds, and the logits of the known ones."""

    scores: Mapping[str, tuple[Tensor, Tensor]]
    rejections: Mapping[str, Rejection]
    logits: Tensor
    truth: Tensor


@torch.no_grad()
def measure(data: Clips, sample: Sample, names: Sequence[str] = ()) -> Measured:
    """Measure one gallery."""
    trial = Trial(data, sample)
    parts = [trial.scores(videos, names) for videos in (sample.known, sample.unknown)]
    return Measured(
        scores={name: (parts[0][name], parts[1][name]) for name in parts[0]},
        rejections=trial.rejections,
        logits=trial.plain.logits(data.states.select(sample.known)),
        truth=torch.arange(trial.plain.n_way).repeat_interleave(QUERIES),
    )


def report(
    data: Clips, galleries: int, names: Sequence[str] = (), temperature: float | None = None
) -> dict[str, object]:
    """Return the measures of all scores, or of some, and those of the galleries' thresholds and probabilities.

    ``temperature`` is that of validation classes. None: these are the validation classes.
    """
    drawn = samples(data.labels, galleries, data.groups)
    measured = [measure(data, sample, names) for sample in drawn]
    return {
        "classes": measured[0].logits.shape[1],
        "shots": SHOTS,
        "galleries": galleries,
        "scores": {name: _score_report([one.scores for one in measured], name) for name in measured[0].scores},
        "thresholds": {
            name: _threshold_report([(one.scores[name], one.rejections[name]) for one in measured])
            for name in (DEFAULT, WITH_NEGATIVES)
        },
        "probabilities": _probability_report(measured, temperature),
        "accepted_by_class": _by_class(data, drawn, measured),
    }


def _score_report(pairs: Sequence[Mapping[str, tuple[Tensor, Tensor]]], name: str) -> dict[str, object]:
    """Return the measures of a score over galleries, and their paired differences to scores in use."""
    measures: dict[str, Callable[[Tensor, Tensor], float]] = {"area_under_roc": area_under_roc}
    measures |= {measure: partial(accepted_unknown, kept=kept) for measure, kept in KEPT.items()}
    row: dict[str, object] = {}
    for measure, of in measures.items():
        values = {score: torch.tensor([of(*pair[score]) for pair in pairs]) for score in (name, *IN_USE)}
        row[measure] = estimate(values[name])
        for other in IN_USE:
            if other != name:
                row[f"{measure}_minus_{other.replace(' ', '_')}"] = estimate(values[name] - values[other])
    return row


def _threshold_report(found: Sequence[tuple[tuple[Tensor, Tensor], Rejection]]) -> dict[str, object]:
    passes = [[(part >= one.threshold).double().mean() for part in pair] for pair, one in found]
    known, unknown = (torch.stack(values) for values in zip(*passes, strict=True))
    return {"known_kept": estimate(known), "unknown_accepted": estimate(unknown)}


def _probability_report(measured: Sequence[Measured], validation: float | None) -> dict[str, object]:
    """Return accuracy and expected calibration errors of known clips in percent, by temperature."""
    logits, truth = torch.cat([one.logits for one in measured]), torch.cat([one.truth for one in measured])
    own = torch.tensor([one.rejections[DEFAULT].temperature for one in measured])
    chosen = validation or find_temperature(logits, truth)
    right, errors = logits.argmax(dim=1) == truth, {}
    for name, values in (("1", torch.ones_like(own)), ("gallery", own), ("validation", torch.full_like(own, chosen))):
        each = values.repeat_interleave(len(truth) // len(measured))
        errors[name] = round(100 * calibration_error((logits / each[:, None]).softmax(1).amax(1), right), 2)
    return {
        "accuracy_percent": round(100 * right.double().mean().item(), 2),
        "calibration_error_percent": errors,
        "validation_temperature": chosen,
    }


def _by_class(data: Clips, drawn: Sequence[Sample], measured: Sequence[Measured]) -> dict[str, float]:
    """Return how many clips of each class pass in percent while it is unknown, by the galleries' thresholds."""
    names = data.catalog.class_names
    counts, passed = torch.zeros(len(names)), torch.zeros(len(names))
    for sample, one in zip(drawn, measured, strict=True):
        is_accepted = one.scores[DEFAULT][1] >= one.rejections[DEFAULT].threshold
        counts.index_add_(0, data.labels[sample.unknown], torch.ones(len(sample.unknown)))
        passed.index_add_(0, data.labels[sample.unknown], is_accepted.float().cpu())
    shares = 100 * passed / counts.clamp(min=1)
    return {name: round(share, 1) for name, share in zip(names, shares.tolist(), strict=True)}


def estimate(values: Tensor) -> dict[str, float]:
    """Return a mean over galleries in percent with its half-width."""
    one = Estimate.of(values)
    return {"percent": round(one.mean, 2), "half_width": round(one.half_width, 2)}


def reports(options: Options) -> dict[str, Any]:
    """Return the reports of both methods by data."""
    recipe, adapter = load_run(Run(trained(options.run, options.data)))
    motion, catalog = load_model(None), build_catalog(recipe.data)
    recognizers = {"motion": motion.recognizer, "dmgal_adapter": adapter}
    negatives = {method: negatives_of(recipe, recognizer) for method, recognizer in recognizers.items()}
    results: dict[str, dict[str, Any]] = {method: {} for method in recognizers}
    text: Tensor | None = None
    for split in ("val", "test")[: 1 + options.novel]:
        part, is_novel = catalog.split(split), split == "test"
        for method, recognizer in recognizers.items():
            states = encoded(recipe, recognizer, part)
            if is_novel:
                chosen = results[method]["val"]["probabilities"]["validation_temperature"]
                clips = Clips(recognizer, part, states, negatives[method])
                results[method][split] = report(clips, options.galleries, IN_USE, chosen)
                continue
            text = text_logits_of(part.class_names, states) if method == "motion" else text
            clips = Clips(recognizer, part, states, negatives[method], text_logits=text)
            results[method][split] = report(clips, options.galleries)
    for folders in options.clips:
        paths = [Path(folder) for folder in folders.split(",")]
        part, name = catalog_of(paths), paths[0].name if len(paths) == 1 else paths[0].parent.name
        states = encoded(motion.recipe, motion.recognizer, part)
        clips = Clips(motion.recognizer, part, states, negatives["motion"], groups_of(part))
        results["motion"][name] = report(clips, 2 * options.galleries)
    return results


def main() -> None:
    """Measure and write the report."""
    options = tyro.cli(Options, description=__doc__)
    write_report({"results": reports(options), "hardware": hardware()}, options.out, show=False)


if __name__ == "__main__":
    main()

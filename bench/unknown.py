"""Unknown actions in galleries: scores compared on validation classes, and the chosen ones on novel classes.

    python -m dmgal.bench.unknown                 trains the demo's DMGAL-Adapter first, if --run is not there
    python -m dmgal.bench.unknown --no-novel --out bench/results/unknown_cohort.json        validation classes alone

Galleries of half of the classes of moving shapes, five queries of every class, for the run and, with ``--motion``, for
``method/motion``.
Negatives are one clip of each base class. All choices (score, threshold rule, temperature) were made on validation
classes, except that the energy was dropped only after its first report on novel classes, where it was worse. On
validation classes both are equal. Intervals are 95 % over galleries. Writes ``bench/results/unknown.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from dmgal.backbones import FrameEncoder, encode_class_names, load_backbone, load_text_encoder
from dmgal.backbones.text import mean_frame
from dmgal.bench.gallery import shuffled, trained
from dmgal.bench.measuring import hardware, write_report
from dmgal.bench.text import TEMPLATES, caption
from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.evaluation import Estimate, encode_videos
from dmgal.episodes.evaluation.states import PrecomputedStates
from dmgal.episodes.gallery.negatives import Negatives
from dmgal.episodes.gallery.task import GalleryTask, Rejection, find_rejection
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
from dmgal.recipes.run.data import build_catalog, test_clips
from dmgal.recipes.run.evaluation import load_run
from dmgal.recipes.run.folder import Run
from dmgal.recipes.run.gallery import load_model
from dmgal.videos import VideoCatalog

SHOTS = 5
KEPT = {"false_accepts_at_80": 0.8, "false_accepts_at_90": 0.9}
DEFAULT, WITH_NEGATIVES = "largest logit", "log odds to negatives"
QUERIES = 5


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    run: Path = Path("runs/gallery")
    """Run of method/dmgal_adapter."""
    data: Path = Path("data/moving_shapes")
    """Folder of moving shapes."""
    galleries: int = 30
    """Galleries per split and number of shots."""
    motion: bool = False
    """Also measure the recognizer that needs no training."""
    novel: bool = True
    """Measure the chosen scores on novel classes, too."""
    out: Path = Path(__file__).parent / "results" / "unknown.json"


@dataclass(frozen=True)
class Encoded:
    """The clips of a split with their states, negatives of base classes, and the text logits of all classes."""

    recognizer: FewShotRecognizer
    states: PrecomputedStates
    labels: Tensor
    class_names: tuple[str, ...]
    negatives: Negatives
    text_logits: Tensor


@dataclass(frozen=True)
class Sample:
    """One gallery: support clips of half of the classes, and queries of known and of unknown classes."""

    classes: Tensor
    support: Tensor
    labels: Tensor
    known: Tensor
    unknown: Tensor


@torch.no_grad()
def encoded(recipe: Recipe, recognizer: FewShotRecognizer, split: str) -> Encoded:
    """Encode a split and one clip of each base class."""
    catalog, size = build_catalog(recipe.data), recognizer.encoder.image_size
    ours, base = catalog.split(split), catalog.split("train")
    first = [int((base.labels == label).argmax()) for label in sorted(set(base.labels.tolist()))]
    base = VideoCatalog(base.root, [base.videos[clip] for clip in first], base.labels[first], base.class_names)
    clips = test_clips(ours, recipe, size)
    states, others = (encode_videos(recognizer, part) for part in (clips, test_clips(base, recipe, size)))
    negatives = Negatives(base.class_names, torch.from_numpy(base.labels.copy()), tuple(range(len(base))), others)
    texts = encode_class_names(load_text_encoder("tiny-clip"), [caption(name) for name in ours.class_names], TEMPLATES)
    frozen = FrameEncoder(load_backbone("tiny-clip"))
    frames = [frozen.encode(clips[clip][None])["features"] for clip in range(len(ours))]
    logits = texts.logits_of(mean_frame(torch.cat(frames)))
    return Encoded(recognizer, states, torch.from_numpy(ours.labels.copy()), ours.class_names, negatives, logits)


def samples(labels: Tensor, count: int) -> list[Sample]:
    """Return random galleries of half of the classes."""
    generator, num_classes = torch.Generator().manual_seed(0), int(labels.max()) + 1
    drawn = []
    for _ in range(count):
        classes = torch.randperm(num_classes, generator=generator)
        videos = torch.stack([shuffled((labels == c).nonzero().flatten(), generator) for c in classes])
        inside, outside = videos[: num_classes // 2], videos[num_classes // 2 :]
        drawn.append(
            Sample(
                classes,
                inside[:, :SHOTS].flatten(),
                torch.arange(len(inside)).repeat_interleave(SHOTS),
                inside[:, SHOTS : SHOTS + QUERIES].flatten(),
                outside[:, :QUERIES].flatten(),
            )
        )
    return drawn


def measure(data: Encoded, sample: Sample) -> dict[str, Any]:
    """Return every score of the known and unknown queries of a gallery, and the gallery's thresholds."""
    support = data.states.select(sample.support)
    plain, beside = (
        GalleryTask(data.recognizer, support, sample.labels, negatives=others) for others in (None, data.negatives)
    )
    nothing = support.select(slice(0, 0)), torch.empty(0, dtype=torch.int64)
    rejections = {
        name: find_rejection(task, *nothing, progress=False)
        for name, task in ((DEFAULT, plain), (WITH_NEGATIVES, beside))
    }
    truth = torch.arange(plain.n_way).repeat_interleave(QUERIES)
    logits = plain.logits(data.states.select(sample.known))
    parts = [scores(data, sample, beside, rejections, videos) for videos in (sample.known, sample.unknown)]
    return {
        "scores": {name: (parts[0][name], parts[1][name]) for name in parts[0]},
        "rejections": rejections,
        "logits": logits,
        "truth": truth,
    }


def scores(
    data: Encoded, sample: Sample, task: GalleryTask, rejections: Mapping[str, Rejection], videos: Tensor
) -> dict[str, Tensor]:
    """Return every score of some videos, by name."""
    support, query = data.states.select(sample.support), data.states.select(videos)
    of_clips = GalleryTask(data.recognizer, support, torch.arange(len(sample.support))).logits(query)
    logits, text = task.logits(query), data.text_logits[videos][:, sample.classes[: task.n_way]]
    vectors = _flat(query), _flat(support)
    known, negative = task.logits_beside_negatives(query)
    of_support = task.logits_beside_negatives(support)[1]
    return {
        DEFAULT: largest_logit(logits),
        "energy": energy(logits),
        "margin": margin(logits),
        "probability": probability(logits),
        **{f"nearest clips, {count}": nearest_clips(of_clips, count) for count in (1, 3, 5)},
        **{f"Mahalanobis, shrinkage {s:g}": mahalanobis(*vectors, sample.labels, s) for s in (0.1, 0.5, 1.0)},
        "text-visual agreement": agreement(logits, text),
        "Z-norm": z_norm(logits, task.logits(data.negatives.states)),
        "T-norm": t_norm(known, negative),
        "log odds to negatives alone": known_over_others(known, negative, -torch.inf),
        "profile of negatives": profile(negative, of_support, sample.labels),
        WITH_NEGATIVES: task.scores(query, logits, rejections[WITH_NEGATIVES]),
    }


def _flat(states: PrecomputedStates) -> Tensor:
    """Return one vector per video, ``(V, D)``, with each tensor of the head's state at unit length."""
    tensors = [tensor.flatten(1) for tensor in states.support.state.values()]
    return torch.cat([tensor / tensor.norm(dim=1, keepdim=True).clamp_min(1e-9) for tensor in tensors], dim=1)


def report(
    data: Encoded, galleries: int, names: Sequence[str] = (), temperature: float | None = None
) -> dict[str, Any]:
    """Return the measures of all scores, or of some, and those of the galleries' thresholds and probabilities.

    ``temperature`` is that of validation classes. None: these are the validation classes.
    """
    drawn = samples(data.labels, galleries)
    measured = [measure(data, sample) for sample in drawn]
    names = names or [*measured[0]["scores"]]
    return {
        "classes": measured[0]["logits"].shape[1],
        "shots": SHOTS,
        "galleries": galleries,
        "scores": {name: _score_report([one["scores"] for one in measured], name) for name in names},
        "thresholds": {
            name: _threshold_report([(one["scores"][name], one["rejections"][name]) for one in measured])
            for name in (DEFAULT, WITH_NEGATIVES)
        },
        "probabilities": _probability_report(measured, temperature),
        "accepted_by_class": _by_class(data, drawn, measured),
    }


def _score_report(pairs: Sequence[Mapping[str, tuple[Tensor, Tensor]]], name: str) -> dict[str, Any]:
    """Return the measures of a score over galleries, and their paired differences to the two that are in use."""
    measures: dict[str, Any] = {"area_under_roc": area_under_roc}
    measures |= {measure: lambda k, u, kept=kept: accepted_unknown(k, u, kept) for measure, kept in KEPT.items()}
    row: dict[str, Any] = {}
    for measure, of in measures.items():
        values = {
            score: torch.tensor([of(*pair[score]) for pair in pairs]) for score in (name, DEFAULT, WITH_NEGATIVES)
        }
        row[measure] = estimate(values[name])
        for other in (DEFAULT, WITH_NEGATIVES):
            if other != name:
                row[f"{measure}_minus_{other.replace(' ', '_')}"] = estimate(values[name] - values[other])
    return row


def _threshold_report(found: Sequence[tuple[tuple[Tensor, Tensor], Rejection]]) -> dict[str, Any]:
    passes = [[(part >= one.threshold).double().mean() for part in pair] for pair, one in found]
    known, unknown = (torch.stack(values) for values in zip(*passes, strict=True))
    return {"known_kept": estimate(known), "unknown_accepted": estimate(unknown)}


def _probability_report(measured: Sequence[Mapping[str, Any]], validation: float | None) -> dict[str, Any]:
    """Return accuracy and expected calibration errors of known clips in percent, by temperature."""
    logits, truth = (torch.cat([one[name] for one in measured]) for name in ("logits", "truth"))
    own = torch.tensor([one["rejections"][DEFAULT].temperature for one in measured])
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


def _by_class(data: Encoded, drawn: Sequence[Sample], measured: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return how many clips of each class pass in percent while it is unknown, by the threshold with negatives."""
    counts, passed = torch.zeros(len(data.class_names)), torch.zeros(len(data.class_names))
    for sample, one in zip(drawn, measured, strict=True):
        is_accepted = one["scores"][WITH_NEGATIVES][1] >= one["rejections"][WITH_NEGATIVES].threshold
        counts.index_add_(0, data.labels[sample.unknown], torch.ones(len(sample.unknown)))
        passed.index_add_(0, data.labels[sample.unknown], is_accepted.float().cpu())
    shares = 100 * passed / counts.clamp(min=1)
    return {name: round(share, 1) for name, share in zip(data.class_names, shares.tolist(), strict=True)}


def estimate(values: Tensor) -> dict[str, float]:
    """Return a mean over galleries in percent with its half-width."""
    one = Estimate.of(values)
    return {"percent": round(one.mean, 2), "half_width": round(one.half_width, 2)}


def main() -> None:
    """Measure and write the report."""
    options = tyro.cli(Options, description=__doc__)
    recipe, recognizer = load_run(Run(trained(options.run, options.data)))
    recognizers = {"dmgal_adapter": recognizer} | ({"motion": load_model(None).recognizer} if options.motion else {})
    results: dict[str, Any] = {}
    for method, one in recognizers.items():
        validation = report(encoded(recipe, one, "val"), options.galleries)
        results[method] = {"val": validation}
        temperature, reported = (
            validation["probabilities"]["validation_temperature"],
            (DEFAULT, WITH_NEGATIVES),
        )
        if options.novel:
            results[method]["test"] = report(encoded(recipe, one, "test"), options.galleries, reported, temperature)
        write_report({"results": results, "hardware": hardware()}, options.out, show=False)


if __name__ == "__main__":
    main()

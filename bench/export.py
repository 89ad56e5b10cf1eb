"""Exported ONNX programs of floats and of 8 bits, compared with the run on real clips.

    python -m dmgal.bench.export VIDEOS/weizmann VIDEOS/ut_interaction

Exports the recognizer of ``method/motion`` on tiny-clip and encodes clips by the run and by both programs, one at a
time. All clips of the first folder and ten of the second are recognized among all other clips of their folder, which
the run encodes: the rate of equal classes, and the largest difference of a logit. Episodes of the second folder, whose
clips all come from one program, give the paired difference of the accuracy. Writes ``bench/results/export.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import tyro
from torch import Tensor

from dmgal.backbones import VideoState
from dmgal.bench.measuring import conditions, write_report
from dmgal.bench.motion_transfer import SHOTS, as_json, catalog_of, sampler_of
from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.evaluation import evaluate, paired_difference
from dmgal.episodes.evaluation.states import PrecomputedStates
from dmgal.recipes.run.build import build_recognizer
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.data import test_clips
from dmgal.recipes.run.evaluation import default_recipe
from dmgal.recipes.run.exported import export_recognizer
from dmgal.videos import VideoCatalog

RUN, PROGRAMS = "run", {"onnx": False, "onnx int8": True}


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    first: tyro.conf.Positional[Path]
    """Folder of class folders of videos, all of which are recognized."""
    second: tyro.conf.Positional[Path]
    """The same, of which some are recognized and of which the episodes are."""
    recognized: int = 10
    """Number of recognized clips of the second folder."""
    episodes: int = 5000
    """Number of episodes."""
    out: Path = Path(__file__).parent / "results" / "export.json"


def program(path: Path, names: Sequence[str], clips: Sequence[Tensor]) -> VideoState:
    """Return the states of clips ``(T, 3, H, W)`` by an exported program, one at a time."""
    runtime = import_module("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0].name
    rows = [session.run(None, {entry: clip[None].numpy()}) for clip in clips]
    return VideoState(
        {
            name: torch.from_numpy(np.concatenate(part))
            for name, part in zip(names, zip(*rows, strict=True), strict=True)
        }
    )


def logits(
    recognizer: FewShotRecognizer, catalog: VideoCatalog, gallery: VideoState, queries: VideoState, clips: Sequence[int]
) -> Tensor:
    """Return the logits ``(clips, classes)`` of some clips, each among all other clips of the catalog."""
    labels, rows = torch.as_tensor(catalog.labels), []
    for clip in clips:
        others = torch.arange(len(labels)) != clip
        query = queries.select(slice(clip, clip + 1))
        rows.append(recognizer.compare(gallery.select(others), labels[others], query).logits)
    return torch.cat(rows)


@torch.no_grad()
def measure(options: Options) -> dict[str, object]:
    """Return the agreement on recognized clips and the difference in episodes of both programs."""
    recipe = default_recipe()
    recognizer = build_recognizer(recipe).eval()
    catalogs = [catalog_of([folder]) for folder in (options.first, options.second)]
    videos = [_clips(recipe, recognizer, catalog) for catalog in catalogs]
    states = {RUN: [VideoState.cat([recognizer.encode(clip[None]) for clip in clips]) for clips in videos]}
    sizes = {}
    for name, int8 in PROGRAMS.items():
        with TemporaryDirectory() as folder:
            path = export_recognizer(recipe, recognizer, Path(folder), "onnx", int8).programs[0]
            sizes[name] = round(sum(file.stat().st_size for file in path.parent.glob("encode.onnx*")) / 1e6, 1)
            states[name] = [program(path, sorted(states[RUN][0]), clips) for clips in videos]
    step = len(catalogs[1]) // options.recognized
    chosen = [range(len(catalogs[0])), range(0, step * options.recognized, step)]
    answers = {
        name: [
            logits(recognizer, catalog, gallery, queries, clips)
            for catalog, gallery, queries, clips in zip(catalogs, states[RUN], each, chosen, strict=True)
        ]
        for name, each in states.items()
    }
    return {
        "recipe": "method/motion on tiny-clip",
        "clips": {
            folder.name: len(clips) for folder, clips in zip((options.first, options.second), chosen, strict=True)
        },
        "programs": {name: {"encode_mb": sizes[name], **agreement(answers[name], answers[RUN])} for name in PROGRAMS},
        "episodes": accuracies(recognizer, catalogs[1], {name: each[1] for name, each in states.items()}, options),
    }


def agreement(found: Sequence[Tensor], expected: Sequence[Tensor]) -> dict[str, object]:
    """Return the rate of equal best classes and the largest difference of logits, over the logits of all folders."""
    pairs = list(zip(found, expected, strict=True))
    is_same = torch.cat([ours.argmax(1) == theirs.argmax(1) for ours, theirs in pairs])
    difference = max((ours - theirs).abs().max().item() for ours, theirs in pairs)
    return {
        "same_class_percent": round(100 * is_same.double().mean().item(), 2),
        "largest_logit_difference": float(f"{difference:.2g}"),
        "largest_logit": round(max(each.abs().max().item() for each in expected), 2),
    }


def accuracies(
    recognizer: FewShotRecognizer, catalog: VideoCatalog, states: dict[str, VideoState], options: Options
) -> dict[str, object]:
    """Return the accuracy of the run and of the programs, and the paired difference to the run, by shots."""
    report: dict[str, object] = {}
    for shots in SHOTS:
        sampler = sampler_of(catalog, shots, options.episodes)
        found = {
            name: evaluate(recognizer, PrecomputedStates.undivided(state), sampler, progress=False)
            for name, state in states.items()
        }
        report[str(shots)] = {
            name: {"accuracy": as_json(one.accuracy)}
            | ({} if name == RUN else {"difference": as_json(paired_difference(one, found[RUN]))})
            for name, one in found.items()
        }
    return report


def _clips(recipe: Recipe, recognizer: FewShotRecognizer, catalog: VideoCatalog) -> list[Tensor]:
    clips = test_clips(catalog, recipe, recognizer.encoder.image_size)
    return [clips[index] for index in range(len(clips))]


def main(argv: list[str] | None = None) -> None:
    """Measure and write the report."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    report = conditions(options)
    report["options"] |= {"first": options.first.name, "second": options.second.name}
    write_report({**report, **measure(options)}, options.out)


if __name__ == "__main__":
    main()

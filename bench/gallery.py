"""Accuracy and speed of galleries: accuracy by size, unknown actions, and time on ViT-B/16 shapes.

    python -m dmgal.bench.gallery                 trains the demo's DMGAL-Adapter first, if --run is not there
    python -m dmgal.bench.gallery --time

Galleries of 5 to 24 of the novel classes of moving shapes, one query per class, the same episodes as an evaluation
draws, for the full gallery and a shortlist. All choices (shortlist, score and threshold rule) were made on the
validation classes, which are also reported. The novel classes were evaluated once. Writes
``bench/results/gallery.json`` and, of ``--time``, ``gallery_time.json``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dmgal.backbones import FrameEncoder, load_backbone, use_memory_efficient_gelu
from dmgal.bench.measuring import cpu_seconds, hardware, median_with_interval, write_report
from dmgal.episodes import EpisodeSampler, FewShotRecognizer
from dmgal.episodes.evaluation import Estimate, encode_videos
from dmgal.episodes.evaluation.states import PrecomputedStates, precompute_states
from dmgal.episodes.gallery.calibration import find_rejection
from dmgal.episodes.gallery.task import GalleryTask
from dmgal.episodes.heads import BiMHM
from dmgal.recipes.run.data import build_catalog, test_clips
from dmgal.recipes.run.evaluation import load_run
from dmgal.recipes.run.folder import Run
from dmgal.recipes.run.gallery import AugmentedViews
from dmgal.videos import VideoCatalog
from dmgal.videos.dataset import ClipSource

RESULTS = Path(__file__).parent / "results"
SIZES = {"val": (5, 8, 12), "test": (5, 8, 12, 16, 20, 24)}
SHORTLISTS = (3, 5)
CHOSEN_SHORTLIST = 5
EPISODES, REJECTION_GALLERIES, PLAIN_EPISODES, VIEWS = 200, 40, 20, 2
SECONDS_CLASSES, ROUNDS = 100, 5


class Split:
    """Classes of one split, with every clip encoded once, and two views of each."""

    def __init__(self, folder: Path, name: str) -> None:
        recipe, self.recognizer = load_run(Run(folder))
        self.catalog: VideoCatalog = build_catalog(recipe.data).split(name)
        self.clips = test_clips(self.catalog, recipe, self.recognizer.encoder.image_size)
        self.states = encode_videos(self.recognizer, self.clips)
        seeds, size = {video: video for video in range(len(self.catalog))}, self.recognizer.encoder.image_size
        source = ClipSource(self.catalog, recipe.data.decoder)
        views = AugmentedViews(source, recipe.data.num_frames, size, VIEWS, seeds)
        self.views = encode_videos(self.recognizer, views)
        self.labels = torch.from_numpy(self.catalog.labels.copy())

    def task(self, support: Tensor, labels: Tensor, shortlist: int | None = None) -> GalleryTask:
        """Return the task of a gallery of these videos."""
        return GalleryTask(self.recognizer, self.states.select(support), labels, shortlist)

    def sampler(self, n_way: int, k_shot: int, episodes: int) -> EpisodeSampler:
        """Return episodes with one query per class."""
        return EpisodeSampler(self.catalog.labels, n_way, k_shot, 1, episodes, 0, self.catalog.class_names)


def accuracy(split: Split, n_way: int, k_shot: int, shortlists: tuple[int, ...]) -> dict[str, object]:
    """Return accuracy of ``n_way``-class galleries in percent, and how often the right class was on the shortlist."""
    right: dict[int | None, list[float]] = {size: [] for size in (None, *shortlists)}
    listed: dict[int, list[float]] = {size: [] for size in shortlists}
    for episode in split.sampler(n_way, k_shot, EPISODES):
        support, labels = torch.tensor(episode.support), torch.tensor(episode.support_labels)
        query, truth = split.states.select(torch.tensor(episode.query)), torch.tensor(episode.query_labels)
        for size in right:
            logits = split.task(support, labels, size).logits(query)
            right[size].append((logits.argmax(1) == truth).double().mean().item())
            if size is not None:
                listed[size].append(logits.gather(1, truth[:, None]).isfinite().double().mean().item())
    whole = torch.tensor(right[None])
    row: dict[str, object] = {"classes": n_way, "shots": k_shot, "whole_gallery": _estimate(whole)}
    for size in shortlists:
        values = torch.tensor(right[size])
        row[f"shortlist_{size}"] = {
            **_estimate(values),
            "difference_to_whole": _estimate(values - whole),
            "right_class_listed_percent": round(100 * sum(listed[size]) / EPISODES, 2),
        }
    return row


def against_episodes(split: Split, n_way: int, k_shot: int) -> dict[str, object]:
    """Compare logits of a gallery with those of plain episodes from the pixels of the same clips."""
    largest, changed, queries = 0.0, 0, 0
    for episode in split.sampler(n_way, k_shot, PLAIN_EPISODES):
        labels = torch.tensor(episode.support_labels)
        clips = [torch.stack([split.clips[video] for video in part]) for part in (episode.support, episode.query)]
        with torch.no_grad():
            support, query = (split.recognizer.encode(part) for part in clips)
            plain = split.recognizer.compare(support, labels, query).logits
        task = split.task(torch.tensor(episode.support), labels)
        logits = task.logits(split.states.select(torch.tensor(episode.query)))
        largest = max(largest, ((logits - plain).abs().max() / plain.abs().max()).item())
        changed += int((logits.argmax(1) != plain.argmax(1)).sum())
        queries += len(plain)
    return {"classes": n_way, "queries": queries, "largest_relative_difference": largest, "changed": changed}


def rejection(split: Split, k_shot: int) -> dict[str, object]:
    """Measure the rejection of unknown clips: galleries of half of the classes, five queries of every class."""
    generator, count = torch.Generator().manual_seed(0), len(split.catalog.class_names)
    known, unknown, right = [], [], []
    for _ in range(REJECTION_GALLERIES):
        classes = torch.randperm(count, generator=generator)
        videos = torch.stack([shuffled((split.labels == c).nonzero().flatten(), generator) for c in classes])
        inside, outside = videos[: count // 2], videos[count // 2 :]
        support = inside[:, :k_shot].flatten()
        task = split.task(support, torch.arange(len(inside)).repeat_interleave(k_shot))
        of_single = (support[:, None] * VIEWS + torch.arange(VIEWS)).flatten() if k_shot == 1 else support[:0]
        places = torch.arange(len(support)).repeat_interleave(VIEWS) if k_shot == 1 else support[:0]
        found = find_rejection(task, split.views.select(of_single), places, progress=False)
        queries = inside[:, k_shot : k_shot + 5], outside[:, :5]
        states = [split.states.select(videos.flatten()) for videos in queries]
        logits = [task.logits(part) for part in states]
        passes, passes_unknown = (
            task.scores(part, of, found) >= found.threshold for part, of in zip(states, logits, strict=True)
        )
        truth = torch.arange(len(inside)).repeat_interleave(5)
        known.append(passes.double().mean())
        unknown.append(passes_unknown.double().mean())
        right.append((logits[0].argmax(1) == truth)[passes].double().mean())
    return {
        "classes": count // 2,
        "shots": k_shot,
        "threshold_from": found.source,
        "known_kept": _estimate(torch.stack(known)),
        "unknown_accepted": _estimate(torch.stack(unknown)),
        "accuracy_of_known_kept": _estimate(torch.stack(right)),
    }


def seconds() -> dict[str, object]:
    """Return CPU time of a comparison with 100 classes in percent of encoding one 8-frame clip, on ViT-B/16 shapes."""
    import peft

    from dmgal.adapters import DmgalConfig

    model = peft.get_peft_model(load_backbone("open_clip:ViT-B-16"), DmgalConfig())
    recognizer = FewShotRecognizer(
        FrameEncoder(use_memory_efficient_gelu(model)), BiMHM(center="video", logit_scale=10.0, eps=0.0)
    ).eval()
    clip = torch.randint(0, 256, (1, 8, 3, 224, 224), dtype=torch.uint8)
    query = _encode(recognizer, clip)
    tasks = {}
    for shots in (1, 5):
        states = query.map(partial(_noisy, count=SECONDS_CLASSES * shots))
        labels = torch.arange(SECONDS_CLASSES).repeat_interleave(shots)
        for shortlist in (None, 10):
            name = f"{shots}-shot, {'whole gallery' if shortlist is None else f'shortlist of {shortlist}'}"
            tasks[name] = GalleryTask(recognizer, states, labels, shortlist)

    work: dict[str, Callable[[], object]] = {name: partial(task.logits, query) for name, task in tasks.items()}
    rounds = [_round(partial(_encode, recognizer, clip), work) for _ in range(ROUNDS + 1)][1:]
    sizes = {name: sum(state.nbytes for state in task.states.tensors().values()) for name, task in tasks.items()}
    return {
        "model": "ViT-B/16, 224 pixels, 8 frames, DMGAL-Adapter with a Cmga behind the last block; random weights",
        "classes": SECONDS_CLASSES,
        "encoding_seconds": median_with_interval([encoding for encoding, _ in rounds]),
        "comparison_in_percent_of_encoding": {
            name: median_with_interval([100 * times[name] / encoding for encoding, times in rounds]) for name in work
        },
        "gallery_mb": {name: round(size / 2**20, 1) for name, size in sizes.items() if "whole" in name},
        "hardware": hardware(),
    }


def _round(encode: Callable[[], object], work: Mapping[str, Callable[[], object]]) -> tuple[float, dict[str, float]]:
    """Return CPU seconds of one encoding and of each comparison in the same round."""
    return cpu_seconds(encode), {name: cpu_seconds(compare) for name, compare in work.items()}


@torch.no_grad()
def _encode(recognizer: FewShotRecognizer, clip: Tensor) -> PrecomputedStates:
    return precompute_states(recognizer, clip)


def _noisy(state: Tensor, count: int) -> Tensor:
    return state + 0.1 * state.std() * torch.randn(count, *state.shape[1:])


def _estimate(values: Tensor) -> dict[str, float]:
    estimate = Estimate.of(values)
    return {"percent": round(estimate.mean, 2), "half_width": round(estimate.half_width, 2)}


def shuffled(videos: Tensor, generator: torch.Generator) -> Tensor:
    """Return the videos in random order."""
    return videos[torch.randperm(len(videos), generator=generator)]


def trained(folder: Path, data: Path) -> Path:
    """Return the run, after training it in its own process if it does not exist."""
    if not (folder / "recipe.yaml").exists():
        words = ["demo", "method/dmgal_adapter", "data/moving_shapes", "--data.root", str(data), "--out", str(folder)]
        subprocess.run([sys.executable, "-m", "dmgal.recipes.train", *words], check=True)
    return folder


def report(run: Path) -> dict[str, object]:
    """Measure everything except the times."""
    result: dict[str, object] = {"episodes": EPISODES, "chosen_on_val": {"shortlist": CHOSEN_SHORTLIST}}
    for name, sizes in SIZES.items():
        split, shortlists = Split(run, name), SHORTLISTS if name == "val" else (CHOSEN_SHORTLIST,)
        rows = [accuracy(split, n_way, k_shot, shortlists) for k_shot in (1, 5) for n_way in sizes]
        part: dict[str, object] = {"accuracy": rows, "unknown": [rejection(split, k_shot) for k_shot in (1, 2)]}
        if name == "test":
            part["against_plain_episodes"] = [against_episodes(split, n_way, 1) for n_way in (5, 24)]
        result[name] = part
    return {**result, "hardware": hardware()}


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/gallery"))
    parser.add_argument("--data", type=Path, default=Path("data/moving_shapes"))
    parser.add_argument("--time", action="store_true", help="measure the times instead")
    options = parser.parse_args()
    result = seconds() if options.time else report(trained(options.run, options.data))
    write_report(result, RESULTS / ("gallery_time.json" if options.time else "gallery.json"))


if __name__ == "__main__":
    main()

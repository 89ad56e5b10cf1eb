"""Check of moving shapes: a single frame must carry no class information, the full trajectory all of it.

    python -m dmgal.bench.moving_shapes_checks

The data set is generated again and its 24 novel classes are used. One random frame of each clip must be classified at
chance by ridge regression, fitted to half of the clips: from pixels, from tiny-clip's feature, and from the true pose.
As a control, the last frame of clips whose starts are not hidden must be above chance. An oracle classifies the true
trajectories (target: at least 95 %) by the nearest noiseless one, over a grid of jitter and phase, after removal of the
mean position, size and angle. The time to generate the data is also reported.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from scipy import stats
from torch import Tensor

from dmgal.backbones import tiny_clip
from dmgal.bench.measuring import hardware, write_report
from dmgal.videos.decoding.video import read_clip
from dmgal.videos.moving_shapes.clips import MEDIAN_SIZE, MovingShapes
from dmgal.videos.moving_shapes.drawing import Poses, draw, random_appearance
from dmgal.videos.moving_shapes.generate import generate_moving_shapes
from dmgal.videos.moving_shapes.motions import (
    AMPLITUDE_JITTER,
    HEADING_JITTER,
    RATE_JITTER,
    Jitter,
    Motion,
    Offsets,
    all_motions,
    split_motions,
)

RESULT = Path(__file__).parent / "results" / "moving_shapes_checks.json"
RIDGE = 1.0
ImageFeature = Callable[[Tensor], Tensor]
"""Function from images, uint8 ``(n, 3, H, W)``, to features ``(n, D)``."""


@dataclass(frozen=True)
class Options:
    """Options of the command.

    Args:
        seed: of the data.
        clips_per_class: of each of the 100 classes.
        workers: processes that make the data; None takes one per core.
        out: where the result goes.
    """

    seed: int = 0
    clips_per_class: int = 30
    workers: int | None = None
    out: Path = RESULT


def interval_of_chance(trials: int, chance: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact two-sided binomial interval of the accuracy of guessing, with equal tails."""
    low, high = stats.binom.interval(confidence, trials, chance)
    return float(low / trials), float(high / trials)


def ridge_accuracy(features: Tensor, labels: Tensor, is_training: Tensor) -> float:
    """Return the test accuracy of a ridge regression to one-hot labels, fitted to the rows with ``is_training``.

    Args:
        features: ``(n, D)``.
        labels: ``(n,)`` from 0.
        is_training: ``(n,)`` bool.
    """
    features = features.double()
    seen = features[is_training]
    features = (features - seen.mean(dim=0)) / seen.std(dim=0).clamp(min=1e-6) / math.sqrt(features.shape[1])
    features = F.pad(features, (0, 1), value=1.0)
    seen, targets = features[is_training], F.one_hot(labels[is_training]).double()
    weights = torch.linalg.solve(seen.T @ seen + RIDGE * torch.eye(seen.shape[1], dtype=seen.dtype), seen.T @ targets)
    predicted = (features[~is_training] @ weights).argmax(dim=1)
    return (predicted == labels[~is_training]).double().mean().item()


def pose_features(poses: Poses) -> Tensor:
    """Return products of up to three of position and log size, and the angle's direction: ``(n, 1)`` to ``(n, D)``."""
    quantities = torch.cat((poses.x, poses.y, poses.size.log()), dim=1).double()
    quantities = (quantities - quantities.mean(dim=0)) / quantities.std(dim=0)
    products = [
        quantities[:, factors].prod(dim=1, keepdim=True)
        for degree in (1, 2, 3)
        for factors in map(list, itertools.combinations_with_replacement(range(3), degree))
    ]
    return torch.cat((*products, poses.angle.sin(), poses.angle.cos()), dim=1)


def pixel_features(images: Tensor) -> Tensor:
    """Return raw pixels, averaged to 16 x 16."""
    return F.adaptive_avg_pool2d(images.float(), 16).flatten(1)


def contrast_features(images: Tensor) -> Tensor:
    """Return the distance of pixels from the image mean, averaged to 16 x 16, which shows objects of any color."""
    images = images.float()
    contrast = (images - images.mean(dim=(-2, -1), keepdim=True)).abs().amax(dim=1)  # (n, H, W)
    return F.adaptive_avg_pool2d(contrast, 16).flatten(1)


def image_features() -> dict[str, ImageFeature]:
    """Return the features to classify a frame: pixels, contrast, and tiny-clip if its weights are bundled."""
    sources: dict[str, ImageFeature] = {"pixels": pixel_features, "contrast": contrast_features}
    if (tiny_clip.FOLDER / "open_clip_model.safetensors").exists():
        sources["tiny_clip"] = _tiny_clip_feature()
    return sources


def _tiny_clip_feature() -> ImageFeature:
    from dmgal.backbones.families import load_backbone

    visual = load_backbone("tiny-clip")
    config = json.loads((tiny_clip.FOLDER / "open_clip_config.json").read_text(encoding="utf-8"))
    size = config["model_cfg"]["vision_cfg"]["image_size"]
    mean, std = (torch.tensor(config["preprocess_cfg"][key]).view(3, 1, 1) for key in ("mean", "std"))

    @torch.no_grad()
    def feature(images: Tensor) -> Tensor:
        resized = F.interpolate(images / 255, (size, size), mode="bilinear", antialias=True)
        return torch.cat([visual((batch - mean) / std) for batch in resized.split(128)])

    return feature


def single_frame_poses(poses: Poses, frames: Tensor) -> Poses:
    """Return the pose in one frame of each clip: ``(n, T)`` to ``(n, 1)``, with ``frames`` of ``(n,)``."""
    at = frames[:, None]
    return Poses(*(value.gather(1, at) for value in (poses.x, poses.y, poses.size, poses.angle)))


def unhidden_last_frames(poses: Poses, pixels: int, generator: torch.Generator) -> Tensor:
    """Return last frames of the same motions with one center for all clips, uint8 ``(n, 3, H, W)``, as a control."""
    x, y = ((place - place.mean(dim=1, keepdim=True))[:, -1:] for place in (poses.x, poses.y))
    last = Poses(x, y, torch.full_like(x, MEDIAN_SIZE), poses.angle[:, -1:])
    return draw(last, random_appearance(len(x), generator), pixels, generator)[:, 0]


def joined(poses: list[Poses]) -> Poses:
    """Concatenate the poses of several batches."""
    return Poses(*(torch.cat([getattr(p, name) for p in poses]) for name in ("x", "y", "size", "angle")))


def check(options: Options, root: Path) -> dict[str, object]:
    """Make the data set in an empty ``root`` and measure accuracies in percent."""
    shapes = MovingShapes(seed=options.seed, clips_per_class=options.clips_per_class)
    start = time.perf_counter()
    generate_moving_shapes(root, options.seed, options.clips_per_class, workers=options.workers)
    seconds = time.perf_counter() - start

    motions, novel = all_motions(), split_motions(options.seed)["test"]
    clips = [(label, c, i) for label, c in enumerate(novel) for i in range(options.clips_per_class)]
    labels = torch.tensor([label for label, _, _ in clips])
    poses = joined([shapes.poses(c, i) for _, c, i in clips])
    is_training = torch.tensor([i % 2 == 0 for _, _, i in clips])
    generator = torch.Generator().manual_seed(options.seed)
    frames = torch.randint(shapes.frames, (len(clips),), generator=generator)
    images = torch.cat(
        [_frame(root, motions[c].name, i, t) for (_, c, i), t in zip(clips, frames.tolist(), strict=True)]
    )
    control_images = unhidden_last_frames(poses, shapes.pixels, generator)

    def accuracies_from(images: Tensor) -> dict[str, float]:
        return {name: ridge_accuracy(of(images), labels, is_training) for name, of in image_features().items()}

    accuracies, control = accuracies_from(images), accuracies_from(control_images)
    true_pose = pose_features(single_frame_poses(poses, frames))
    accuracies["true_pose"] = ridge_accuracy(true_pose, labels, is_training)
    low, high = interval_of_chance(int((~is_training).sum()), 1 / len(novel))
    oracle = (classify_trajectories(poses, [motions[c] for c in novel]) == labels).double().mean().item()
    return {
        "one_random_frame": {
            "classes": len(novel),
            "training_clips": int(is_training.sum()),
            "test_clips": int((~is_training).sum()),
            "chance_percent": _percent(1 / len(novel)),
            "interval_of_chance_percent": [_percent(low), _percent(high)],
            "accuracy_percent": {name: _percent(accuracy) for name, accuracy in accuracies.items()},
            "control_accuracy_percent": {name: _percent(accuracy) for name, accuracy in control.items()},
            "all_within": all(low <= accuracy <= high for accuracy in accuracies.values()),
        },
        "oracle": {"clips": len(clips), "accuracy_percent": _percent(oracle)},
        "generation": {
            "clips": 100 * options.clips_per_class,
            "seconds": round(seconds, 1),
            "megabytes": round(sum(file.stat().st_size for file in root.rglob("*.mp4")) / 1e6, 1),
            "load_average_at_end": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        },
    }


def _frame(root: Path, name: str, clip: int, frame: int) -> Tensor:
    (path,) = root.glob(f"test/{name}/{name}_{clip:02d}.mp4")
    return read_clip(path, lambda _: [frame])


def _percent(share: float) -> float:
    return round(100 * share, 2)


def main(argv: list[str] | None = None) -> None:
    """Check, write and print the report."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    with tempfile.TemporaryDirectory() as folder:
        measured = check(options, Path(folder))
    result = {
        "what": "moving shapes: what one frame tells about its class, what the trajectory tells, seconds to make it",
        "seed": options.seed,
        "data_version": MovingShapes.VERSION,
        **hardware(),
        **measured,
    }
    write_report(result, options.out)


if __name__ == "__main__":
    main()


JITTER_STEPS, PHASE_STEPS = 5, 36
# Typical distances within a class, in half pictures, log size and radians. They bring the quantities to one scale.
POSITION_UNIT, LOG_SIZE_UNIT, ANGLE_UNIT = 0.05, 0.05, 0.15


def classify_trajectories(poses: Poses, motions: Sequence[Motion]) -> Tensor:
    """Return the class of each of ``n`` trajectories, ``(n,)``, as an index into ``motions``.

    Each quantity of ``poses`` is ``(n, T)``.
    """
    observed = Offsets(poses.x.double(), poses.y.double(), poses.size.double().log(), poses.angle.double())
    times = torch.linspace(-1, 1, poses.x.shape[1], dtype=torch.float64)
    trajectories, jitter = _centered(observed), _jitter_grid()
    distances = [torch.cdist(trajectories, _centered(motion.offsets(times, jitter))).amin(dim=1) for motion in motions]
    return torch.stack(distances, dim=1).argmin(dim=1)


def _centered(offsets: Offsets) -> Tensor:
    quantities = (
        offsets.x / POSITION_UNIT,
        offsets.y / POSITION_UNIT,
        offsets.log_size / LOG_SIZE_UNIT,
        offsets.angle / ANGLE_UNIT,
    )
    return torch.cat([quantity - quantity.mean(dim=1, keepdim=True) for quantity in quantities], dim=1)


def _jitter_grid() -> Jitter:
    steps = torch.linspace(-1, 1, JITTER_STEPS, dtype=torch.float64)
    phases = torch.arange(PHASE_STEPS, dtype=torch.float64) * (2 * math.pi / PHASE_STEPS)
    axes = (1 + AMPLITUDE_JITTER * steps, 1 + RATE_JITTER * steps, HEADING_JITTER * steps, phases)
    grid = torch.tensor(list(itertools.product(*(axis.tolist() for axis in axes))), dtype=torch.float64)
    return Jitter(*grid.split(1, dim=1))

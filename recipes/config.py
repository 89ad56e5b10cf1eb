"""What a recipe consists of, and how it is put together: defaults, then YAML layers, then flags; the later one wins.

    dmgal train method/dmgal_adapter data/moving_shapes --shots 1 --adapter.bottleneck 24

A layer holds only differences from the defaults. Its name is a bundled file in ``recipes/configs`` or a path. Unknown
keys fail and suggest the nearest known one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dmgal.episodes.catalogs.bad_videos import OnBadVideo
from dmgal.episodes.video import DecoderName
from dmgal.errors import DmgalError
from dmgal.recipes.layers import bundled_layers, from_mapping, merged, read_layer, split_open_flags

SHORT_FLAGS = {"--ways": "--episode.n-way", "--shots": "--episode.k-shot", "--queries": "--episode.n-query"}
OPEN_SECTIONS = ("adapter", "head", "train.loss_weights")
"""Whose keys are not known beforehand."""
Precision = Literal["float32", "tf32", "float64", "bf16", "fp16"]
Schedule = Literal["cosine", "linear", "polynomial", "inverse_sqrt", "constant"]
Optimizer = Literal["adamw", "adam", "sgd"]
Tracker = Literal["tensorboard", "wandb", "trackio"]


@dataclass(frozen=True)
class DataConfig:
    """Where the videos are and how clips are taken from them."""

    name: str | None = None
    """Of the data set; methods may set values by it (``per_data`` in their layers)."""
    root: Path = Path("data/moving_shapes")
    """Folder of the videos: classes of clips, or what the split file names."""
    split_file: Path | None = None
    """CSV with the columns split, class_name, video; a list as the field writes them, or a folder with one for each
    split; without one the folders tell."""
    list_format: str | None = None
    """Format of the lists, where it cannot be found by itself; the message names what fits."""
    report: Path | None = None
    """The report.csv of dmgal prepare: videos that it calls bad are known beforehand."""
    on_bad_video: OnBadVideo = "error"
    """A video that is missing or cannot be read: stop, or go on without it and say so."""
    generate: Literal["no", "moving_shapes"] = "no"
    """Make the data set at root if it is not there."""
    seed: int = 0
    """Of a generated data set, and of a split by class where there is none."""
    num_frames: int = 8
    flip: bool = False
    """Mirror half of the training clips; never where left and right are labels."""
    may_flip: bool = True
    """Whether a mirrored clip keeps its label; a data set's layer says so where not, and then flip is refused."""
    crop_scale: tuple[float, float] = (1.0, 1.0)
    """Share of the frame's area in a training crop, smallest and largest; 1 and 1: the center crop."""
    color_jitter: float = 0.0
    test_resize: float = 1.0
    """Short side before the center crop, as a multiple of the backbone's input size."""
    keep_in_memory: bool = False
    """Keep decoded videos; for small data sets."""
    decoder: DecoderName = "pyav"
    """What decodes video files; decord is known to give wrong frames of some, see the README."""
    store: Path | None = None
    """Folder of frames that were decoded once, made by dmgal store; None: videos are decoded each time."""
    num_workers: int = 2
    """Processes that load data; 0: none besides the training process."""

    def __post_init__(self) -> None:
        if self.flip and not self.may_flip:
            raise DmgalError(
                "This data set may not be mirrored.",
                received="data.flip: true",
                expected="data.flip: false, because left and right are labels here",
                remedy="leave data.flip out",
            )


@dataclass(frozen=True)
class BackboneConfig:
    """The foundation model."""

    name: str = "tiny-clip"
    """tiny-clip, open_clip:MODEL/WEIGHTS, hf:REPOSITORY, or a folder in the transformers format."""
    pooling: Literal["patch_mean", "cls+patch_mean", "map"] | None = None
    """How a frame's tokens become its feature; None: as the backbone itself does."""
    trainable: bool = False
    """Full fine-tuning; otherwise the backbone is frozen."""
    freeze_batch_norm: bool = True
    """Batch norms of a trained backbone or head keep their statistics."""
    checkpoint_blocks: bool = False
    """Keep only what enters each block and compute the rest again in the backward pass: less memory, more time."""
    dtype: Literal["float32", "bf16"] = "float32"
    """Of a frozen backbone's weights while it trains; what is trained stays in float32."""


@dataclass(frozen=True)
class EpisodeConfig:
    """A task in training and validation; ``--ways``, ``--shots`` and ``--queries`` are short for its flags."""

    n_way: int = 5
    k_shot: int = 1
    n_query: int = 2
    """Query videos per class."""


LEAST = {
    "steps": 0,
    "warmup_steps": 0,
    "tasks_per_step": 1,
    "tasks_per_pass": 1,
    "validate_every": 1,
    "validation_episodes": 1,
    "patience": 1,
    "checkpoint_every": 1,
    "keep_checkpoints": 1,
    "max_bad_losses": 1,
}
"""Smallest values of training options."""


@dataclass(frozen=True)
class TrainConfig:
    """Optimization: an optimizer, linear warm-up, a schedule; and how a run goes on, is saved and is watched."""

    steps: int = 600
    """0 trains nothing: a frozen backbone is evaluated as it is."""
    tasks_per_step: int = 1
    """Tasks of one optimizer step over all processes; what a step computes does not depend on their number."""
    tasks_per_pass: int | None = None
    """Tasks of one forward and backward pass on each process, for less memory; None: all that it has of a step."""
    two_pass: Literal["no", "auto"] | int = "no"
    """The same gradients in less memory, for more time: a task's videos are encoded in chunks, and again on the way
    back. auto: all at once where memory_budget allows it, else in chunks that it allows; a number: of videos in a
    chunk; 1 with a tiny memory_budget needs least memory. Needs frozen batch norms and whole weights on every process
    (no FSDP)."""
    memory_budget: float | None = None
    """GB for encoding a task's videos where two_pass is auto or a number: what chunks leave of it keeps results, so
    that less is computed again; what is spared is told at the start. None: with auto most of what is free, else no
    more than the results that are dearest to compute. Weights, their gradients and the optimizer come on top."""
    optimizer: Optimizer = "adamw"
    """Of torch.optim; adam and sgd are those of older papers."""
    momentum: float = 0.0
    """Of sgd."""
    learning_rate: float = 4e-3
    backbone_learning_rate: float = 1e-4
    """Of the backbone's own parameters, where they are trained."""
    weight_decay: float = 0.01
    """On matrices only: not on biases, norms, gains and scales. With adam and sgd it is added to the gradient."""
    warmup_steps: int = 30
    schedule: Schedule = "cosine"
    """Of the learning rates behind the linear warm-up; all but cosine (to zero, ours) are those of transformers."""
    clip_norm: float | None = 1.0
    """Longest gradient; None: not clipped."""
    ema: float | None = None
    """Decay of an exponential moving average of what is trained, such as 0.999; it is then validated and saved."""
    loss_weights: Annotated[Mapping[str, float], tyro.conf.Suppress] = field(default_factory=dict)
    """Of a head's losses by name, e.g. {base_classes: 0.5}; those not named keep the weight of the head's paper."""
    measure_head_norms: bool = False
    """Give a new head's batch norms, where they are frozen, the statistics of the first task before training; without,
    they divide by one."""
    precision: Precision = "float32"
    """bf16 and fp16: autocast, weights in float32; tf32: float32 with faster, less exact products on NVIDIA GPUs."""
    compile: bool = False
    """Compile the backbone's blocks with torch.compile; worth it only where measured."""
    validate_every: int = 200
    validation_episodes: int = 500
    patience: int | None = None
    """Stop after so many validations without a better one; None: never early."""
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    """The newest ones; one before the newest is for where that is damaged."""
    on_bad_loss: Literal["skip", "stop"] = "skip"
    """A loss or gradient that is not finite, or a loss that explodes: leave that step out and count it, or stop."""
    max_bad_losses: int = 10
    """Stop after so many skipped steps in a row."""
    tracker: Tracker | None = None
    """Send the log there, too, through Accelerate; the package must be installed."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise _cannot_train(f"train.{name}: {value}", f"at least {least}")
        if isinstance(self.two_pass, int) and self.two_pass < 1:
            raise _cannot_train(f"train.two_pass: {self.two_pass}", "no, auto, or a number of videos")
        if self.memory_budget is not None and not self.memory_budget > 0:
            raise _cannot_train(f"train.memory_budget: {self.memory_budget}", "GB, more than 0, or none")
        if not 0 <= self.momentum < 1:
            raise _cannot_train(f"train.momentum: {self.momentum}", "at least 0 and less than 1")
        if self.momentum and self.optimizer != "sgd":
            raise _cannot_train(f"train.momentum: {self.momentum} of {self.optimizer}", "train.optimizer: sgd, or none")
        if self.ema is not None and not 0 < self.ema < 1:
            raise _cannot_train(f"train.ema: {self.ema}", "a decay between 0 and 1, or none")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise _cannot_train(f"train.clip_norm: {self.clip_norm}", "more than 0, or none")


def _cannot_train(received: str, expected: str) -> DmgalError:
    key = received.partition(":")[0]
    return DmgalError(
        "A recipe cannot train like this.", received=received, expected=expected, remedy=f"give another {key}"
    )


@dataclass(frozen=True)
class Recipe:
    """Everything that shapes a run."""

    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    adapter: Annotated[Mapping[str, Any] | None, tyro.conf.Suppress] = None
    """A PEFT config by its ``peft_type`` and fields, e.g. ``{peft_type: DMGAL, bottleneck: 24}``; None: no adapter."""
    head: Annotated[Mapping[str, Any], tyro.conf.Suppress] = field(default_factory=lambda: {"name": "BiMHM"})
    """A class of ``dmgal.episodes.heads`` by its name and arguments."""
    episode: EpisodeConfig = field(default_factory=EpisodeConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def _long(flag: str) -> str:
    name, equals, value = flag.partition("=")
    return SHORT_FLAGS.get(name, name) + equals + value


def parse(argv: Sequence[str] | None, *, prog: str, description: str, wrapper: type[Any]) -> tuple[Any, list[str]]:
    """A command's options with a ``recipe`` among them, and the names of the layers that were given.

    Args:
        wrapper: a dataclass with a field ``recipe`` beside the command's own options.

    Raises:
        DmgalError: an unknown layer or key, or a value of a wrong kind.
        SystemExit: after ``--help``, and where a flag is refused (code 2).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    first_flag = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    names, flags = words[:first_flag], words[first_flag:]
    flags, open_options = split_open_flags([_long(flag) for flag in flags], OPEN_SECTIONS)
    tree = merged([*(read_layer(name) for name in names), open_options])
    options = tyro.cli(
        wrapper,
        prog=prog,
        args=flags,
        default=wrapper(recipe=from_mapping(Recipe, tree)),
        description=f"{description}\n\nBundled layers: {', '.join(bundled_layers())}.\n\n"
        "Short for episode options: --ways, --shots, --queries. "
        "An adapter and a head take options of their own: --adapter.OPTION VALUE, --head.OPTION VALUE; "
        "the losses of a head weights: --train.loss-weights.LOSS WEIGHT.",
        config=(tyro.conf.AvoidSubcommands,),
    )
    return options, names

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

from dmgal.errors import DmgalError
from dmgal.recipes.layers import bundled_layers, from_mapping, merged, read_layer, split_open_flags

SHORT_FLAGS = {"--ways": "--episode.n-way", "--shots": "--episode.k-shot", "--queries": "--episode.n-query"}
OPEN_SECTIONS = ("adapter", "head", "train.loss_weights")
"""Whose keys are not known beforehand."""
Precision = Literal["float32", "float64", "bf16", "fp16"]


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
    on_bad_video: Literal["error", "skip"] = "error"
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
    decoder: Literal["pyav", "decord"] = "pyav"
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


@dataclass(frozen=True)
class EpisodeConfig:
    """A task in training and validation; ``--ways``, ``--shots`` and ``--queries`` are short for its flags."""

    n_way: int = 5
    k_shot: int = 1
    n_query: int = 2
    """Query videos per class."""


@dataclass(frozen=True)
class TrainConfig:
    """Optimization: AdamW, linear warm-up, cosine to zero."""

    steps: int = 600
    """0 trains nothing: a frozen backbone is evaluated as it is."""
    tasks_per_step: int = 1
    """Tasks of one optimizer step over all processes; encoded in one batch on each."""
    learning_rate: float = 4e-3
    backbone_learning_rate: float = 1e-4
    """Of the backbone's own parameters, where they are trained."""
    weight_decay: float = 0.01
    """On matrices only."""
    warmup_steps: int = 30
    clip_norm: float = 1.0
    loss_weights: Annotated[Mapping[str, float], tyro.conf.Suppress] = field(default_factory=dict)
    """Of a head's losses by name, e.g. {base_classes: 0.5}; those not named keep the weight of the head's paper."""
    precision: Precision = "float32"
    validate_every: int = 200
    validation_episodes: int = 500
    checkpoint_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"steps": 0, "warmup_steps": 0}
        for name in ("tasks_per_step", "validate_every", "validation_episodes", "checkpoint_every", *least):
            if getattr(self, name) < least.get(name, 1):
                raise DmgalError(
                    "A recipe cannot train like this.",
                    received=f"train.{name}: {getattr(self, name)}",
                    expected=f"at least {least.get(name, 1)}",
                    remedy=f"give another train.{name}",
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

"""The recipe of a run, put together from defaults, YAML layers and flags. Later sources win.

    dmgal train method/dmgal_adapter data/moving_shapes --shots 1 --adapter.bottleneck 24

A layer holds only differences from the defaults. It is named by a bundled file in ``recipes/configs`` or by a path.
Unknown keys raise an error that suggests the nearest known key. Options of a command may replace data settings of a
finished run, such as the folder of the videos on this machine.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from dmgal.backbones import Quantization
from dmgal.errors import DmgalError
from dmgal.recipes.run.layers import bundled_layers, from_mapping, merge_layers, read_layer, split_open_flags
from dmgal.recipes.run.options import RARE, read_options
from dmgal.recipes.run.ranges import SEEDS, STEPS, TASKS, Range, check_options, check_ranges, out_of_range
from dmgal.videos.bad_videos import OnBadVideo
from dmgal.videos.decoding.video import DecoderName
from dmgal.videos.generated import SPLIT_FILE

SHORT_FLAGS = {"--ways": "--episode.n-way", "--shots": "--episode.k-shot", "--queries": "--episode.n-query"}
OPEN_SECTIONS = ("adapter", "head", "train.loss_weights")
"""Sections with keys that depend on the chosen adapter or head."""
Precision = Literal["float32", "tf32", "float64", "bf16", "fp16"]
Schedule = Literal["cosine", "linear", "polynomial", "inverse_sqrt", "constant"]
Optimizer = Literal["adamw", "adam", "sgd"]
Tracker = Literal["tensorboard", "wandb", "trackio"]
GeneratedSet = Literal["moving_shapes", "motion_world"]


@dataclass(frozen=True)
class DataConfig:
    """Location of the videos, and how clips are sampled from them."""

    name: Annotated[str | None, RARE] = None
    """Name of the data set. Method layers use it to look up their per_data values. A plug-in may read the root of
    its own data set by it."""
    root: Path = Path("data/moving_shapes")
    """Folder of the videos, with one subfolder per class, or with the files that the split file lists."""
    split_file: Path | None = None
    """CSV with the columns split, class_name and video, a list file, or a folder with one list per split. None: the
    folder names define the classes."""
    list_format: Annotated[str | None, RARE] = None
    """Format of the lists, needed only if it cannot be detected. The error message then names the candidates."""
    group: str | None = None
    """Support and query of a task never share a group, such as a person or sequence. Name of a column of the split
    file, or a pattern of the video's path with parentheses around the group, such as "([^/_]+)_[^/]*$". None: no
    groups."""
    report: Annotated[Path | None, RARE] = None
    """The report.csv of dmgal prepare. Videos listed there as bad are treated as such from the start."""
    on_bad_video: Annotated[OnBadVideo, RARE] = "error"
    """What to do if a video is missing or unreadable. error: stop. skip: continue without it and report it."""
    generate: Literal["no"] | GeneratedSet = "no"
    """Generate this data set in root, which must be absent, empty or this data set. It has its own split file."""
    motion_world: Annotated[Path | None, RARE] = None
    """Every second training task is one of the base classes of motion world, generated in this folder if they are not
    there yet. For an adapter that continues on few classes, see adapter.start. None: no such tasks."""
    seed: Annotated[int, Range(0, SEEDS)] = 0
    """Seed of the generated data set, and of the random split into classes if the data has no split."""
    num_frames: Annotated[int, Range(1, 1024)] = 8
    """Frames per clip."""
    flip: bool = False
    """Mirror half of the training clips. Not allowed if classes differ by left and right."""
    may_flip: Annotated[bool, RARE] = True
    """A mirrored clip keeps its label. Set to false by data sets with left and right in their labels."""
    crop_scale: Annotated[tuple[float, float], Range(1e-3, 1)] = (1.0, 1.0)
    """Smallest and largest share of the frame's area in a training crop. 1 1: center crop."""
    color_jitter: Annotated[float, Range(0, 1)] = 0.0
    """Brightness, contrast and saturation of a training clip are each multiplied by a random factor, 1 ± this number.
    0: none."""
    test_resize: Annotated[float, Range(1, 8), RARE] = 1.0
    """Short side of test frames before the center crop, as a multiple of the backbone's input size."""
    keep_in_memory: bool = False
    """Keep videos in memory once they are decoded: for training up to 1 GiB in each loading process, for validation and
    test all clips. For small data sets."""
    decoder: Annotated[DecoderName, RARE] = "pyav"
    """Decoder of video files. decord returns wrong frames for some videos, see docs/performance.md."""
    store: Path | None = None
    """Folder of decoded frames, written by dmgal store. None: decode the videos each time."""
    num_workers: Annotated[int, Range(0, 256)] = 2
    """Number of data loading processes. 0: load in the training process."""

    def __post_init__(self) -> None:
        check_ranges("data", self)
        if self.flip and not self.may_flip:
            raise DmgalError(
                "This data set may not be mirrored.",
                received="data.flip: true",
                expected="data.flip: false, because its classes differ by left and right",
                remedy="Remove data.flip.",
            )
        if self.generate != "no" and self.split_file is not None:
            raise DmgalError(
                "Generated data have their own split file.",
                received=f"data.split_file: {self.split_file}, data.generate: {self.generate}",
                expected="one of the two",
                remedy="Remove the split file, or set data.generate to no to use it.",
            )

    @property
    def location(self) -> tuple[Path, Path | None]:
        """Absolute paths of the root and the split file, also that of a generated data set."""
        split_file = self.root / SPLIT_FILE if self.generate != "no" else self.split_file
        return self.root.resolve(), split_file and split_file.resolve()


@dataclass(frozen=True)
class BackboneConfig:
    """The foundation model."""

    name: str = "tiny-clip"
    """tiny-clip, open_clip:MODEL/WEIGHTS, hf:REPOSITORY, or a folder in the transformers format."""
    expert: str | None = None
    """Motion expert beside the frozen backbone: a bundled adapter such as tiny-clip-motion, the folder of an adapter,
    or that of a run with one. The head LateFusion weighs what both see. Nothing is trained. None: no expert."""
    pooling: Literal["patch_mean", "cls+patch_mean", "map"] | None = None
    """How the tokens of a frame become its feature. None: the backbone's own pooling."""
    trainable: bool = False
    """Fine-tune the whole backbone instead of freezing it."""
    freeze_batch_norm: Annotated[bool, RARE] = True
    """Keep the batch norm statistics of a trained backbone or head fixed."""
    checkpoint_blocks: Annotated[bool, RARE] = False
    """Save only the input of each block and recompute the rest in the backward pass. Less memory, more time."""
    dtype: Annotated[Literal["float32", "bf16"], RARE] = "float32"
    """Precision of frozen backbone weights during training. Trained weights stay in float32."""
    quantize: Quantization | None = None
    """Bits of the linear layers of a frozen backbone, see docs/backbones.md. Adapters keep their precision. None: as
    loaded."""

    def __post_init__(self) -> None:
        if self.quantize is not None and (self.trainable or self.dtype != "float32"):
            raise DmgalError(
                "A quantized backbone stays frozen, in one precision.",
                received=f"backbone.quantize: {self.quantize} with "
                + ("backbone.trainable: true" if self.trainable else f"backbone.dtype: {self.dtype}"),
                expected="either quantized weights, or trained weights, or another dtype",
                remedy="Remove backbone.quantize, or train an adapter on the frozen backbone in float32.",
            )


@dataclass(frozen=True)
class TextConfig:
    """The text tower in training. It requires a head that learns from text: ClipFSAR."""

    lora: Annotated[int | None, Range(1, 1024)] = None
    """Rank of a LoRA in the text tower, trained with everything else. Class names then have the text of the trained
    tower. None: the tower stays frozen."""

    def __post_init__(self) -> None:
        check_ranges("text", self)


@dataclass(frozen=True)
class EpisodeConfig:
    """Size of a training or validation task. Short flags: --ways, --shots and --queries."""

    n_way: Annotated[int, Range(1, TASKS)] = 5
    """Classes per task."""
    k_shot: Annotated[int, Range(1, TASKS)] = 1
    """Support videos per class."""
    n_query: Annotated[int, Range(1, TASKS)] = 2
    """Query videos per class."""

    def __post_init__(self) -> None:
        check_ranges("episode", self)


@dataclass(frozen=True)
class TrainConfig:
    """Optimizer, learning rate schedule, validation, checkpoints and logging of a run."""

    steps: Annotated[int, Range(0, STEPS)] = 600
    """Optimizer steps. 0: train nothing and evaluate the frozen backbone."""
    tasks_per_step: Annotated[int, Range(1, TASKS)] = 1
    """Tasks per optimizer step, summed over all processes. The result does not depend on the number of processes."""
    tasks_per_pass: Annotated[int | None, Range(1, TASKS), RARE] = None
    """Tasks per forward and backward pass on each process. Fewer tasks need less memory. None: all tasks of a step."""
    two_pass: Literal["no", "auto"] | int = "no"
    """The same gradients with less memory and more time: the videos of a task are encoded in chunks, and again in the
    backward pass. A number: videos per chunk. auto: all videos at once if memory_budget allows, else the largest chunk
    that fits. 1 with a tiny memory_budget needs the least memory. Requires frozen batch norms and unsharded weights
    (no FSDP)."""
    memory_budget: Annotated[float | None, Range(0, 10**6), RARE] = None
    """GB for encoding the videos of a task if two_pass is auto or a number. What the chunks leave free caches results
    for the backward pass. The savings are logged at the start. None: with auto most of the free memory, otherwise only
    the most expensive results are cached. Weights, gradients and optimizer state are not included."""
    frame_memory: Annotated[float | None, Range(0, 10**6), RARE] = None
    """GB on each process for what the frozen blocks before the first adapter make of each frame. A frame that was seen
    before then costs only the blocks from there on, and with a side network no block at all. Of no use for crops and
    colors that change. None: no memory."""
    optimizer: Optimizer = "adamw"
    """Optimizer of torch.optim. Older papers use adam and sgd."""
    momentum: Annotated[float, Range(0, 1), RARE] = 0.0
    """Momentum of sgd, less than 1."""
    learning_rate: Annotated[float, Range(0, 1e38)] = 4e-3
    """Peak learning rate of adapter and head."""
    backbone_learning_rate: Annotated[float, Range(0, 1e38)] = 1e-4
    """Peak learning rate of the backbone's own parameters if they are trained."""
    weight_decay: Annotated[float, Range(0, 10**3)] = 0.01
    """Applied to matrices only, not to biases, norms, gains and scales. adam and sgd add it to the gradient."""
    pull_to_start: Annotated[float, Range(0, 10**6), RARE] = 0.0
    """Decay of the trained weights towards their initial values, times the learning rate as for weight_decay. For an
    adapter that continues on few classes, see adapter.start. 0: none."""
    warmup_steps: Annotated[int, Range(0, STEPS)] = 30
    """Steps of linear learning rate warm-up."""
    schedule: Schedule = "cosine"
    """Learning rate schedule after the warm-up. cosine decays to zero. The others are those of transformers."""
    clip_norm: Annotated[float | None, Range(0, 10**9), RARE] = 1.0
    """Maximum gradient norm, more than 0. None: no clipping."""
    ema: float | None = None
    """Decay of an exponential moving average of the trained weights, between 0 and 1, such as 0.999. The average is
    validated and saved. None: no average."""
    loss_weights: Annotated[Mapping[str, float], tyro.conf.Suppress] = field(default_factory=dict)
    """Weights of the head's losses by name, e.g. {base_classes: 0.5}. Other losses keep the weights of the paper."""
    measure_head_norms: Annotated[bool, RARE] = False
    """Initialize the frozen batch norms of a new head with the statistics of the first task. Otherwise they have unit
    variance."""
    precision: Precision = "float32"
    """bf16 and fp16: autocast with float32 weights. tf32: float32 with faster, less exact products on NVIDIA GPUs."""
    compile: bool = False
    """Compile the backbone's blocks with torch.compile. Measure first: it does not always pay off."""
    validate_every: Annotated[int, Range(1, STEPS)] = 200
    """Steps between validations."""
    validation_episodes: Annotated[int, Range(1, 10**6)] = 500
    """Episodes per validation."""
    patience: Annotated[int | None, Range(1, STEPS)] = None
    """Stop after this many validations without improvement. None: never stop early."""
    checkpoint_every: Annotated[int, Range(1, STEPS), RARE] = 100
    """Steps between checkpoints."""
    keep_checkpoints: Annotated[int, Range(1, STEPS), RARE] = 2
    """Number of newest checkpoints to keep. An older one is the fallback if the newest is damaged."""
    on_bad_loss: Annotated[Literal["skip", "stop"], RARE] = "skip"
    """What to do if a loss or gradient is not finite, or a loss explodes. skip: skip the step and count it."""
    max_bad_losses: Annotated[int, Range(1, STEPS), RARE] = 10
    """Stop after this many skipped steps in a row."""
    tracker: Tracker | None = None
    """Also send the log to this tracker through Accelerate. Its package must be installed."""
    seed: Annotated[int, Range(0, SEEDS)] = 0
    """Seed of initialization, episodes and augmentation."""

    def __post_init__(self) -> None:
        check_ranges("train", self)
        check_options("train.loss_weights", self.loss_weights)
        if isinstance(self.two_pass, int) and not 1 <= self.two_pass <= STEPS:
            raise out_of_range("train", "two_pass", self.two_pass, "no, auto, or at least 1")
        if self.memory_budget is not None and not self.memory_budget > 0:
            raise out_of_range("train", "memory_budget", self.memory_budget, "more than 0 GB, or null")
        if not 0 <= self.momentum < 1:
            raise out_of_range("train", "momentum", self.momentum, "at least 0 and less than 1")
        if self.momentum and self.optimizer != "sgd":
            raise DmgalError(
                f"`train.momentum` requires `train.optimizer=sgd`, got `{self.optimizer}`.",
                received=f"train.momentum: {self.momentum}, train.optimizer: {self.optimizer}",
                expected="train.optimizer: sgd, or no momentum",
                remedy="Remove train.momentum or use sgd.",
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise out_of_range("train", "ema", self.ema, "a decay between 0 and 1, or null")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise out_of_range("train", "clip_norm", self.clip_norm, "more than 0, or null")


@dataclass(frozen=True)
class Recipe:
    """All settings that determine a run."""

    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    adapter: Annotated[Mapping[str, Any] | None, tyro.conf.Suppress] = None
    """PEFT config by its ``peft_type`` and fields, e.g. ``{peft_type: DMGAL, bottleneck: 24}``. ``{start: NAME}``
    continues a trained adapter, by its name or its folder. None: no adapter."""
    head: Annotated[Mapping[str, Any], tyro.conf.Suppress] = field(default_factory=lambda: {"name": "BiMHM"})
    """Class of ``dmgal.episodes.heads`` by its name and arguments."""
    text: TextConfig = field(default_factory=TextConfig)
    episode: EpisodeConfig = field(default_factory=EpisodeConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if self.backbone.expert is not None and (self.adapter is not None or self.backbone.trainable):
            raise DmgalError(
                "A motion expert stands beside a frozen backbone.",
                received="backbone.expert with an adapter or a trainable backbone",
                expected="either an expert, or an adapter or a backbone to train",
                remedy="Remove the adapter, or train it without backbone.expert and then pass the run as the expert.",
            )
        if self.backbone.quantize is not None and self.train.precision == "float64":
            raise DmgalError(
                "A quantized backbone computes in float32.",
                received=f"backbone.quantize: {self.backbone.quantize} with train.precision: float64",
                expected="another precision",
                remedy="Remove backbone.quantize or train.precision.",
            )
        check_options("adapter", self.adapter or {})
        check_options("head", self.head)

    @property
    def is_continued(self) -> bool:
        """True if the adapter is a trained one to continue from."""
        return "start" in (self.adapter or {})


def _expand_short_flag(flag: str) -> str:
    name, equals, value = flag.partition("=")
    return SHORT_FLAGS.get(name, name) + equals + value


def parse(argv: Sequence[str] | None, *, prog: str, description: str, wrapper: type[Any]) -> tuple[Any, list[str]]:
    """Return the options of a command, including its ``recipe``, and the names of the layers in ``argv``.

    Args:
        wrapper: a dataclass with a field ``recipe`` and the command's own options.

    Raises:
        DmgalError: a layer or key is unknown, or a value has the wrong type.
        SystemExit: after ``--help``, or with code 2 if a flag is refused.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    first_flag = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    names, flags = words[:first_flag], words[first_flag:]
    flags, open_options = split_open_flags([_expand_short_flag(flag) for flag in flags], OPEN_SECTIONS)
    tree = merge_layers([*(read_layer(name) for name in names), open_options])
    options = read_options(
        wrapper,
        flags,
        prog,
        f"{description}\n\nBundled layers: {', '.join(bundled_layers())}.\n\n"
        "Short flags for episode options: --ways, --shots, --queries. "
        "Adapters and heads have options of their own: --adapter.OPTION VALUE, --head.OPTION VALUE. "
        "--adapter.start NAME continues a trained adapter. "
        "Weights of a head's losses: --train.loss-weights.LOSS WEIGHT.",
        default=wrapper(recipe=from_mapping(Recipe, tree)),
        config=(tyro.conf.AvoidSubcommands,),
    )
    check_ranges("", options)
    return options, names


@dataclass(frozen=True)
class DataOverrides:
    """Data settings that differ from training. None: as in training."""

    root: Path | None = None
    """Folder of the videos."""
    split_file: Path | None = None
    """CSV with the columns split, class_name and video, a list file, or a folder of lists."""
    group: str | None = None
    """Support and query of a task never share a group: a column of the split file, or a pattern with parentheses."""
    report: Annotated[Path | None, RARE] = None
    """The report.csv of dmgal prepare."""
    store: Path | None = None
    """Folder of decoded frames, written by dmgal store."""
    on_bad_video: Annotated[OnBadVideo | None, RARE] = None
    """What to do if a video is missing or unreadable. error: stop. skip: continue without it and report it."""
    num_workers: Annotated[int | None, Range(0, 256)] = None
    """Number of data loading processes."""

    @property
    def is_other_data(self) -> bool:
        """True if the root or the split file is overridden."""
        return self.root is not None or self.split_file is not None

    def over(self, recipe: Recipe) -> Recipe:
        """Return the recipe with its data settings replaced by those that are not None.

        Another root or split file switches generation off. A generated data set in the root keeps its split file.
        """
        overrides = {name: value for name, value in vars(self).items() if value is not None}
        if self.is_other_data and recipe.data.generate != "no":
            overrides["generate"] = "no"
            manifests = [(self.root or recipe.data.root) / f"{name}.json" for name in get_args(GeneratedSet)]
            if self.split_file is None and any(manifest.is_file() for manifest in manifests):
                overrides["split_file"] = manifests[0].parent / SPLIT_FILE
        return replace(recipe, data=replace(recipe.data, **overrides))


@dataclass(frozen=True)
class TargetData(DataOverrides):
    """Other data with a split of its own: the split file in its root, or else its folders."""

    def over(self, recipe: Recipe) -> Recipe:
        """Return the recipe with the data settings replaced. Nothing of the training data's lists or groups remains."""
        assert self.root is not None
        data = super().over(recipe).data
        own = self.root / SPLIT_FILE
        split_file = self.split_file or (own if own.is_file() else None)
        data = replace(data, split_file=split_file, list_format=None, group=self.group)
        data = replace(data, report=self.report, store=self.store)
        return replace(recipe, data=data)

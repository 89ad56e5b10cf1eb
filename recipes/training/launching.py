"""Who runs a training: how many processes were asked for and how many came, and the line that says so.

``accelerate launch --cpu --num_processes 2`` starts one process without a word; here it gets one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import Accelerator, PartialState
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, parse_flag_from_env

from dmgal.episodes import FewShotRecognizer
from dmgal.recipes.build import count_parameters
from dmgal.recipes.config import Precision, Recipe
from dmgal.recipes.training.precision import autocast_of

COUNTS = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
"""In which launchers leave the number of processes that they start."""
ASKED_PRECISION = "ACCELERATE_MIXED_PRECISION"
"""In which ``accelerate launch`` leaves the precision that it was asked for."""


def make_accelerator(recipe: Recipe, project: Path, trackers: Sequence[Any] = ()) -> Accelerator:
    """Accelerate for a recipe, under any launcher.

    Args:
        recipe: its precision, its tracker.
        project: the run folder, where TensorBoard writes.
        trackers: objects of Accelerate's ``GeneralTracker``, beside the recipe's.
    """
    on_cpu = _belongs_on_cpu()
    process = PartialState(cpu=True) if on_cpu else PartialState()
    half = autocast_of(recipe, process.device)
    if process.num_processes == 1:  # a program may train twice, each time in other numbers
        AcceleratorState._reset_state(reset_partial_state=True)
    # A trained backbone may have parts that the pooling does not read. And where DDP looks for such, it keeps its first
    # buckets; else it makes others after the first step, and a resumed run would add gradients in another order.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    wanted = [*([recipe.train.tracker] if recipe.train.tracker else []), *trackers]
    accelerator = Accelerator(
        mixed_precision=half,
        cpu=on_cpu,
        kwargs_handlers=[unused],
        log_with=wanted or None,
        project_dir=str(project),
    )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = recipe.train.tasks_per_step // accelerator.num_processes
        config["gradient_clipping"] = recipe.train.clip_norm or 0.0
    return accelerator


def _belongs_on_cpu() -> bool:
    """As Accelerate's launcher was told; or several processes without devices that can work together.

    Accelerate has to be told of the latter, or each would train by itself.
    """
    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        return True
    device = torch.accelerator.current_accelerator()
    alone = device is None or not torch.accelerator.is_available() or device.type == "mps"
    return alone and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_launcher(parent: int) -> bool:
    """Whether the parent process is torchrun or ``accelerate launch``, whose end should be this process's."""
    return "TORCHELASTIC_RUN_ID" in os.environ or _is_accelerate(_command_line(parent))


def asked_processes() -> int:
    """How many processes the launcher was asked for; 1 where there is no launcher."""
    told = [int(os.environ[name]) for name in COUNTS if os.environ.get(name, "").isdigit()]
    told += _of_accelerate(_command_line(os.getppid()))
    if {"MASTER_ADDR", ASKED_PRECISION} <= os.environ.keys() and "WORLD_SIZE" not in os.environ:
        told.append(2)  # accelerate launch sets the one without the other where it was asked for several
    return max(told, default=1)


def warn_of_missing(accelerator: Accelerator) -> None:
    """Tells on the main process where fewer processes came than were asked for."""
    asked, came = asked_processes(), accelerator.num_processes
    if came < asked and accelerator.is_main_process:
        print(
            f"warning: {asked} processes were asked for, {came} came. On CPUs start several with "
            f"'torchrun --nproc_per_node {asked} -m dmgal.recipes.train ...' "
            f"or 'accelerate launch --multi_gpu --num_processes {asked} -m dmgal.recipes.train ...'",
            file=sys.stderr,
            flush=True,
        )


def warn_of_precision(accelerator: Accelerator, recipe: Recipe) -> None:
    """Tells on the main process where the launcher was asked for numbers that are not the recipe's, which hold."""
    asked, holds = os.environ.get(ASKED_PRECISION, "no"), recipe.train.precision
    if asked not in ("no", holds) and accelerator.is_main_process:
        print(
            f"warning: the launcher was asked for {asked}, the recipe for {holds}, which holds. "
            f"--train.precision chooses one of {', '.join(get_args(Precision))}",
            file=sys.stderr,
            flush=True,
        )


def start_line(accelerator: Accelerator, recipe: Recipe, recognizer: FewShotRecognizer) -> str:
    """Processes, device, precision, global batch, and what is trained."""
    trained, everything = (count_parameters(recognizer, trained_only=only) for only in (True, False))
    episode, tasks, device = recipe.episode, recipe.train.tasks_per_step, accelerator.device.type
    name = f" ({torch.cuda.get_device_name()})" if device == "cuda" else ""
    videos = tasks * episode.n_way * (episode.k_shot + episode.n_query)
    backbone = ", backbone in bf16" if recipe.backbone.dtype == "bf16" else ""
    way = {"FSDP": " with FSDP", "DEEPSPEED": " with DeepSpeed"}.get(str(accelerator.distributed_type.value), "")
    return (
        f"{accelerator.num_processes} process(es) on {device}{name}{way}, "
        f"{recipe.train.precision}{backbone}, {tasks} task(s) a step of {videos} videos, "
        f"{trained:,} of {everything:,} parameters trained"
    )


def _command_line(process: int) -> list[str]:
    """The arguments of another process, where the system tells them in a file."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _is_accelerate(words: list[str]) -> bool:
    """Whether a command line is ``accelerate launch`` in one of its forms, not what merely lies in such a folder."""
    return any(
        word.startswith("accelerate.commands.launch") or Path(word).name in ("accelerate", "accelerate-launch")
        for word in words[:8]
    )


def _of_accelerate(words: list[str]) -> list[int]:
    """What ``accelerate launch`` was asked for by its flags, else by its config file."""
    if not _is_accelerate(words):
        return []
    options = _options(words)
    if "num_processes" in options:
        return [int(options["num_processes"])] if options["num_processes"].isdigit() else []
    file = options.get("config_file") or (None if "--cpu" in words else default_config_file)
    if file is None or not Path(file).is_file():
        return []
    return [load_config_from_file(file).num_processes]


def _options(words: list[str]) -> dict[str, str]:
    """Flags with a value, by name with underscores; the launcher's stand before those of the script."""
    found: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            found.setdefault(name[2:].replace("-", "_"), value if equals else following)
    return found

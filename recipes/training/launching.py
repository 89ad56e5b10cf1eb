"""Start of a training: Accelerate, precision and compilation, with a line that describes them.

A launcher may ignore a request: ``accelerate launch --cpu --num_processes 2`` silently starts one process.
``warn_of_launcher`` reports this as far as environment variables show it.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, parse_flag_from_env
from torch.nn.modules.batchnorm import _BatchNorm

from dmgal.adapters import is_added
from dmgal.episodes import FewShotRecognizer
from dmgal.errors import DmgalError
from dmgal.recipes.run.build import count_parameters, dtype_of
from dmgal.recipes.run.config import Precision, Recipe
from dmgal.recipes.training.fsdp import blocks_of

COUNTS = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
"""Environment variables in which launchers pass the number of processes."""
REQUESTED_PRECISION = "ACCELERATE_MIXED_PRECISION"
"""Environment variable in which ``accelerate launch`` passes the requested precision."""


def make_accelerator(recipe: Recipe, project: Path, trackers: Sequence[object] = ()) -> Accelerator:
    """Return the ``Accelerator`` for a recipe, under any launcher.

    Args:
        recipe: the recipe, of which precision, tracker and DeepSpeed options are used.
        project: the run folder, where TensorBoard writes.
        trackers: ``GeneralTracker`` objects of Accelerate, in addition to the recipe's tracker.
    """
    _ignore_harmless_warnings()
    on_cpu = _belongs_on_cpu()
    process = PartialState(cpu=True) if on_cpu else PartialState()
    mixed_precision = autocast_of(recipe, process.device)
    if process.num_processes == 1:  # one program may train twice with different precisions
        AcceleratorState._reset_state(reset_partial_state=True)
    # A trained backbone may have parameters that the pooling does not read. The search for unused parameters also makes
    # DDP keep its first buckets. Otherwise it rebuilds them after the first step, and a resumed run would add gradients
    # in a different order.
    find_unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    all_trackers = [recipe.train.tracker, *trackers] if recipe.train.tracker else list(trackers)
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        cpu=on_cpu,
        kwargs_handlers=[find_unused],
        log_with=all_trackers or None,
        project_dir=str(project),
    )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = recipe.train.tasks_per_step // accelerator.num_processes
        config["gradient_clipping"] = recipe.train.clip_norm or 0.0
    return accelerator


def _ignore_harmless_warnings() -> None:
    for message in (
        "Grad strides do not match bucket view strides",  # depth-wise convolutions differ from DDP's buckets
        "find_unused_parameters=True was specified",  # on purpose, see make_accelerator
        "FSDP2-wrapped module",  # about in-place writes to reshaped block outputs, which never happen here
        r".*`optimizer\.step\(\)`",  # the schedule also counts skipped steps and those that the fp16 scaler controls
    ):
        warnings.filterwarnings("ignore", message=message)


def _belongs_on_cpu() -> bool:
    """Return True if the launcher requested the CPU, or if several processes have no devices that can communicate.

    Without the second condition, Accelerate would let each of these processes train by itself.
    """
    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        return True
    device = torch.accelerator.current_accelerator()
    cannot_communicate = device is None or not torch.accelerator.is_available() or device.type == "mps"
    return cannot_communicate and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_launched() -> bool:
    """Return True if torchrun or ``accelerate launch`` started this process, which should then end with its parent."""
    return "TORCHELASTIC_RUN_ID" in os.environ or REQUESTED_PRECISION in os.environ


def requested_processes() -> int:
    """Return the smallest number of processes that the launcher may have been asked for, or 1 without a launcher."""
    counts = [int(os.environ[name]) for name in COUNTS if os.environ.get(name, "").isdigit()]
    if {"MASTER_ADDR", REQUESTED_PRECISION} <= os.environ.keys() and "WORLD_SIZE" not in os.environ:
        counts.append(2)  # accelerate launch sets an address, but no number, if it was asked for several processes
    return max(counts, default=1)


def warn_of_launcher(accelerator: Accelerator, recipe: Recipe) -> None:
    """Warn on the main process if the launcher requested more processes than started, or another precision."""
    if not accelerator.is_main_process:
        return
    requested, started = requested_processes(), accelerator.num_processes
    if started < requested:
        print(
            f"warning: at least {requested} processes were requested, {started} started. On CPUs, start several with "
            f"'torchrun --nproc_per_node {requested} -m dmgal.recipes.train ...' "
            f"or 'accelerate launch --multi_gpu --num_processes {requested} -m dmgal.recipes.train ...'.",
            file=sys.stderr,
            flush=True,
        )
    precision = os.environ.get(REQUESTED_PRECISION, "no")
    if precision not in ("no", recipe.train.precision):
        print(
            f"warning: the launcher requests precision {precision}, the recipe {recipe.train.precision}. The recipe's "
            f"is used. Set --train.precision to one of {', '.join(get_args(Precision))}.",
            file=sys.stderr,
            flush=True,
        )


def start_line(accelerator: Accelerator, recipe: Recipe, recognizer: FewShotRecognizer) -> str:
    """Describe processes, device, precision, global batch and number of trained parameters in one line."""
    num_trained = count_parameters(recognizer, trained_only=True)
    num_parameters = count_parameters(recognizer, trained_only=False)
    episode, tasks, device = recipe.episode, recipe.train.tasks_per_step, accelerator.device.type
    name = f" ({torch.cuda.get_device_name()})" if device == "cuda" else ""
    videos = tasks * episode.n_way * (episode.k_shot + episode.n_query)
    backbone = ", backbone in bf16" if recipe.backbone.dtype == "bf16" else ""
    if recipe.backbone.quantize is not None:
        backbone = f", backbone in {recipe.backbone.quantize}"
    strategy = {"FSDP": " with FSDP", "DEEPSPEED": " with DeepSpeed"}.get(str(accelerator.distributed_type.value), "")
    return (
        f"{accelerator.num_processes} process(es) on {device}{name}{strategy}, "
        f"{recipe.train.precision}{backbone}, {tasks} task(s) a step of {videos} videos, "
        f"{num_trained:,} of {num_parameters:,} parameters trained"
    )


def autocast_of(recipe: Recipe, device: torch.device) -> str:
    """Return the mixed precision for Accelerate.

    Raises:
        DmgalError: the device does not support the precision, or the backbone's dtype does not fit it.
    """
    precision = recipe.train.precision
    if precision == "fp16" and device.type == "cpu":
        raise DmgalError(
            "This precision needs a GPU.",
            received="train.precision: fp16 on a CPU",
            expected="float32, float64 or bf16",
            remedy="Pass --train.precision bf16.",
        )
    if recipe.backbone.dtype == "bf16" and (recipe.backbone.trainable or precision in ("float64", "fp16")):
        raise DmgalError(
            "A bf16 backbone must be frozen, and training must use float32, tf32 or bf16.",
            received=f"backbone.dtype: bf16, trainable: {recipe.backbone.trainable}, train.precision: {precision}",
            expected="backbone.trainable: false, and train.precision float32, tf32 or bf16",
            remedy="Remove backbone.dtype. Autocast (--train.precision bf16) computes in bf16 from float32 weights.",
        )
    return precision if precision in ("bf16", "fp16") else "no"


def set_precision(recipe: Recipe, recognizer: FewShotRecognizer, accelerator: Accelerator) -> None:
    """Move a recognizer to its device and dtype, and allow TF32 products if the recipe asks for them."""
    use_tf32 = recipe.train.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = use_tf32
    recognizer.to(accelerator.device, dtype_of(recipe.train.precision))
    if recipe.backbone.dtype == "bf16":
        for path, module in recognizer.encoder.backbone.named_modules():
            for name, parameter in module.named_parameters(path, recurse=False):
                if not is_added(name) and not isinstance(module, _BatchNorm):  # statistics stay in float32, too
                    parameter.data = parameter.data.to(torch.bfloat16)


def compile_blocks(recognizer: FewShotRecognizer) -> None:
    """Compile every block of the backbone in place, so that parameter names and saved weights stay the same."""
    for module in blocks_of(recognizer.encoder) or [recognizer.encoder.backbone]:
        module.compile()

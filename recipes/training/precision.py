"""Precision of weights, matrix products and autocast, and compilation of the blocks."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch.nn.modules.batchnorm import _BatchNorm

from dmgal.episodes import FewShotRecognizer
from dmgal.errors import DmgalError
from dmgal.recipes.build import dtype_of
from dmgal.recipes.config import Recipe
from dmgal.recipes.saving.weights import is_added
from dmgal.recipes.training.fsdp import blocks_of


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
    for module in blocks_of(recognizer) or [recognizer.encoder.backbone]:
        module.compile()

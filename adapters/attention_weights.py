"""Exact weights of torch's attention below PEFT's LoRA.

``nn.MultiheadAttention`` has no layers to wrap. In each call, PEFT adds the LoRA's product to its weights and subtracts
it afterwards. Rounding errors remain and add up in training. A resumed run loads the weights again, without them.
"""

from __future__ import annotations

from typing import Any

from peft.tuners.lora.layer import MultiheadAttention
from torch import nn


def keep_attention_weights(model: nn.Module) -> None:
    """Let each of PEFT's LoRA layers around torch's attention restore the weights that it had before a call."""
    for module in model.modules():
        if isinstance(module, MultiheadAttention):
            module.register_forward_pre_hook(_remember)
            module.register_forward_hook(_restore, always_call=True)


def _remember(layer: Any, inputs: tuple[object, ...]) -> None:
    if not layer.merged:  # otherwise a call with disabled adapters takes the LoRA out of the weights for good
        attention = layer.get_base_layer()
        layer.weights_before = attention.in_proj_weight, attention.out_proj.get_base_layer().weight


def _restore(layer: Any, inputs: tuple[object, ...], output: object) -> None:
    if "weights_before" in vars(layer):
        attention = layer.get_base_layer()
        attention.in_proj_weight, attention.out_proj.get_base_layer().weight = layer.weights_before
        del layer.weights_before

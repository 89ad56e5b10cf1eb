"""LoRA in a text tower (Hu et al., ICLR 2022), by PEFT, and the tower as a part of a model that is trained.

    encoder = add_text_lora(load_text_encoder("tiny-clip"), rank=8)
    tower = TextTower(encoder)  # its parameters that require gradients are those of the LoRA
    encoder.model.save_pretrained("text")

A new LoRA changes no feature, because one of its two factors starts at zero.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import peft
import torch
from torch import Tensor, nn

from ..backbones.called_layers import recording
from ..backbones.text import ClassTexts, TextEncoder, class_features
from ..errors import DmgalError
from .attention_weights import keep_attention_weights
from .targets import METHODS

ALPHA = 2
"""Scale of the LoRA's output, as in ``method/lora``: ``lora_alpha`` by rank."""


def text_layers(encoder: TextEncoder) -> list[str]:
    """Return the names of the layers that LoRA adapts: those that the blocks of the tower call for a text.

    Raises:
        DmgalError: they have no such layers.
    """
    kinds = METHODS["LORA"].preferred
    with torch.no_grad(), recording([encoder.model], kinds) as called:
        encoder.encode([""])
    names = [name for name, layer in encoder.model.named_modules() if layer in called]
    in_blocks = sorted(name for name in names if any(part.isdigit() for part in name.split(".")))
    if not in_blocks:
        raise DmgalError(
            "LoRA is not supported in this text tower.",
            received=f"{encoder.name}: blocks that call no layer of the kind "
            + " or ".join(kind.__name__ for kind in kinds),
            expected="a CLIP of open_clip or transformers, a SigLIP, or tiny-clip",
            remedy="Remove text.lora, or choose another backbone.",
        )
    return in_blocks


def add_text_lora(encoder: TextEncoder, rank: int) -> TextEncoder:
    """Return the encoder with a new LoRA in its tower. Only the LoRA requires gradients."""
    config = peft.LoraConfig(r=rank, lora_alpha=ALPHA * rank, target_modules=text_layers(encoder))
    tower: Any = encoder.model
    model = peft.get_peft_model(tower, config)
    config.base_model_name_or_path = encoder.name  # PEFT sets that of transformers
    return _with_lora(encoder, model)


def load_text_lora(encoder: TextEncoder, folder: str) -> TextEncoder:
    """Return the encoder with a saved LoRA in its tower. All of it is frozen."""
    return _with_lora(encoder, peft.PeftModel.from_pretrained(encoder.model, folder))


def _with_lora(encoder: TextEncoder, model: nn.Module) -> TextEncoder:
    """Return the encoder whose tower is wrapped by PEFT. ``embed`` calls the tower inside, which has the LoRA."""
    keep_attention_weights(model)
    return replace(encoder, model=model.eval())


class TextTower(nn.Module):
    """The text tower of an encoder as a module, in evaluation mode also in training."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.model = encoder.model

    def forward(self, texts: ClassTexts) -> Tensor:
        """Return the features ``(C, D)`` of classes by the current weights, with the prompts of ``texts``."""
        return class_features(self.encoder, texts.prompts())

    def train(self, mode: bool = True) -> TextTower:
        """Stay in evaluation mode, because the tower is frozen."""
        return super().train(False)

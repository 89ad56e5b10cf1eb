"""Small CLIP and SigLIP models with a text tower."""

from __future__ import annotations

import tiny_backbones
import torch
import transformers

from dmgal.backbones.tiny_clip import FOLDER


def save_transformers(folder, name):
    """Save a small random CLIP or SigLIP of transformers with the tokenizer of tiny-clip."""
    torch.manual_seed(0)
    text = {**tiny_backbones._TEXT, "vocab_size": 53, "eos_token_id": 52, "bos_token_id": 2, "pad_token_id": 0}
    sizes = {"text_config": {**text, "max_position_embeddings": 12}, "vision_config": tiny_backbones._VISION}
    if name == "Siglip":
        sizes["text_config"]["projection_size"] = tiny_backbones.WIDTH
    config = getattr(transformers, f"{name}Config")(**sizes, projection_dim=16)
    model = getattr(transformers, f"{name}Model")(config).eval()
    if name == "Siglip":
        model.logit_bias.data.fill_(-10.0)
        model.logit_scale.data.fill_(2.0)
    model.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    tokenizer.save_pretrained(folder)
    return model, tokenizer

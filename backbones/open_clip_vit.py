"""open_clip's towers: the visual one, alone or inside a CLIP (its own, or one of timm's), and the text tower."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import timm_vit
from .preprocessing import OPENAI, fill_normalization
from .spec import BackboneSpec, BlockParts, require_hub, unknown_name
from .text import TextEncoder


def load(name: str) -> Any:
    """Load the visual tower of ``MODEL``, ``MODEL/WEIGHTS`` or ``local-dir:FOLDER``."""
    return _load_both_towers(name).visual.eval()


def load_text(name: str) -> TextEncoder:
    """Load the text tower of ``MODEL``, ``MODEL/WEIGHTS`` or ``local-dir:FOLDER``."""
    import open_clip

    model = _load_both_towers(name)
    tokenizer = open_clip.get_tokenizer(name if name.startswith("local-dir:") else name.partition("/")[0])
    return text_encoder(model, tokenizer)


def text_encoder(model: Any, tokenizer: Any, name: str = "open_clip") -> TextEncoder:
    """Return the text encoder of a CLIP of this library and its tokenizer. The CLIP loses its visual tower."""
    model.visual = nn.Identity()
    inner = getattr(tokenizer, "tokenizer", None)  # that of transformers, if open_clip wraps one

    def tokens(text: str) -> list[int]:
        if inner is not None:
            return list(inner(tokenizer.clean_fn(text) if hasattr(tokenizer, "clean_fn") else text)["input_ids"])
        return [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]

    return TextEncoder.of(
        model,
        name=name,
        context_length=tokenizer.context_length,
        tokens=tokens,
        embed=lambda texts: model.encode_text(tokenizer(texts).to(model.logit_scale.device)),
        unknown_token=getattr(inner, "unk_token_id", None),
    )


def _load_both_towers(name: str) -> Any:
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    if name.startswith("local-dir:"):
        return open_clip.create_model(name)
    model, _, weights = name.partition("/")
    example = "open_clip:ViT-B-16/openai"
    if model not in open_clip.list_models():
        raise unknown_name("open_clip", "model", model, "open_clip.list_models()", example)
    if weights and not Path(weights).is_file():
        known = open_clip.list_pretrained_tags_by_model(model)
        if weights.lower().replace("-", "_") not in known:
            raise unknown_name("open_clip", f"weights of {model}", weights, ", ".join(known), example)
        require_hub()
    # By default, open_clip uses another activation for OpenAI's weights than they were trained with.
    quick = get_pretrained_cfg(model, weights).get("quick_gelu", False)
    return open_clip.create_model(model, pretrained=weights or None, force_quick_gelu=quick)


def describe(model: nn.Module) -> BackboneSpec | None:
    """Return the spec of a model of this library, or None for any other model."""
    if not type(model).__module__.startswith("open_clip."):
        return None
    tower = getattr(model, "visual", model)
    spec = _describe_around_timm(tower) if hasattr(tower, "trunk") else _describe_tower(tower)
    return spec.inside("visual") if spec and tower is not model else spec


def _describe_around_timm(tower: Any) -> BackboneSpec | None:
    spec = timm_vit.describe(tower.trunk)
    if spec is None or hasattr(tower.head, "pool"):  # the pooling of maps is for convolutional networks
        return None
    mean, std = _normalization(tower)
    inside = spec.inside("trunk")
    return replace(inside, library="open_clip", mean=mean, std=std, project=partial(_project_twice, inside.project))


def _describe_tower(tower: Any) -> BackboneSpec | None:
    if not all(hasattr(tower, part) for part in ("transformer", "ln_pre", "ln_post", "_embeds", "_pool")):
        return None
    if tower.attn_pool is not None:  # CoCa's attentional pooling returns no patch tokens
        return None
    mean, std = _normalization(tower)
    return BackboneSpec(
        library="open_clip",
        blocks="transformer.resblocks",
        num_blocks=len(tower.transformer.resblocks),
        width=tower.transformer.width,
        batch_first=tower.transformer.batch_first,
        num_prefix_tokens=1,
        grid=tuple(tower.grid_size),
        image_size=tuple(tower.image_size),
        mean=mean,
        std=std,
        pools_prefix=tower.pool_type == "tok",
        patch_embedding="conv1",
        stem=_stem,
        run_block=_run_block,
        pool=_pool,
        norm=_norm,
        project=_project,
        parts=BlockParts("ln_1", "attn", "ln_2", "mlp"),
        attend=_attend,
    )


def _normalization(tower: object) -> Any:
    config = getattr(tower, "preprocess_cfg", {})
    return fill_normalization(OPENAI, config.get("mean"), config.get("std"))


def _stem(tower: Any, images: Tensor) -> Tensor:
    return tower._embeds(images)


def _run_block(tower: nn.Module, block: Any, tokens: Tensor) -> Tensor:
    """Run a block. In training and under autocast, its attention projects all tokens in one matrix product.

    ``nn.MultiheadAttention`` puts the batch second and projects a transposed view. If its weights are frozen, torch
    computes one small product for each token. On a CPU with 8 frames, this is 2 times slower than one product in
    float32 and 29 times in bf16. Evaluation in full precision is unchanged, so it is bit-identical to open_clip.
    """
    device = tokens.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    attention = getattr(block, "attn", None)
    if attention is None or torch.compiler.is_compiling() or not (autocast or block.training):
        return block(tokens)
    handle = attention.register_forward_pre_hook(_tokens_first, prepend=True)
    try:
        return block(tokens)
    finally:
        handle.remove()


def _tokens_first(attention: object, inputs: tuple[Any, ...]) -> tuple[object, ...] | None:
    """Return the same ``(B, N, C)`` tokens with the memory layout of ``(N, B, C)``, for self-attention only."""
    is_self_attention = bool(inputs) and all(tensor is inputs[0] for tensor in inputs)
    if not is_self_attention or not getattr(attention, "batch_first", False):
        return None
    tokens = inputs[0].transpose(0, 1).contiguous().transpose(0, 1)
    return (tokens,) * len(inputs)


def _attend(block: Any, tokens: Tensor) -> Tensor:
    if hasattr(block, "attention"):
        return block.attention(tokens)
    return block.attn(tokens)  # open_clip's block for options that CLIP did not have


def _pool(tower: Any, tokens: Tensor) -> Tensor:
    return tower._pool(tokens)[0]


def _norm(tower: Any, tokens: Tensor) -> Tensor:
    return tower.ln_post(tokens)


def _project(tower: Any, features: Tensor) -> Tensor:
    return features if tower.proj is None else features @ tower.proj


def _project_twice(first: Any, tower: Any, features: Tensor) -> Tensor:
    """Apply the projection of timm's model and then open_clip's head."""
    return tower.head(first(tower, features))

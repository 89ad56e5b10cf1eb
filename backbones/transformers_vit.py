"""ViTs of transformers and their text towers: CLIP, SigLIP, SigLIP 2, ViT, DeiT, ViT-MAE, DINOv2 and DINOv3.

They differ in names, in the prefix tokens and in the layers after the blocks. A table lists the names. DINOv2, DINOv3
and the NaFlex form of SigLIP 2 accept images of any size. The size is that of ``preprocessor_config.json`` if
``load_backbone`` found one, else the configuration's ``image_size`` (518 for most DINOv2 weights, which results in 1370
tokens), or the square of as many patches as SigLIP 2 has positions.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DmgalError
from ..files import listed, read_mapping
from .naflex import embed_images
from .preprocessing import HALF, IMAGENET, OPENAI, Normalization, Preprocessing
from .spec import BackboneSpec, BlockParts, require_hub, without_jitter
from .text import TextEncoder

_WITH_TEXT = ("clip", "siglip", "siglip2")
_PREPROCESSOR = "preprocessor_config.json"
_CLIP_PARTS = BlockParts("layer_norm1", "self_attn", "layer_norm2", "mlp")
_VIT_PARTS = BlockParts("layernorm_before", "attention", "layernorm_after", "mlp")
_DINO_PARTS = BlockParts("norm1", "attention", "norm2", "mlp")


def _stem(tower: Any, images: Tensor) -> Tensor:
    tokens = tower.embeddings(images)
    return tower.pre_layrnorm(tokens) if hasattr(tower, "pre_layrnorm") else tokens


def _embed_all_patches(tower: Any, images: Tensor) -> Tensor:
    """Embed images without the random masking of ViT-MAE, which would drop patches and shuffle the others."""
    embeddings = tower.embeddings
    positions = embeddings.position_embeddings
    patches = embeddings.patch_embeddings(images) + positions[:, 1:]
    class_token = (embeddings.cls_token + positions[:, :1]).expand(len(images), -1, -1)
    return torch.cat((class_token, patches), dim=1)


@dataclass(frozen=True)
class _Kind:
    """Module names, normalization and stem of one model type."""

    blocks: str
    norm: str
    patch_embedding: str
    parts: BlockParts
    normalization: Normalization
    any_size: bool = False
    takes_patches: bool = False
    stem: Callable[[Any, Tensor], Tensor] = _stem


_CLIP = _Kind("encoder.layers", "post_layernorm", "embeddings.patch_embedding", _CLIP_PARTS, OPENAI)
_VIT = _Kind("layers", "layernorm", "embeddings.patch_embeddings.projection", _VIT_PARTS, HALF)
_DINOV2 = _Kind("encoder.layer", "layernorm", _VIT.patch_embedding, _DINO_PARTS, IMAGENET, any_size=True)
_KINDS = {
    "clip_vision_model": _CLIP,
    "siglip_vision_model": replace(_CLIP, normalization=HALF),
    "siglip2_vision_model": replace(_CLIP, normalization=HALF, any_size=True, takes_patches=True, stem=embed_images),
    "vit": _VIT,
    "deit": replace(_VIT, normalization=IMAGENET),
    "vit_mae": replace(_VIT, normalization=IMAGENET, stem=_embed_all_patches),
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "dinov3_vit": replace(_DINOV2, blocks="model.layer", norm="norm", patch_embedding="embeddings.patch_embeddings"),
}


def load(source: str) -> Any:
    """Load a repository of the hub, or a folder in its format. CLIP and SigLIP lose their text tower."""
    import transformers

    if not os.path.isdir(source):
        require_hub()
    config: Any = transformers.AutoConfig.from_pretrained(source)
    kind: Any = transformers.AutoModel
    if config.model_type in ("clip", "clip_vision_model"):
        kind = transformers.CLIPVisionModelWithProjection
    if config.model_type == "clip":
        config.vision_config.projection_dim = config.projection_dim  # this one is right if the two differ
        config = config.vision_config
    if config.model_type == "siglip":
        kind, config = transformers.SiglipVisionModel, config.vision_config
    if config.model_type == "siglip2":
        kind, config = transformers.Siglip2VisionModel, config.vision_config
    with _quiet(transformers.logging):
        model, report = kind.from_pretrained(source, config=config, dtype=torch.float32, output_loading_info=True)
    model = _without_random_parts(model, report["missing_keys"], source)
    model.dmgal_preprocessing = _preprocessing(source)
    return model.eval()


def load_text(source: str) -> TextEncoder | None:
    """Load the text tower of a CLIP, SigLIP or SigLIP 2 and its tokenizer. Return None if there is none."""
    import transformers

    if not os.path.isdir(source):
        require_hub()
    config: Any = transformers.AutoConfig.from_pretrained(source)
    if config.model_type not in _WITH_TEXT:
        return None
    with _quiet(transformers.logging):
        auto: Any = transformers.AutoModel
        model, report = auto.from_pretrained(source, config=config, dtype=torch.float32, output_loading_info=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    if missing := [name for name in report["missing_keys"] if not name.startswith("vision_model.")]:
        raise _missing_weights(source, missing)
    return text_encoder(model, tokenizer)


def text_encoder(model: Any, tokenizer: Any, name: str = "hf") -> TextEncoder:
    """Return the text encoder of a CLIP or SigLIP and its tokenizer. The model loses its visual tower."""
    model.vision_model = nn.Identity()
    length = model.config.text_config.max_position_embeddings
    is_clip = model.config.model_type == "clip"

    def prepared(text: str) -> str:
        return text if is_clip else text.lower()  # SigLIP 2 was trained on lower case, and SigLIP lowers it itself

    def embed(texts: list[str]) -> Tensor:
        options = {"padding": "max_length", "max_length": length, "return_tensors": "pt"}  # as SigLIP was trained
        inputs = tokenizer([prepared(text) for text in texts], **options).to(model.logit_scale.device)
        mask = {"attention_mask": inputs["attention_mask"]} if is_clip else {}
        features: Tensor = model.get_text_features(input_ids=inputs["input_ids"], **mask).pooler_output
        return features

    return TextEncoder.of(
        model,
        name=name,
        context_length=length,
        tokens=lambda text: list(tokenizer(prepared(text))["input_ids"]),
        embed=embed,
        unknown_token=tokenizer.unk_token_id,
    )


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Suppress transformers' table of unused weights, e.g. of CLIP's text tower, and its progress bar.

    Missing weights are checked here.
    """
    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()


def _without_random_parts(model: Any, missing: Collection[str], source: str) -> Any:
    """Remove a head that was saved without its weights, because it would have random ones."""
    parts = {name.partition(".")[0] for name in missing}
    if parts == {"pooler"}:
        model.pooler = None
    elif parts == {"visual_projection"}:
        model = model.vision_model
    elif parts:
        raise _missing_weights(source, missing)
    return model


def _missing_weights(source: str, missing: Collection[str]) -> DmgalError:
    return DmgalError(
        "Weights of this backbone are missing.",
        received=f"{source} without {listed(sorted(missing))}",
        expected="a file with all weights of the model that config.json describes",
        remedy="Download or save the backbone again.",
    )


def _preprocessing(source: str) -> dict[str, object]:
    """Return the content of ``preprocessor_config.json``: image size, mean and standard deviation."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    path = Path(source) / _PREPROCESSOR
    if not os.path.isdir(source):
        try:
            path = Path(hf_hub_download(source, _PREPROCESSOR))
        except EntryNotFoundError:
            return {}
    if not os.path.lexists(path):
        return {}
    return read_mapping(path, "The preprocessing of this backbone cannot be read.", "Download the backbone again.")


def describe(model: nn.Module) -> BackboneSpec | None:
    """Return the spec of a model of this library, or None for any other model."""
    for path in ("", "vision_model", getattr(model, "base_model_prefix", "")):
        tower = getattr(model, path, None) if path else model
        kind = _KINDS.get(getattr(getattr(tower, "config", None), "model_type", ""))
        if kind and hasattr(tower, "embeddings"):
            spec = _describe_tower(tower, kind, Preprocessing(model))
            return replace(spec.inside(path), project=_project) if path else spec
    return None


def _describe_tower(tower: Any, kind: _Kind, preprocessor: Preprocessing) -> BackboneSpec:
    blocks = tower.get_submodule(kind.blocks)
    patch = (
        (tower.config.patch_size,) * 2 if kind.takes_patches else tower.get_submodule(kind.patch_embedding).kernel_size
    )
    side = math.isqrt(tower.config.num_patches) * patch[0] if kind.takes_patches else tower.config.image_size
    size = _image_size(side, kind, preprocessor)
    rotary = hasattr(tower, "rope_embeddings")
    mean, std = preprocessor.normalization(kind.normalization)
    return BackboneSpec(
        library="transformers",
        blocks=kind.blocks,
        num_blocks=len(blocks),
        width=tower.config.hidden_size,
        batch_first=True,
        num_prefix_tokens=_num_prefix_tokens(tower.embeddings),
        grid=(size[0] // patch[0], size[1] // patch[1]),
        image_size=size,
        mean=mean,
        std=std,
        pools_prefix=_has_class_token(tower.embeddings),
        patch_embedding=kind.patch_embedding,
        stem=kind.stem,
        run_block=_run_rotary_block if rotary else _run_block,
        pool=_pool,
        norm=_norm,
        project=identity,
        parts=kind.parts,
        attend=None if rotary else _attend,
        rotary=rotary,
    )


def _image_size(configured: object, kind: _Kind, preprocessor: Preprocessing) -> tuple[int, int]:
    return preprocessor.image_size(height_and_width(configured)) if kind.any_size else height_and_width(configured)


def height_and_width(configured: object) -> tuple[int, int]:
    """Return height and width from the ``image_size`` of a configuration, a number for a square or a pair."""
    sides = tuple(configured) if isinstance(configured, (list, tuple)) else (configured, configured)
    if len(sides) != 2:
        raise DmgalError(
            "The configuration of this backbone has no usable image size.",
            received=f"image_size: {configured!r}",
            expected="a number, or height and width",
            remedy="Correct config.json.",
        )
    return sides


def _has_class_token(embeddings: nn.Module) -> bool:
    return hasattr(embeddings, "class_embedding") or hasattr(embeddings, "cls_token")


def _num_prefix_tokens(embeddings: Any) -> int:
    registers = getattr(embeddings, "register_tokens", None)
    return (
        _has_class_token(embeddings)
        + hasattr(embeddings, "distillation_token")
        + (0 if registers is None else registers.shape[1])
    )


def _run_block(tower: nn.Module, block: nn.Module, tokens: Tensor) -> Tensor:
    return block(tokens, None)  # the second argument is the attention mask


def _run_rotary_block(tower: Any, block: nn.Module, tokens: Tensor) -> Tensor:
    weight = tower.embeddings.patch_embeddings.weight
    height, width = _image_size(tower.config.image_size, _DINOV2, Preprocessing(tower))
    positions = without_jitter(tower.rope_embeddings)(weight.new_empty(1).expand(1, 3, height, width))
    return block(tokens, None, position_embeddings=positions)


def _attend(block: nn.Module, tokens: Tensor) -> Tensor:
    attention: Any = block.self_attn if hasattr(block, "self_attn") else block.attention
    return attention(tokens, None)[0]


def _pool(tower: Any, tokens: Tensor) -> Tensor:
    if _has_class_token(tower.embeddings):
        normed = _norm(tower, tokens[:, :1])
        pooler = getattr(tower, "pooler", None)
        return normed[:, 0] if pooler is None else pooler(normed)
    if not hasattr(tower, "head"):
        raise DmgalError(
            "This backbone has no pooling of its own.",
            received=f"{type(tower).__qualname__} without a head",
            expected="a pooling of patch tokens",
            remedy="Choose pooling='patch_mean'.",
        )
    return tower.head(_norm(tower, tokens))


def _norm(tower: Any, tokens: Tensor) -> Tensor:
    kind = _KINDS[tower.config.model_type]
    return getattr(tower, kind.norm)(tokens)


def _project(model: nn.Module, features: Tensor) -> Tensor:
    projection: Any = getattr(model, "visual_projection", None)
    return features if projection is None else projection(features)


def identity(tower: nn.Module, features: Tensor) -> Tensor:
    """Return the features of a tower without a projection."""
    return features

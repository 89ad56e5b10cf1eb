"""transformers' backbones of videos: VideoMAE, V-JEPA 2, TimeSformer and ViViT.

Their blocks see the tokens of a whole clip. Time is resolved into steps: frames, or tubelets of some frames. Each step
has its own feature, the mean of its patches after the final norm. Adapters see the steps as they see the frames of
other backbones. A class token stands for the clip, and every step has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from .preprocessing import HALF, IMAGENET, Normalization, Preprocessing
from .shape import BlockSides, ClipShape
from .spec import BackboneSpec
from .transformers_vit import height_and_width, identity


@dataclass(frozen=True)
class _Kind:
    """Module names, configuration and order of tokens of one model type.

    Attributes:
        image_size, frames: fields of the configuration.
        embeds_mask: the second argument of the embeddings is a mask.
        mask: the second argument of a block is a mask.
        time_first: patches are ordered by step and then by position, not by position and then by step.
    """

    blocks: str
    embeddings: str
    norm: str
    patch_embedding: str
    frames: str = "num_frames"
    image_size: str = "image_size"
    embeds_mask: bool = False
    mask: bool = False
    time_first: bool = True
    normalization: Normalization = IMAGENET


_KINDS = {
    "videomae": _Kind(
        "encoder.layer", "embeddings", "layernorm", "embeddings.patch_embeddings.projection", embeds_mask=True
    ),
    "vjepa2": _Kind(
        "encoder.layer",
        "encoder.embeddings",
        "encoder.layernorm",
        "encoder.embeddings.patch_embeddings.proj",
        frames="frames_per_clip",
        image_size="crop_size",
        mask=True,
    ),
    "timesformer": _Kind(
        "encoder.layer",
        "embeddings",
        "layernorm",
        "embeddings.patch_embeddings.projection",
        time_first=False,
        normalization=Normalization((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),
    ),
    "vivit": _Kind(
        "layers", "embeddings", "layernorm", "embeddings.patch_embeddings.projection", mask=True, normalization=HALF
    ),
}


def describe(model: nn.Module) -> BackboneSpec | None:
    """Return the spec of a video model of this library, or None for any other model.

    The number of frames is that of the configuration. V-JEPA 2 accepts another one: set ``config.frames_per_clip``.
    """
    for path in ("", getattr(model, "base_model_prefix", "")):
        tower: Any = getattr(model, path, None) if path else model
        kind = _KINDS.get(getattr(getattr(tower, "config", None), "model_type", ""))
        if kind and _has(tower, kind.embeddings):
            spec = _describe_tower(tower, kind, Preprocessing(model))
            return spec.inside(path) if path else spec
    return None


def _has(tower: nn.Module, path: str) -> bool:
    try:
        tower.get_submodule(path)
    except AttributeError:
        return False
    return True


def _describe_tower(tower: Any, kind: _Kind, preprocessor: Preprocessing) -> BackboneSpec:
    config = tower.config
    num_blocks = len(tower.get_submodule(kind.blocks))
    size = height_and_width(getattr(config, kind.image_size))
    tubelet, *patch = (1, *tower.get_submodule(kind.patch_embedding).kernel_size)[-3:]
    frames = getattr(config, kind.frames)
    grid = size[0] // patch[0], size[1] // patch[1]
    prefix = int(hasattr(tower.get_submodule(kind.embeddings), "cls_token"))
    shape = ClipShape(config.hidden_size, prefix, grid, num_steps=frames // tubelet, time_first=kind.time_first)
    mean, std = preprocessor.normalization(kind.normalization)
    return BackboneSpec(
        library="transformers",
        blocks=kind.blocks,
        num_blocks=num_blocks,
        width=config.hidden_size,
        batch_first=True,
        num_prefix_tokens=prefix,
        grid=grid,
        image_size=size,
        mean=mean,
        std=std,
        pools_prefix=False,
        patch_embedding=kind.patch_embedding,
        stem=_Stem(kind, frames, shape),
        run_block=_run_masked_block if kind.mask else _run_block,
        pool=_Pool(kind, prefix),
        norm=_Norm(kind),
        project=identity,
        sides=(BlockSides(shape, shape),) * num_blocks,
        clip_frames=frames,
        tubelet=tubelet,
    )


@dataclass(frozen=True)
class _Stem:
    kind: _Kind
    frames: int
    shape: ClipShape

    def __call__(self, tower: nn.Module, images: Tensor) -> Tensor:
        """Return the tokens of all steps, ``(V * steps, N, C)``, of the frames ``(V * frames, 3, h, w)`` of clips."""
        embeddings: Any = tower.get_submodule(self.kind.embeddings)
        clips = rearrange(images, "(v t) c h w -> v t c h w", t=self.frames)
        return self.shape.tokens(embeddings(clips, None) if self.kind.embeds_mask else embeddings(clips))


@dataclass(frozen=True)
class _Norm:
    kind: _Kind

    def __call__(self, tower: Any, tokens: Tensor) -> Tensor:
        """Return the normed tokens. A VideoMAE that was made for mean pooling has no norm here."""
        parent, _, name = self.kind.norm.rpartition(".")
        norm: Callable[[Tensor], Tensor] | None = getattr(tower.get_submodule(parent), name)
        return tokens if norm is None else norm(tokens)


@dataclass(frozen=True)
class _Pool:
    kind: _Kind
    num_prefix_tokens: int

    def __call__(self, tower: object, tokens: Tensor) -> Tensor:
        """Return the mean ``(B, C)`` of the normed patches of each step."""
        return _Norm(self.kind)(tower, tokens)[:, self.num_prefix_tokens :].mean(1)


def _run_block(tower: nn.Module, block: nn.Module, tokens: Tensor) -> Tensor:
    return _first(block(tokens))


def _run_masked_block(tower: nn.Module, block: nn.Module, tokens: Tensor) -> Tensor:
    return _first(block(tokens, None))


def _first(output: Any) -> Tensor:
    tokens: Tensor = output[0] if isinstance(output, tuple) else output
    return tokens

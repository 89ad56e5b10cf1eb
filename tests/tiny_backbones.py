"""Small random backbones of every supported kind, with functions for the library's own image features.

All have three blocks of width 32 and patches of 8 x 8 pixels. Videos have four frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import open_clip
import timm.models.eva
import timm.models.vision_transformer
import torch
import transformers
from hand_written_vits import HandWrittenViT, TokensFirstViT, WideViT
from torch import Tensor, nn

FRAMES, SIZE, WIDTH, BLOCKS, PATCH, HEADS, PROJECTED = 4, 32, 32, 3, 8, 2, 16
_SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "image_size": SIZE,
    "patch_size": PATCH,
}
_VISION = {**_SIZES, "intermediate_size": 64}
_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 50,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_TIMM = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": BLOCKS, "num_heads": HEADS}
_HAND = {"patch": PATCH, "width": WIDTH, "depth": BLOCKS, "heads": HEADS}


@dataclass(frozen=True)
class TinyBackbone:
    """One backbone.

    Args:
        make: returns a frozen model in evaluation mode, with the same weights each time.
        features: ``features(model, x, **layout)`` returns the library's own features ``(B, D)`` of images, or of videos
            if the model contains adapters. PEFT may have wrapped the model.
        size: height and width of the images.
    """

    make: Callable[[], nn.Module]
    features: Callable[..., Tensor]
    size: tuple[int, int] = (SIZE, SIZE)

    def videos(self, count: int = 5, frames: int = FRAMES) -> Tensor:
        """Return normalized random videos ``(V, T, 3, H, W)``."""
        return torch.randn(count, frames, 3, *self.size, generator=torch.Generator().manual_seed(1))


def tiny(
    make: Callable[[], nn.Module], features: Callable[..., Tensor], size: tuple[int, int] = (SIZE, SIZE)
) -> TinyBackbone:
    """Return a backbone whose weights differ from their initial values, because ones and zeros hide mistakes."""

    def seeded() -> nn.Module:
        torch.manual_seed(0)
        # frozen as by PEFT, because torch selects its attention kernel accordingly
        model = make().eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        return model

    return TinyBackbone(seeded, features, size)


def root(model: nn.Module) -> nn.Module:
    """Return the model inside PEFT's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def direct(model: nn.Module, x: Tensor, **layout: int) -> Tensor:
    return model(x, **layout)


def pooled(model: nn.Module, x: Tensor, **layout: int) -> Tensor:
    return model(pixel_values=x, **layout).pooler_output


def _projected(model: nn.Module, x: Tensor, **layout: int) -> Tensor:
    return model(pixel_values=x, **layout).image_embeds


def _whole_clip(model: nn.Module, x: Tensor, **layout: int) -> Tensor:
    model = root(model)
    return model.visual_projection(model.vision_model(pixel_values=x, **layout).pooler_output)


def _unmasked(model: nn.Module, x: Tensor, **layout: int) -> Tensor:
    """Return ViT-MAE's class token of all patches, in order."""
    in_order = torch.arange((SIZE // PATCH) ** 2).expand(x.shape[:-3].numel(), -1)
    return model(pixel_values=x, noise=in_order, **layout).last_hidden_state[:, 0]


def _visual(model: nn.Module, x: Tensor, **layout: int) -> Tensor:
    return root(model).visual(x, **layout)


def open_clip_model(**vision: object) -> open_clip.CLIP:
    tower = {"image_size": SIZE, "layers": BLOCKS, "width": WIDTH, "head_width": WIDTH // HEADS, "patch_size": PATCH}
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    return open_clip.CLIP(embed_dim=PROJECTED, vision_cfg={**tower, **vision}, text_cfg=text)


def timm_vit(**options: object) -> nn.Module:
    return timm.models.vision_transformer.VisionTransformer(**{**_TIMM, "num_classes": 0, **options})


def timm_eva(**options: object) -> nn.Module:
    return timm.models.eva.Eva(**{**_TIMM, "num_classes": 0, "use_rot_pos_emb": True, **options})


def of_transformers(name: str, **options: object) -> nn.Module:
    """Return a random vision model of transformers, e.g. ``"ViT"``."""
    config = getattr(transformers, f"{name}Config")(**{**_VISION, **options})
    return getattr(transformers, f"{name}Model")(config)


def of_transformers_whole(name: str) -> nn.Module:
    """Return a random vision and text model of transformers, e.g. ``"CLIP"``."""
    config = getattr(transformers, f"{name}Config")(vision_config=_VISION, text_config=_TEXT, projection_dim=PROJECTED)
    return getattr(transformers, f"{name}Model")(config)


def _clip_with_projection() -> nn.Module:
    config = transformers.CLIPVisionConfig(**_VISION, projection_dim=PROJECTED)
    return transformers.CLIPVisionModelWithProjection(config)


TINY_BACKBONES = {
    "transformers CLIP": tiny(lambda: of_transformers("CLIPVision"), pooled),
    "transformers CLIP projected": tiny(_clip_with_projection, _projected),
    "transformers CLIP whole": tiny(lambda: of_transformers_whole("CLIP"), _whole_clip),
    "SigLIP": tiny(lambda: of_transformers("SiglipVision"), pooled),
    "ViT": tiny(lambda: of_transformers("ViT"), pooled),
    "DeiT": tiny(lambda: of_transformers("DeiT"), pooled),
    "ViT-MAE": tiny(lambda: of_transformers("ViTMAE", mask_ratio=0.0), _unmasked),
    "DINOv2": tiny(lambda: of_transformers("Dinov2"), pooled),
    "DINOv2 registers": tiny(lambda: of_transformers("Dinov2WithRegisters", num_register_tokens=2), pooled),
    "DINOv3": tiny(lambda: of_transformers("DINOv3ViT", num_register_tokens=2), pooled),
    "open_clip visual": tiny(lambda: open_clip_model().visual, direct),
    "open_clip whole": tiny(open_clip_model, _visual),
    "timm ViT": tiny(timm_vit, direct),
    "timm ViT registers": tiny(lambda: timm_vit(reg_tokens=2, no_embed_class=True), direct),
    "timm EVA": tiny(timm_eva, direct),
    "hand-written": tiny(lambda: HandWrittenViT(SIZE, **_HAND), direct),
    "hand-written (N,B,C)": tiny(lambda: TokensFirstViT(SIZE, **_HAND, features=PROJECTED), direct),
    "hand-written non-square": tiny(lambda: WideViT((SIZE, 48), **_HAND), direct, (SIZE, 48)),
}

"""Recognizers with different trained parts and perturbed weights, and tasks for them."""

from __future__ import annotations

from collections.abc import Callable

import peft
import torch
import transformers
from adapter_cases import ADAPTER_CASES
from tiny_backbones import FRAMES, PROJECTED, SIZE, TINY_BACKBONES, WIDTH
from torch import Tensor, nn

from dmgal.backbones import ClassTexts, FrameEncoder
from dmgal.episodes import Episode, EpisodeOutput, FewShotRecognizer
from dmgal.episodes.heads import (
    M2ACL,
    OTAM,
    SACT,
    STRM,
    TEAM,
    TRX,
    BiMHM,
    ClipFSAR,
    DmgalFT,
    FrameAligned,
    HyRSM,
    MoLo,
    Prototype,
    TemporalMixer,
)
from dmgal.recipes.run.build import freeze_batch_norm

BASE_CLASSES = 7
MAP_HEADS: dict[str, Callable[[], nn.Module]] = {
    "DmgalFT": lambda: DmgalFT(WIDTH, FRAMES),
    "M2ACL": lambda: M2ACL(WIDTH, width=16),
    "MoLo": lambda: MoLo(WIDTH, BASE_CLASSES),
    "SACT": lambda: SACT(WIDTH, FRAMES, width=16),
    "STRM": lambda: STRM(WIDTH, FRAMES, width=16),
}


def _clip_fsar() -> nn.Module:
    head, names = ClipFSAR(WIDTH), tuple(map(str, range(BASE_CLASSES)))
    texts = ClassTexts(names, torch.eye(BASE_CLASSES, WIDTH), 10.0, 0.0, "unit vectors")
    head.use_texts(texts, names, TextTower())
    return head


class TextTower(nn.Module):
    """A text tower that is trained: a layer after fixed texts."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, texts: ClassTexts) -> Tensor:
        return nn.functional.normalize(self.layer(texts.features.to(self.layer.weight.dtype)), dim=-1)


FEATURE_HEADS: dict[str, Callable[[], nn.Module]] = {
    "BiMHM": lambda: BiMHM(center="both", logit_scale=10.0),
    "OTAM": lambda: OTAM(center="video", logit_scale=10.0),
    "FrameAligned": lambda: FrameAligned(center="video", logit_scale=10.0),
    "Prototype, cosine": lambda: Prototype("cosine", logit_scale=10.0),
    "Prototype, Euclidean": lambda: Prototype("euclidean", logit_scale=10.0),
    "TRX": lambda: TRX(WIDTH, width=16),
    "HyRSM": lambda: HyRSM(WIDTH, num_base_classes=BASE_CLASSES),
    "ClipFSAR": _clip_fsar,
    "TEAM": lambda: TEAM(WIDTH, num_patterns=5),
}


def backbone(adapter: str | None = None, trainable: bool = False, name: str = "open_clip visual") -> nn.Module:
    model = TINY_BACKBONES[name].make().requires_grad_(trainable)
    return model if adapter is None else peft.get_peft_model(model, ADAPTER_CASES[adapter])


def recognizer(encoder: nn.Module, head: nn.Module, dtype: torch.dtype = torch.float64) -> FewShotRecognizer:
    """Make a recognizer with perturbed weights in training mode, with frozen batch norms."""
    model = FewShotRecognizer(encoder, head).to(dtype)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)
    model.train()
    freeze_batch_norm(model)
    return model


def resnet() -> nn.Module:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, WIDTH], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    torch.manual_seed(0)
    return transformers.ResNetModel(transformers.ResNetConfig(**sizes, image_size=SIZE))


def of_adapter(name: str) -> FewShotRecognizer:
    return recognizer(FrameEncoder(backbone(name), "patch_mean"), FEATURE_HEADS["BiMHM"]())


def of_map_head(name: str, adapter: str | None) -> FewShotRecognizer:
    """Make a recognizer with an adapter on a frozen backbone, or with a fully trained backbone."""
    return recognizer(FrameEncoder(backbone(adapter, trainable=adapter is None), "map"), MAP_HEADS[name]())


def of_feature_head(name: str) -> FewShotRecognizer:
    return recognizer(FrameEncoder(backbone("Smga", name="ViT")), FEATURE_HEADS[name]())


def of_resnet() -> FewShotRecognizer:
    return recognizer(FrameEncoder(resnet(), "map"), MAP_HEADS["DmgalFT"]())


def mixing_head(adapter: str) -> FewShotRecognizer:
    mixer = TemporalMixer(FRAMES, PROJECTED)
    return recognizer(FrameEncoder(backbone(adapter), "patch_mean"), Mixed(mixer))


class Mixed(nn.Module):
    """A head whose ``prepare`` has weights, for any encoder."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer, self.matcher = mixer, BiMHM(center="video", logit_scale=5.0)

    def prepare(self, features: Tensor):  # type: ignore[no-untyped-def]
        return self.matcher.prepare(self.mixer(features))

    def compare(self, support, labels, query) -> EpisodeOutput:  # type: ignore[no-untyped-def]
        return self.matcher.compare(support, labels, query)


def task(
    seed: int, dtype: torch.dtype = torch.float64, shots: tuple[int, ...] = (1, 2, 1), queries: int = 3
) -> Episode:
    """Make a task of normalized noise with known base classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(shots)).repeat_interleave(torch.tensor(shots))
    videos = torch.randn(len(labels) + queries, FRAMES, 3, SIZE, SIZE, generator=generator).to(dtype)
    query_labels = torch.arange(queries) % len(shots)
    classes = torch.randperm(BASE_CLASSES, generator=generator)[: len(shots)]
    names = tuple(map(str, range(len(shots))))
    return Episode(videos[: len(labels)], labels, videos[len(labels) :], query_labels, names, classes)

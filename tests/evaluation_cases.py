"""Recognizers with perturbed weights for every head and adapter, and videos for tasks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import peft
import torch
from adapter_cases import ADAPTER_CASES
from hand_written_vits import HandWrittenViT
from tiny_backbones import FRAMES, SIZE, TINY_BACKBONES, WIDTH
from torch import Tensor, nn

from dmgal.backbones import FrameEncoder
from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.heads import (
    M2ACL,
    OTAM,
    SACT,
    STRM,
    TEAM,
    TIM,
    TRX,
    BiMHM,
    ClipFSAR,
    DistanceCorrelation,
    DmgalFT,
    FineTuned,
    FrameAligned,
    HyRSM,
    LaplacianShot,
    LateFusion,
    LogisticProbe,
    MoLo,
    Prototype,
    RidgeProbe,
)

CLASSES, VIDEOS_PER_CLASS = 6, 6
LABELS = [c for c in range(CLASSES) for _ in range(VIDEOS_PER_CLASS)]
NARROW = 16

ON_FEATURES: dict[str, Callable[[], nn.Module]] = {
    "BiMHM": BiMHM,
    "BiMHM both": partial(BiMHM, "both", 10.0, eps=0.0),
    "BiMHM prototypes": partial(BiMHM, "video", 10.0, shots="prototype", eps=0.0),
    "OTAM": partial(OTAM, center="video", logit_scale=10.0, eps=0.0),
    "FrameAligned": partial(FrameAligned, center="video", logit_scale=10.0, eps=0.0),
    "Prototype": Prototype,
    "Prototype euclidean": partial(Prototype, "euclidean", 10.0),
    "TRX": partial(TRX, NARROW, width=8),
    "HyRSM": partial(HyRSM, NARROW, num_base_classes=7),
    "ClipFSAR": partial(ClipFSAR, NARROW),
    "TEAM": partial(TEAM, NARROW, num_patterns=5),
    "RidgeProbe": RidgeProbe,
    "LogisticProbe": LogisticProbe,
    "FineTuned": partial(FineTuned, steps=10),
    "TIM": partial(TIM, iterations=10),  # 150 may amplify rounding: a query between two classes then goes to either
    "LaplacianShot": LaplacianShot,
    "LateFusion": partial(LateFusion, (NARROW // 4, NARROW - NARROW // 4)),
}
ON_MAPS: dict[str, Callable[[], nn.Module]] = {
    "DmgalFT": partial(DmgalFT, NARROW, FRAMES),
    "STRM": partial(STRM, NARROW, FRAMES, width=8),
    "SACT": partial(SACT, NARROW, FRAMES, width=8),
    "SACT released": partial(SACT, NARROW, FRAMES, width=8, form="released"),
    "MoLo": partial(MoLo, NARROW),
    "M2ACL": partial(M2ACL, NARROW, width=8),
    "DistanceCorrelation": DistanceCorrelation,
}
HEADS = [*ON_FEATURES, *ON_MAPS]
UNDER_A_CMGA = {
    "BiMHM": (None, lambda: BiMHM("video", 10.0, eps=0.0)),
    "TRX": ("cls+patch_mean", lambda: TRX(2 * 16, width=8)),
    "HyRSM": ("patch_mean", lambda: HyRSM(16)),
    "DmgalFT": ("map", lambda: DmgalFT(WIDTH, FRAMES)),
}
"""Poolings that read one or all of a video's tokens, and heads with their own ``prepare``."""


def moved(model: nn.Module) -> nn.Module:
    """Perturb all weights and switch to evaluation mode."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def of_head(name: str) -> FewShotRecognizer:
    """Make a recognizer on a random backbone without a task layer."""
    torch.manual_seed(0)
    backbone = HandWrittenViT(SIZE, patch=8, width=NARROW, depth=2, heads=2)
    encoder = FrameEncoder(backbone, None if name in ON_FEATURES else "map")
    head = {**ON_FEATURES, **ON_MAPS}[name]()
    return moved(FewShotRecognizer(encoder, head))  # type: ignore[return-value]


def of_adapter(adapter: str, head: str = "BiMHM") -> FewShotRecognizer:
    """Make a recognizer on a tiny open_clip CLIP."""
    model = TINY_BACKBONES["open_clip visual"].make()
    pooling, make_head = UNDER_A_CMGA[head]
    torch.manual_seed(0)
    encoder = FrameEncoder(peft.get_peft_model(model, ADAPTER_CASES[adapter]), pooling)
    return moved(FewShotRecognizer(encoder, make_head()))  # type: ignore[return-value]


def clips(count: int = len(LABELS), seed: int = 1) -> Tensor:
    """Return clips ``(V, T, 3, h, w)``, uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, FRAMES, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)

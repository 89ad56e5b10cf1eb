"""A small model in place of ViT-B/16, for smoke tests of benchmarks."""

from __future__ import annotations

from torch import nn


def small_recognizer(trained, image_size, frames, checkpointed=False):
    import peft

    from dmgal.adapters import DmgalConfig
    from dmgal.backbones import FrameEncoder, load_backbone
    from dmgal.episodes import FewShotRecognizer
    from dmgal.episodes.heads import BiMHM

    model: nn.Module = load_backbone("tiny-clip").requires_grad_(trained == "everything")
    if trained == "adapters":
        model = peft.get_peft_model(model, DmgalConfig(num_frames=frames))
    encoder = FrameEncoder(model, checkpoint_blocks=checkpointed)
    return FewShotRecognizer(encoder, BiMHM(center="video", logit_scale=10.0)).train()

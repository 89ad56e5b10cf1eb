"""A description of a recognizer changes with everything that shapes states, also with what has no weights."""

from __future__ import annotations

from dataclasses import replace

import peft
import pytest
import torch

from dmgal.backbones import FrameEncoder, VideoState, load_backbone
from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.heads import BiMHM
from dmgal.episodes.states.cache_key import describe, differences

VIDEO = torch.randint(0, 256, (1, 4, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def normalizing(mean: float, std: float) -> FewShotRecognizer:
    backbone = load_backbone("tiny-clip")
    spec = replace(FrameEncoder(backbone).spec, mean=(mean,) * 3, std=(std,) * 3)
    return FewShotRecognizer(FrameEncoder(backbone, spec=spec), BiMHM()).eval()


def with_lora(alpha: int) -> FewShotRecognizer:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=alpha, target_modules=["c_fc"], init_lora_weights=False)
    return FewShotRecognizer(FrameEncoder(peft.get_peft_model(load_backbone("tiny-clip"), config)), BiMHM()).eval()


@torch.no_grad()
def told(one: FewShotRecognizer, other: FewShotRecognizer) -> list[str]:
    """What descriptions of recognizers with different states say."""
    assert (one.encode(VIDEO)["frames"] - other.encode(VIDEO)["frames"]).abs().max() > 1e-3
    return differences(describe(one), describe(other))


class WithoutWeights:
    """A head need be no module."""

    def __init__(self, center: str) -> None:
        self.center = center

    def prepare(self, features: torch.Tensor) -> VideoState:
        return VideoState(frames=features)


@pytest.mark.parametrize("changed", [(0.4, 0.2), (0.5, 0.3)])
def test_what_images_are_normalized_with_counts(changed) -> None:
    assert told(normalizing(0.5, 0.2), normalizing(*changed)) == ["normalization"]
    assert describe(normalizing(*changed)) == describe(normalizing(*changed))


def test_what_an_adapter_keeps_in_dictionaries_counts() -> None:
    assert told(with_lora(4), with_lora(16)) == ["settings"]
    assert describe(with_lora(4)) == describe(with_lora(4))


def test_the_order_of_a_dictionary_and_hooks_do_not_count() -> None:
    one, other = normalizing(0.5, 0.2), normalizing(0.5, 0.2)
    one.head.options, other.head.options = {"a": 1, "b": {2: None}}, {"b": {2: None}, "a": 1}
    for _ in range(2):  # torch numbers hooks through the life of a process
        other.register_forward_pre_hook(lambda *_: None, with_kwargs=True).remove()
    handle = other.register_forward_pre_hook(lambda *_: None, with_kwargs=True)
    assert describe(one) == describe(other)
    handle.remove()
    other.head.options["b"][2] = 3
    assert differences(describe(one), describe(other)) == ["settings"]


def test_a_head_that_is_no_module_is_told_by_its_class_and_settings() -> None:
    encoder = normalizing(0.5, 0.2).encoder
    keys = [describe(FewShotRecognizer(encoder, head)) for head in map(WithoutWeights, ("video", "none", "video"))]
    assert keys[0]["head_weights"] is None and keys[0] == keys[2]
    assert differences(keys[0], keys[1]) == ["settings"]
    assert "settings" in differences(keys[0], describe(FewShotRecognizer(encoder, BiMHM())))

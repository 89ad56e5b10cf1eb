"""Cache keys change with everything that shapes states, including options without weights."""

from __future__ import annotations

from dataclasses import replace

import peft
import pytest
import torch

from dmgal.backbones import FrameEncoder, VideoState, load_backbone
from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.evaluation.identity import describe
from dmgal.episodes.heads import BiMHM
from dmgal.errors import differences

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
def key_differences(one: FewShotRecognizer, other: FewShotRecognizer) -> list[str]:
    """Return the differing key entries of two recognizers whose states differ."""
    assert (one.encode(VIDEO)["frames"] - other.encode(VIDEO)["frames"]).abs().max() > 1e-3
    return list(differences(describe(one), describe(other)))


class WithoutWeights:
    """A head that is not a module."""

    def __init__(self, center: str) -> None:
        self.center = center

    def prepare(self, features: torch.Tensor) -> VideoState:
        return VideoState(frames=features)


@pytest.mark.parametrize("changed", [(0.4, 0.2), (0.5, 0.3)])
def test_normalization_changes_key(changed) -> None:
    assert key_differences(normalizing(0.5, 0.2), normalizing(*changed)) == ["normalization"]
    assert describe(normalizing(*changed)) == describe(normalizing(*changed))


def test_adapter_options_in_dictionaries_change_key() -> None:
    assert key_differences(with_lora(4), with_lora(16)) == ["settings"]
    assert describe(with_lora(4)) == describe(with_lora(4))


def test_dictionary_order_and_hooks_do_not_change_key() -> None:
    one, other = normalizing(0.5, 0.2), normalizing(0.5, 0.2)
    one.head.options, other.head.options = {"a": 1, "b": {2: None}}, {"b": {2: None}, "a": 1}
    for _ in range(2):  # torch numbers hooks consecutively within a process
        other.register_forward_pre_hook(lambda *_: None, with_kwargs=True).remove()
    handle = other.register_forward_pre_hook(lambda *_: None, with_kwargs=True)
    assert describe(one) == describe(other)
    handle.remove()
    other.head.options["b"][2] = 3
    assert list(differences(describe(one), describe(other))) == ["settings"]


def test_head_without_module_is_identified_by_class_and_settings() -> None:
    encoder = normalizing(0.5, 0.2).encoder
    keys = [describe(FewShotRecognizer(encoder, head)) for head in map(WithoutWeights, ("video", "none", "video"))]
    assert keys[0]["head_weights"] is None and keys[0] == keys[2]
    assert list(differences(keys[0], keys[1])) == ["settings"]
    assert "settings" in differences(keys[0], describe(FewShotRecognizer(encoder, BiMHM())))

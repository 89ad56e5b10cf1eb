"""Adapters under torch.compile, gradient checkpointing and several processes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import forked
import peft
import pytest
import torch
from tiny_backbones import TINY_BACKBONES
from torch import Tensor
from torch._dynamo.utils import counters

from dmgal.adapters import AIMConfig, BitFitConfig, D2STConfig, DmgalConfig, SmgaConfig, STAdapterConfig
from dmgal.backbones import FrameEncoder
from dmgal.errors import DmgalError

CASES: dict[str, peft.PeftConfig] = {
    "DMGAL": DmgalConfig(num_frames=4),
    "ST-Adapter": STAdapterConfig(num_frames=4, places="attention+mlp"),
    "AIM": AIMConfig(num_frames=4),
    "D2ST": D2STConfig(num_frames=4),
    "BitFit": BitFitConfig(num_frames=4),
}


def videos(count: int) -> Tensor:
    return torch.randn(count, 4, 3, 32, 32, generator=torch.Generator().manual_seed(count))


def awake(config: peft.PeftConfig, backbone: str = "open_clip visual") -> peft.PeftModel:
    model = peft.get_peft_model(TINY_BACKBONES[backbone].make(), config)
    torch.manual_seed(6)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def gradients(model: torch.nn.Module, features: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    features.square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def assert_equal_gradients(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert ours.keys() == expected.keys() and ours
    for name in expected:
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("backbone", ["open_clip visual", "transformers CLIP projected"])
@pytest.mark.parametrize("name", CASES)
def test_compiles_as_one_graph_for_all_ways_and_shots(name, backbone, train):
    """At most two recompilations over 5 to 10 ways and 1 to 5 shots."""
    tasks = ((5, 1), (5, 5), (10, 1), (7, 3), (10, 5))
    assert compiled_graphs(CASES[name], backbone, train, tasks) <= 3


def compiled_graphs(config: peft.PeftConfig, backbone: str, train: bool, tasks: Sequence[tuple[int, int]]) -> int:
    """Compare compiled and plain features for some ways and shots, and return the number of graphs."""
    torch._dynamo.reset()
    counters.clear()
    encoder = FrameEncoder(awake(config, backbone).train(train))
    compiled = torch.compile(lambda support, query: encoder(support, query), fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(train):
        for ways, shots in tasks:
            support, query = videos(ways * shots), videos(ways)
            ours, expected = compiled(support, query), encoder(support, query)
            for one, other in zip(ours, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("backbone", ["transformers CLIP projected", "DINOv2"])
@pytest.mark.parametrize("name", ["DMGAL", "AIM", "D2ST", "BitFit"])
def test_checkpointing_of_transformers_gives_the_same_gradients(name, backbone):
    tiny, layout = TINY_BACKBONES[backbone], {"num_support": 2}
    model = awake(CASES[name], backbone).train()
    expected = gradients(model, tiny.features(model, videos(3), **layout))
    model.get_base_model().activation_checkpointing_enable()
    assert_equal_gradients(gradients(model, tiny.features(model, videos(3), **layout)), expected)


def test_backward_works_after_a_call_with_another_layout():
    """Recomputation uses the layout of its own call, not that of the last one."""
    model = awake(DmgalConfig(num_frames=4, temporal=False))
    results = []
    for checkpoint in (False, True):
        encoder = FrameEncoder(model, checkpoint_blocks=checkpoint)
        clips = videos(4)
        short = clips.reshape(8, 2, 3, 32, 32)
        features = torch.cat([*encoder(clips[:2], clips[2:]), *encoder(short[:3].repeat(1, 2, 1, 1, 1), clips[2:])])
        other = torch.cat(encoder(short[:4], short[4:]))
        results.append(gradients(model, torch.cat([features.flatten(), other.flatten()])))
    assert_equal_gradients(results[1], results[0])


def switched(config, change, checkpoint):
    """Return the gradients of two adapters on one loss, with a change between the forward and the backward pass."""
    model = peft.get_peft_model(TINY_BACKBONES["open_clip visual"].make(), config, adapter_name="one")
    model.add_adapter("two", config)
    added = [p for n, p in model.named_parameters() if ".one." in n or ".two." in n]
    generator = torch.Generator().manual_seed(1)
    for parameter in added:
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    encoder, loss = FrameEncoder(model.train(), checkpoint_blocks=checkpoint), 0.0
    for name in ("one", "two"):
        model.set_adapter(name)
        for parameter in added:
            parameter.requires_grad_(True)
        loss = loss + sum(features.square().sum() for features in encoder(videos(2), videos(1)))
    change(model)
    for parameter in added:
        parameter.requires_grad_(True)  # PEFT freezes the adapters that it disables
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


LORA = peft.LoraConfig(target_modules=["c_fc"], lora_dropout=0.0)
CHANGES = {
    "another adapter": lambda model: None,
    "disabled": lambda model: model.base_model.disable_adapter_layers(),
    "evaluation mode": lambda model: model.eval(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("config", [*CASES.values(), LORA], ids=[*CASES, "LoRA"])
def test_recomputation_uses_the_adapters_of_the_forward_pass(config, change):
    plain, recomputed = (switched(config, CHANGES[change], checkpoint) for checkpoint in (False, True))
    assert any(".one." in name for name in plain) and any(".two." in name for name in plain)
    assert_equal_gradients(recomputed, plain)


@pytest.mark.parametrize("change", ["merge_adapter", "delete_adapter"])
def test_recomputation_after_adapters_are_gone_raises(change):
    def change_model(model):
        getattr(model, change)(*(["one"] if change == "delete_adapter" else []))

    with pytest.raises(DmgalError, match=r"Call backward\(\) first"):
        switched(LORA, change_model, True)


def test_checkpointing_that_reruns_hooks_is_refused():
    """Without a layout the hooks cannot know how frames form videos."""
    model = awake(SmgaConfig(num_frames=4)).train()
    model.get_base_model().set_grad_checkpointing(True)
    features = model(videos(3))
    with pytest.raises(DmgalError, match="checkpoint_blocks=True"):
        features.sum().backward()


@pytest.mark.slow
def test_two_processes_have_equal_weights_after_training():
    """DistributedDataParallel with every adapter: after three steps on other videos the weights are the same."""
    result = forked.run([str(Path(__file__).with_name("two_processes.py"))], processes=2)
    assert result.returncode == 0, result.stderr[-3000:]
    differences = json.loads(result.stdout.strip().splitlines()[-1])
    assert differences.keys() == CASES.keys()
    for name, (between_processes, moved) in differences.items():
        assert between_processes == 0 and moved > 0, name

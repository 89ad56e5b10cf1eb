"""Tests of the memory-efficient QuickGELU: bit-identical to the libraries, with gradients at least as accurate."""

from __future__ import annotations

import open_clip.transformer
import pytest
import timm.layers
import torch
import transformers.activations
from tiny_backbones import TINY_BACKBONES, of_transformers, timm_vit
from torch import nn

from dmgal.backbones import use_memory_efficient_gelu
from dmgal.backbones.quick_gelu import NAMES, QuickGELU
from dmgal.episodes.two_pass.memory import LiveBytes

LIBRARIES = {
    "open_clip": open_clip.transformer.QuickGELU,
    "timm": timm.layers.create_act.get_act_layer("quick_gelu"),
    "transformers": transformers.activations.QuickGELUActivation,
}
BACKBONES = {
    "open_clip": lambda: open_clip.transformer.VisionTransformer(
        *(32, 8, 32, 3, 2), mlp_ratio=2, act_layer=open_clip.transformer.QuickGELU
    ),
    "timm": lambda: timm_vit(act_layer="quick_gelu"),
    "transformers": lambda: of_transformers("CLIPVision", hidden_act="quick_gelu"),
}


INPUTS = torch.cat([8 * torch.randn(5000, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 60, -60])])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("library", LIBRARIES)
def test_results_are_bit_identical_to_the_library(library, dtype):
    x = INPUTS.to(dtype)
    expected = LIBRARIES[library]()(x)
    assert torch.equal(QuickGELU()(x), expected)
    assert torch.equal(QuickGELU()(x.requires_grad_()), expected)
    assert expected.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_gradients_are_at_least_as_accurate_as_the_librarys(dtype):
    x, upstream = INPUTS.to(dtype), INPUTS.flip(0).to(dtype)

    def gradient(activation: nn.Module, dtype: torch.dtype) -> torch.Tensor:
        leaf = x.to(dtype).requires_grad_()
        (result,) = torch.autograd.grad(activation(1 * leaf), leaf, upstream.to(dtype))
        assert result.dtype == dtype
        return result.double()

    librarys = LIBRARIES["transformers"]()
    reference = gradient(librarys, torch.float64)
    ours = (gradient(QuickGELU(), dtype) - reference).abs().max()
    if dtype == torch.float64:
        assert ours <= 1e-13
    else:
        assert ours <= (gradient(librarys, dtype) - reference).abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_gradients_are_finite_at_the_limits_of_half_precision(dtype):
    leaf = torch.tensor([6e4, -6e4], dtype=dtype, requires_grad=True)
    QuickGELU()(leaf).backward(torch.ones(2, dtype=dtype))
    assert leaf.grad.tolist() == [1, 0]


def test_only_the_input_is_saved_for_backward():
    leaf = torch.randn(1000, requires_grad=True)

    def live_bytes(activation: nn.Module) -> int:
        with LiveBytes() as live:
            results = [1 * leaf]
            results.append(activation(results[0]))
        assert results[-1].requires_grad
        return live.now

    for library in LIBRARIES.values():
        assert live_bytes(library()) - live_bytes(QuickGELU()) == leaf.nbytes


def test_compiled_results_are_equal():
    torch.manual_seed(0)
    x = torch.randn(100)
    compiled = torch.compile(QuickGELU(), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), QuickGELU()(x))


@pytest.mark.parametrize("library", BACKBONES)
def test_activation_is_replaced_in_every_block_bit_identically(library):
    torch.manual_seed(0)
    backbone = BACKBONES[library]().eval()
    blocks, images = 3, torch.randn(2, 3, 32, 32)
    names = list(backbone.state_dict())
    before = backbone(images)
    assert sum(type(module).__name__ in NAMES for module in backbone.modules()) == blocks
    assert use_memory_efficient_gelu(backbone) is backbone
    assert sum(isinstance(module, QuickGELU) for module in backbone.modules()) == blocks
    assert list(backbone.state_dict()) == names
    after = backbone(images)
    for tensor_before, tensor_after in zip(_tensors(before), _tensors(after), strict=True):
        assert torch.equal(tensor_before, tensor_after)


def test_module_with_another_slope_is_not_replaced():
    class QuickGELU(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(1.7 * x)

    block = nn.Sequential(QuickGELU())
    use_memory_efficient_gelu(block)
    assert type(block[0]) is QuickGELU


def test_module_with_hooks_is_not_replaced():
    block = nn.Sequential(transformers.activations.QuickGELUActivation())
    block[0].register_forward_hook(lambda *arguments: None)
    use_memory_efficient_gelu(block)
    assert not isinstance(block[0], QuickGELU)


def test_double_backward_and_vmap():
    ours, librarys = QuickGELU(), LIBRARIES["transformers"]()
    inputs = INPUTS[:50].double()
    assert torch.autograd.gradgradcheck(ours, inputs.clone().requires_grad_())

    def mapped_gradients(activation: nn.Module) -> torch.Tensor:
        return torch.func.vmap(torch.func.grad(lambda x: activation(x).sum()))(inputs)

    torch.testing.assert_close(mapped_gradients(ours), mapped_gradients(librarys), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", TINY_BACKBONES)
def test_other_modules_are_not_replaced(name):
    model = TINY_BACKBONES[name].make()
    before = dict(model.named_modules())
    use_memory_efficient_gelu(model)
    for path, module in model.named_modules():
        replaced = type(before[path]).__name__ in NAMES
        assert isinstance(module, QuickGELU) if replaced else module is before[path]


def _tensors(output):
    return [output] if isinstance(output, torch.Tensor) else [t for t in output.values() if t is not None]

"""Quantized backbones: close features, exact gradients of what they compute, and one message for what cannot work."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import peft
import pytest
import torch
from tiny_backbones import TINY_BACKBONES
from torch import Tensor, nn

from dmgal.adapters import DmgalConfig
from dmgal.backbones import FrameEncoder, load_backbone, quantization_of, quantize, quantized
from dmgal.backbones.quantized import KINDS, num_parameters, plain_tensors
from dmgal.errors import DmgalError

ERRORS = {"int8": 0.01, "int4": 0.15, "dynamic_int8": 0.03, "bnb_int8": 0.03, "bnb_nf4": 0.15}
"""Largest relative change of tiny-clip's features, by kind."""


def kind_of(name: str) -> Any:
    pytest.importorskip(KINDS[name].library, reason="needs dmgal[quantize]")  # type: ignore[index]
    return name


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    return load_backbone("tiny-clip")


def linear_layers(model: nn.Module) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.endswith(("c_fc", "c_proj"))]


def num_bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for _, tensor in plain_tensors(model.state_dict()))


@pytest.mark.parametrize("name", KINDS)
def test_features_are_close_and_weights_are_small(name: str, backbone: nn.Module) -> None:
    kind = kind_of(name)
    model = quantize(deepcopy(backbone), kind)
    videos = torch.randn(2, 4, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features, expected = (FrameEncoder(one).encode(videos)["features"] for one in (model, backbone))
    error = ((features - expected).norm() / expected.norm()).item()
    assert 0 < error < ERRORS[kind]
    assert quantization_of(model) == kind and quantization_of(backbone) is None
    assert num_parameters(model) == sum(parameter.numel() for parameter in backbone.parameters())
    assert num_bytes(model) < 0.65 * num_bytes(backbone)  # tiny-clip's attention keeps its floats


@pytest.mark.parametrize("name", KINDS)
def test_gradient_is_that_of_the_quantized_weights(name: str, backbone: nn.Module) -> None:
    layer = linear_layers(quantize(deepcopy(backbone), kind_of(name)))[0]
    x = torch.randn(3, 5, 96, generator=torch.Generator().manual_seed(0), requires_grad=True)
    direction = torch.randn(3, 5, 384, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(layer(x), x, direction)
    with torch.no_grad():
        weight = (layer(torch.eye(96)) - layer(torch.zeros(1, 96))).T
    assert (gradient - direction @ weight).norm() / gradient.norm() < 0.01  # bitsandbytes rounds to half precision


@pytest.mark.parametrize("name", sorted(KINDS.keys() - {"bnb_int8"}))  # bitsandbytes rounds inputs in evaluation alone
def test_training_and_evaluation_compute_the_same(name: str, backbone: nn.Module) -> None:
    layer = linear_layers(quantize(deepcopy(backbone), kind_of(name)))[0]
    x = torch.randn(3, 5, 96, generator=torch.Generator().manual_seed(0))
    trained = layer.train()(x.clone().requires_grad_()).detach()
    with torch.no_grad():
        evaluated = layer.eval()(x)
    assert torch.equal(layer.train()(x.clone().requires_grad_()).detach(), trained)
    assert torch.equal(evaluated, trained)


@pytest.mark.parametrize("name", ["int8", "int4", "dynamic_int8"])
def test_no_layer_saves_its_weights_for_backward(name: str, backbone: nn.Module) -> None:
    layer = linear_layers(quantize(deepcopy(backbone), kind_of(name)))[0]
    saved: list[Tensor] = []
    x = torch.randn(2, 96, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor), lambda tensor: tensor):  # type: ignore[func-returns-value]
        layer(x)
    assert not saved


def test_adapters_train_in_float(backbone: nn.Module) -> None:
    model = peft.get_peft_model(quantize(deepcopy(backbone), "dynamic_int8"), DmgalConfig(num_frames=4))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    encoder = FrameEncoder(model, pooling="map")
    torch.cat(encoder(torch.randn(2, 4, 3, 48, 48), torch.randn(1, 4, 3, 48, 48))).square().sum().backward()
    assert trained and all(parameter.dtype == torch.float32 and parameter.grad is not None for parameter in trained)


def refused(make: Callable[[], object], problem: str) -> DmgalError:
    with pytest.raises(DmgalError, match=problem) as error:
        make()
    return error.value


def test_what_cannot_be_quantized_is_refused(backbone: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = quantize(deepcopy(backbone), "dynamic_int8")
    refused(lambda: quantize(twice, "dynamic_int8"), "as it was loaded")
    adapted = peft.get_peft_model(deepcopy(backbone), DmgalConfig(num_frames=4))
    assert "with adapters" in refused(lambda: quantize(adapted, "dynamic_int8"), "as it was loaded").received
    refused(lambda: quantize(deepcopy(backbone), "int2"), "quantization is unknown")  # type: ignore[arg-type]
    convolutional = TINY_BACKBONES["convolutional"].make() if "convolutional" in TINY_BACKBONES else resnet()
    refused(lambda: quantize(convolutional, "dynamic_int8"), "no layers to quantize")
    monkeypatch.setattr(quantized, "import_module", missing)
    assert "pip install" in refused(lambda: quantize(deepcopy(backbone), "int8"), "torchao is missing").remedy
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    refused(lambda: quantize(deepcopy(backbone), "dynamic_int8"), "kernels for CPUs only")


def missing(name: str) -> None:
    raise ImportError(f"No module named {name!r}")


def resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(hidden_sizes=[8, 8], depths=[1, 1], embedding_size=8, layer_type="basic")
    return ResNetModel(config).eval()  # type: ignore[no-any-return]


def test_dynamic_layers_are_copied_and_saved(backbone: nn.Module) -> None:
    model = quantize(deepcopy(backbone), "dynamic_int8")
    x, copy = torch.randn(2, 96), deepcopy(model)
    layer, other = linear_layers(model)[0], linear_layers(copy)[0]
    assert torch.equal(layer(x), other(x))
    other.load_state_dict(linear_layers(model)[2].state_dict())
    assert torch.equal(other(x), linear_layers(model)[2](x)) and not torch.equal(layer(x), other(x))
    copy.load_state_dict({}, strict=False)  # as a run is loaded, which has only what it trained

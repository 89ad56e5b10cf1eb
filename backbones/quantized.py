"""Quantized linear layers of a frozen backbone, through which adapters are trained.

    backbone = dmgal.backbones.quantize(load_backbone("hf:openai/clip-vit-base-patch16"), "int8")

The linear layers that the blocks call keep 8 or 4 bits per weight. Everything else stays as it is: embeddings, norms,
convolutions, and weights that another layer reads, such as the packed projections of ``nn.MultiheadAttention``.

Some kernels have no derivative, and torchao's int8 product saves its weights as floats for the backward pass. Here the
backward pass asks the layer for its weights when it needs them: a linear layer maps the identity matrix to its
transposed weights. So gradients are those of the quantized weights, and no layer saves anything.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import DmgalError
from .called_layers import called_layers
from .spec import base_model, is_hooked

Quantization = Literal["int8", "int4", "dynamic_int8", "bnb_int8", "bnb_nf4"]
GROUP = 32
"""Number of int4 weights that share a scale, as small as torchao allows."""


class _Linear(torch.autograd.Function):
    """A linear map with frozen weights and a bias, given as a function. Only its input has a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.linear, ctx.like = linear, x.new_empty(0, x.shape[-1])
        return linear(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        inputs = ctx.like.shape[-1]
        transposed = ctx.linear(torch.eye(inputs).to(ctx.like)) - ctx.linear(ctx.like.new_zeros(1, inputs))
        return gradient @ transposed.to(gradient.dtype).mT, None


def _apply(linear: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if not (torch.is_grad_enabled() and x.requires_grad):
        return linear(x)
    result: Tensor = _Linear.apply(x, linear)  # type: ignore[no-untyped-call]
    return result


class QuantizedLinear(nn.Linear):
    """A linear layer with frozen quantized weights of torchao. Its bias is a parameter like any other."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(..., out_features)`` of ``(..., in_features)``."""
        y = _apply(lambda x: F.linear(x, self.weight), x)
        return y if self.bias is None else y + self.bias


class DynamicLinear(nn.Module):
    """A linear layer of torch with int8 weights. It rounds its input to 8 bits, by the range of the whole batch.

    Args:
        weight: quantized, ``(out_features, in_features)``.
        bias: ``(out_features,)``, or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.set_extra_state((weight, bias))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(..., out_features)`` of ``(..., in_features)``."""
        return _apply(self._linear, x)

    def _linear(self, x: Tensor) -> Tensor:
        reduce_range = True  # so that sums of products fit into 16 bits
        product: Tensor = torch.ops.quantized.linear_dynamic(x, self._packed, reduce_range)
        return product

    def get_extra_state(self) -> tuple[Tensor, Tensor | None]:
        """Return the weight and the bias, which are no parameters."""
        weight, bias = torch.ops.quantized.linear_unpack(self._packed)
        return weight, bias

    def set_extra_state(self, state: tuple[Tensor, Tensor | None]) -> None:
        """Replace the weight and the bias."""
        self._packed = torch.ops.quantized.linear_prepack(*state)


def _int8(layer: nn.Linear) -> nn.Module:
    from torchao.quantization import Int8Tensor, PerRow

    return _with_weight(layer, Int8Tensor.from_hp(layer.weight.detach(), PerRow()))


def _int4(layer: nn.Linear) -> nn.Module:
    from torchao.prototype.quantization.int4 import Int4OpaqueTensor

    return _with_weight(layer, Int4OpaqueTensor.from_hp(layer.weight.detach(), [1, GROUP]))


def _with_weight(layer: nn.Linear, weight: Tensor) -> nn.Module:
    with torch.device("meta"):
        quantized = QuantizedLinear(layer.in_features, layer.out_features, layer.bias is not None)
    quantized.weight, quantized.bias = nn.Parameter(weight, requires_grad=False), layer.bias
    return quantized


def _dynamic_int8(layer: nn.Linear) -> nn.Module:
    weight, bias = layer.weight.detach().float(), layer.bias
    scales = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).eps).double() / 127
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has deprecated its own quantized tensors
        integers = torch.quantize_per_channel(
            weight, scales, torch.zeros_like(scales, dtype=torch.long), 0, torch.qint8
        )
    return DynamicLinear(integers, None if bias is None else bias.detach().float())


def _bnb_int8(layer: nn.Linear) -> nn.Module:
    import bitsandbytes

    # it logs at every call that it rounds float32
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    options = {"bias": layer.bias is not None, "has_fp16_weights": False, "device": "meta"}
    quantized: nn.Linear = bitsandbytes.nn.Linear8bitLt(layer.in_features, layer.out_features, **options)
    quantized.weight = bitsandbytes.nn.Int8Params(layer.weight.detach(), requires_grad=False, has_fp16_weights=False)
    quantized.bias = layer.bias
    return quantized.to(layer.weight.device)  # it quantizes when it is moved


def _bnb_nf4(layer: nn.Linear) -> nn.Module:
    import bitsandbytes

    options = {"bias": layer.bias is not None, "compute_dtype": layer.weight.dtype, "device": "meta"}
    quantized = bitsandbytes.nn.Linear4bit(layer.in_features, layer.out_features, quant_type="nf4", **options)
    quantized.weight = bitsandbytes.nn.Params4bit(layer.weight.detach(), requires_grad=False, quant_type="nf4")
    quantized.bias = layer.bias
    # Some CPUs have a faster kernel. It repacks the weights at the first call without gradients, rounds to bf16, and
    # fails for some widths. One kernel gives training and evaluation the same features.
    quantized.support_avx512bf16_for_cpu = False
    moved: nn.Linear = quantized.to(layer.weight.device)
    return moved


class Kind(NamedTuple):
    """A kind of quantization.

    Attributes:
        convert: returns the quantized form of a linear layer.
        library: the package that it needs.
        group: ``in_features`` must be a multiple of it.
        on_cpu_only: its kernels run on CPUs only.
        flag: attribute of the model by which PEFT knows this kind.
    """

    convert: Callable[[nn.Linear], nn.Module]
    library: str = "torch"
    group: int = 1
    on_cpu_only: bool = False
    flag: str | None = None


KINDS: Mapping[str, Kind] = {
    "int8": Kind(_int8, "torchao"),
    "int4": Kind(_int4, "torchao", GROUP, on_cpu_only=True),
    "dynamic_int8": Kind(_dynamic_int8, on_cpu_only=True),
    "bnb_int8": Kind(_bnb_int8, "bitsandbytes", flag="is_loaded_in_8bit"),
    "bnb_nf4": Kind(_bnb_nf4, "bitsandbytes", flag="is_loaded_in_4bit"),
}
"""Kinds of quantization by name."""


@torch.no_grad()
def quantize(backbone: nn.Module, kind: Quantization) -> nn.Module:
    """Quantize the linear layers that the blocks of a frozen backbone call, in place, and return the backbone.

    Adapters are added afterwards. They stay in their own precision.

    Args:
        backbone: a backbone without adapters. It is frozen.
        kind: ``int8`` (LLM.int8's weights by row, arXiv 2208.07339) and ``int4`` (groups of 32 weights) are torchao's
            weight-only forms, ``dynamic_int8`` is torch's. ``bnb_int8`` and ``bnb_nf4`` (QLoRA, arXiv 2305.14314) are
            those of bitsandbytes.

    Raises:
        DmgalError: the kind is unknown, a library is missing, the backbone has no such layers, or it is not a plain
            backbone in float32 or bf16.
    """
    known = _known(kind)
    if hasattr(backbone, "peft_config") or quantization_of(backbone) is not None:
        raise DmgalError(
            "Only a backbone as it was loaded can be quantized.",
            received="a quantized backbone" if quantization_of(backbone) else "a backbone with adapters",
            expected="a backbone of floats, without adapters",
            remedy="Quantize it once, before adapters are added.",
        )
    _require(known, kind)
    layers = {name: layer for block in called_layers(backbone, (nn.Linear,)) for name, layer in block.items()}
    chosen = {name: layer for name, layer in layers.items() if _is_convertible(layer, known.group)}
    if not chosen:
        raise DmgalError(
            "This backbone has no layers to quantize.",
            received=f"blocks without linear layers for {kind}",
            expected=f"linear layers with a multiple of {known.group} inputs" if known.group > 1 else "linear layers",
            remedy="Remove backbone.quantize, or choose another kind or a transformer.",
        )
    model: Any = backbone.requires_grad_(False)
    model.dmgal_num_parameters = sum(parameter.numel() for parameter in model.parameters())
    for name, layer in chosen.items():
        model.set_submodule(name, known.convert(layer).train(layer.training))  # type: ignore[arg-type]
    model.dmgal_quantization = kind
    if known.flag is not None:
        setattr(model, known.flag, True)
    return backbone


def quantization_of(backbone: nn.Module) -> Quantization | None:
    """Return the kind of quantization of a backbone, or None if it is not quantized."""
    return getattr(base_model(backbone), "dmgal_quantization", None)


def num_parameters(backbone: nn.Module) -> int | None:
    """Return the number of parameters before the quantization, which packs them. None: not quantized."""
    return getattr(base_model(backbone), "dmgal_num_parameters", None)


def _known(kind: str) -> Kind:
    if kind not in KINDS:
        raise DmgalError(
            "This quantization is unknown.",
            received=repr(kind),
            expected=f"one of {', '.join(KINDS)}",
            remedy="Correct backbone.quantize.",
        )
    return KINDS[kind]


def _require(known: Kind, kind: str) -> None:
    """Raise a DmgalError if a library cannot be imported, or has no kernels for the GPU of this machine."""
    try:
        import_module(known.library)
    except ImportError as error:
        raise DmgalError(
            f"The library {known.library} is missing.",
            received=f"backbone.quantize: {kind} ({error})",
            expected=f"{known.library}, or backbone.quantize: dynamic_int8, which needs no library",
            remedy=f"Run pip install 'dmgal[quantize]' for torchao and bitsandbytes, or pip install {known.library}.",
        ) from error
    if known.on_cpu_only and torch.cuda.is_available():
        raise DmgalError(
            "This quantization has kernels for CPUs only.",
            received=f"backbone.quantize: {kind} on a machine with a GPU",
            expected=f"one of {', '.join(name for name, other in KINDS.items() if not other.on_cpu_only)}",
            remedy="Choose one of these, or hide the GPU with CUDA_VISIBLE_DEVICES=.",
        )


def _is_convertible(layer: nn.Module, group: int) -> bool:
    """Return True for a plain linear layer. Layers of a derived class may do something else."""
    return type(layer) is nn.Linear and layer.in_features % group == 0 and not is_hooked(layer)


def plain_tensors(state: Mapping[str, object]) -> Iterator[tuple[str, Tensor]]:
    """Yield the entries of a state dict as plain tensors, for hashes and sizes.

    A quantized weight becomes the tensors that hold its integers and scales. Other entries are left out.
    """
    for name, value in state.items():
        if isinstance(value, Tensor) and value.is_quantized:
            yield f"{name}.integers", value.int_repr()
            yield f"{name}.scales", value.q_per_channel_scales()
        elif hasattr(value, "__tensor_flatten__"):
            yield from plain_tensors({f"{name}.{part}": getattr(value, part) for part in value.__tensor_flatten__()[0]})
        elif isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, tuple):
            yield from plain_tensors({f"{name}.{index}": part for index, part in enumerate(value)})

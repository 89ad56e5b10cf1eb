"""BitFit (Ben Zaken et al., ACL 2022) as a PEFT adapter: only biases are trained.

The frozen bias stays, and what is learned is added to it while its module runs: ``bias + delta``, delta from zero. So
several adapters can be kept, switched and saved, which training the biases themselves would not allow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
from peft import mapping
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..backbones.spec import BackboneSpec
from ..errors import DmgalError
from .block_config import BlockAdapterConfig
from .layer import AdapterLayer
from .registration import ExternalPeftType
from .tuner import BlockTuner

Owned = dict[str, tuple[nn.Module, str]]
"""By key: the module that owns a bias, and the bias's name there."""


@dataclass
class BitFitConfig(BlockAdapterConfig):
    """All biases of the chosen blocks. The saved names are those of the library's own modules.

    Args:
        blocks: indices of the blocks whose biases are trained (negative ones count from the end); None: all.
    """

    blocks: list[int] | None = None

    kind: ClassVar[ExternalPeftType] = ExternalPeftType("BITFIT")
    title: ClassVar[str] = "BitFit (Ben Zaken et al., ACL 2022)"

    def complete(self, spec: BackboneSpec) -> None:
        self.blocks = self.block_indices("blocks", spec.num_blocks)

    def adapter_for(self, block: int, module: nn.Module, spec: BackboneSpec) -> nn.Module | None:
        assert self.blocks is not None
        if block not in self.blocks:
            return None
        if not any(True for _ in _biases(module)):
            raise self.refuse_backbone(f"block {block} has no bias", "take another adapter")
        return BiasDeltas(module)


class BiasDeltas(nn.Module):
    """One vector for each bias of a block, by the bias's name."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        biases = {_key(name): torch.zeros_like(parameter) for name, parameter in _biases(block)}
        self.deltas = nn.ParameterDict({key: nn.Parameter(delta) for key, delta in biases.items()})


class BitFitLayer(AdapterLayer):
    """Swaps each bias for its sum with the deltas while the module runs that reads it."""

    child = "bitfit"
    prefix = "bitfit_"

    def attach(self, block: nn.Module) -> Iterator[RemovableHandle]:
        for reader, owned in _by_reader(block).items():
            originals: dict[str, Tensor] = {}
            yield reader.register_forward_pre_hook(partial(self._add, owned, originals))
            yield reader.register_forward_hook(partial(self._restore, owned, originals), always_call=True)

    def _add(self, owned: Owned, originals: dict[str, Tensor], reader: nn.Module, inputs: Any) -> None:
        for key, (owner, attribute) in owned.items():
            bias: Any = owner._parameters[attribute]
            if key in originals:
                raise DmgalError(
                    "BitFit changes biases while their module runs, so only one call may run it at a time.",
                    received=f"a second call of the module that reads {key}",
                    expected="one thread",
                    remedy="give each thread a copy of the model",
                )
            originals[key] = bias
            for _, adapter in self.active():
                bias = bias + adapter.deltas[key].to(bias.dtype)
            owner._parameters[attribute] = bias

    def _restore(self, owned: Owned, originals: dict[str, Tensor], reader: nn.Module, inputs: Any, output: Any) -> None:
        for key, (owner, attribute) in owned.items():
            if key in originals:
                owner._parameters[attribute] = cast(nn.Parameter, originals.pop(key))


class BitFitModel(BlockTuner):
    """The tuner of ``BitFitConfig``."""

    prefix = BitFitLayer.prefix
    tuner_layer_cls = BitFitLayer


def _biases(block: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and biases of a block, without those that adapters brought."""
    added = tuple(mapping.PEFT_TYPE_TO_PREFIX_MAPPING.values())
    for name, parameter in block.named_parameters():
        is_copy = "modules_to_save" in name.split(".")
        if name.endswith("bias") and not is_copy and not any(prefix in name for prefix in added):
            yield name, parameter


def _by_reader(block: nn.Module) -> dict[nn.Module, Owned]:
    """The biases by the module whose ``forward`` reads them."""
    readers: dict[nn.Module, Owned] = {}
    for name, _ in _biases(block):
        path, _, attribute = name.rpartition(".")
        owner = block.get_submodule(path)
        above = block.get_submodule(path.removesuffix(".base_layer").rpartition(".")[0])
        # torch's attention reads the bias of its output layer without calling that layer
        reader = above if isinstance(above, nn.MultiheadAttention) else owner
        readers.setdefault(reader, {})[_key(name)] = (owner, attribute)
    return readers


def _key(name: str) -> str:
    """A bias's name for a ``ParameterDict``, the same whether or not PEFT has wrapped its module."""
    return name.replace(".base_layer", "").replace(".original_module", "").replace(".", "/")

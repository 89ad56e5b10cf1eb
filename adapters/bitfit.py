"""BitFit (Ben Zaken et al., ACL 2022) as a PEFT adapter: only biases are trained.

The bias stays frozen. While its module runs, the layer replaces it by ``bias + delta``, with ``delta`` initialized to
zero. Unlike trained biases, several such adapters can share a backbone, be switched and saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..backbones.spec import BackboneSpec
from ..errors import DmgalError
from .base import BlockAdapterConfig
from .layer import AdapterLayer
from .tuner import BlockTuner, is_added

Owned = dict[str, tuple[nn.Module, str]]
"""Owner module and attribute name of each bias, by its key."""


@dataclass
class BitFitConfig(BlockAdapterConfig):
    """Config of BitFit for the chosen blocks. Saved weights carry the names of the library's own modules.

    Args:
        blocks: indices of the blocks whose biases are trained, negative ones counting from the end. None: all blocks.
    """

    blocks: list[int] | None = None

    kind: ClassVar[str] = "BITFIT"
    title: ClassVar[str] = "BitFit (Ben Zaken et al., ACL 2022)"

    def complete(self, spec: BackboneSpec) -> None:
        self.blocks = self.block_indices("blocks", spec.num_blocks)

    def adapter_for(self, block: int, module: nn.Module, spec: BackboneSpec) -> nn.Module | None:
        assert self.blocks is not None
        if block not in self.blocks:
            return None
        if next(_biases(module), None) is None:
            raise self.unsupported_backbone(f"block {block} has no bias", "Use another adapter.")
        return BiasDeltas(module)


class BiasDeltas(nn.Module):
    """One trained vector per bias of a block, by the bias's key."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        biases = {_key(name): torch.zeros_like(parameter) for name, parameter in _biases(block)}
        self.deltas = nn.ParameterDict({key: nn.Parameter(delta) for key, delta in biases.items()})


class BitFitLayer(AdapterLayer):
    """BitFit at one block. Each bias is replaced by ``bias + delta`` while the module that reads it runs."""

    child = "bitfit"
    prefix = "bitfit_"
    mixes_adapters = False  # a bias is the same for the whole batch

    def attach(self, block: nn.Module) -> Iterator[RemovableHandle]:
        for reader, owned in _by_reader(block).items():
            originals: dict[str, Tensor] = {}
            yield reader.register_forward_pre_hook(partial(self._add_deltas, owned, originals))
            yield reader.register_forward_hook(partial(self._restore, owned, originals), always_call=True)

    def _add_deltas(self, owned: Owned, originals: dict[str, Tensor], reader: nn.Module, inputs: Any) -> None:
        for key, (owner, attribute) in owned.items():
            bias: Any = owner._parameters[attribute]
            if key in originals:
                raise DmgalError(
                    "BitFit replaces biases while their module runs, so only one call at a time may run the module.",
                    received=f"a second call of the module that reads {key}",
                    expected="one thread",
                    remedy="Give each thread a copy of the model.",
                )
            originals[key] = bias
            for _, adapter in self.active():
                bias = bias + adapter.deltas[key].to(bias.dtype)
            owner._parameters[attribute] = bias

    def _restore(
        self, owned: Owned, originals: dict[str, Tensor], reader: nn.Module, inputs: object, output: object
    ) -> None:
        for key, (owner, attribute) in owned.items():
            if key in originals:
                owner._parameters[attribute] = cast(nn.Parameter, originals.pop(key))


class BitFitModel(BlockTuner):
    """The tuner of ``BitFitConfig``."""

    tuner_layer_cls = BitFitLayer


def _biases(block: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield names and biases of a block, except those of adapters."""
    for name, parameter in block.named_parameters():
        is_copy = "modules_to_save" in name.split(".")
        if name.endswith("bias") and not is_copy and not is_added(name):
            yield name, parameter


def _by_reader(block: nn.Module) -> dict[nn.Module, Owned]:
    """Group the biases of a block by the module whose ``forward`` reads them."""
    readers: dict[nn.Module, Owned] = {}
    for name, _ in _biases(block):
        path, _, attribute = name.rpartition(".")
        owner = block.get_submodule(path)
        above = block.get_submodule(path.removesuffix(".base_layer").rpartition(".")[0])
        # torch's attention reads the bias of its output layer without calling that layer.
        reader = above if isinstance(above, nn.MultiheadAttention) else owner
        readers.setdefault(reader, {})[_key(name)] = (owner, attribute)
    return readers


def _key(name: str) -> str:
    """Return a key for a ``ParameterDict`` that does not change if PEFT wraps the module."""
    return name.replace(".base_layer", "").replace(".original_module", "").replace(".", "/")

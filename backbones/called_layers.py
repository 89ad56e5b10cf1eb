"""Layers that the blocks of a backbone call.

A library may also read the weights of a layer without calling it. An adapter around such a layer has no effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .families import find_spec
from .probing import evaluating


@torch.no_grad()
def called_layers(backbone: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[dict[str, nn.Module]]:
    """Run one image, and return the layers of some kinds that each block calls, by their names.

    Layers without parameters of their own are left out.
    """
    spec = find_spec(backbone)
    blocks = {name: backbone.get_submodule(name) for name in spec.block_names()}
    weight = backbone.get_parameter(f"{spec.patch_embedding}.weight")
    with evaluating(backbone), recording(blocks.values(), kinds) as called:
        tokens = spec.entry.native(spec.stem(backbone, weight.new_zeros(1, 3, *spec.image_size)))
        for block in blocks.values():
            tokens = spec.run_block(backbone, block, tokens)
    return [
        {f"{path}.{name}" if name else path: module for name, module in block.named_modules() if module in called}
        for path, block in blocks.items()
    ]


@contextmanager
def recording(parts: Iterable[nn.Module], kinds: tuple[type[nn.Module], ...]) -> Iterator[set[nn.Module]]:
    """Collect the layers of some kinds, with parameters of their own, that are called in this context."""
    called: set[nn.Module] = set()
    handles = [
        module.register_forward_pre_hook(lambda module, inputs: called.add(module))
        for part in parts
        for module in part.modules()
        if isinstance(module, kinds) and any(True for _ in module.parameters())
    ]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()

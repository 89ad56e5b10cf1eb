"""State of a block that its recomputation restores: settings of its adapters, and statistics of its batch norms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

from torch import nn

from ..errors import DmgalError
from .state import SAVES_EVERYTHING


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Keep batch norms in training mode from updating their running statistics a second time for the same batch."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [(norm, norm.momentum) for norm in norms if norm.training]
    for norm, _ in momenta:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in momenta:
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked -= 1


def adapted_modules(module: nn.Module) -> list[Any]:
    """Return the layers of PEFT inside a module, which have a switch for their adapters."""
    return [part for part in module.modules() if hasattr(part, "_disable_adapters")]


@contextmanager
def switched_off(module: nn.Module) -> Iterator[None]:
    """Switch all adapters in a module off inside the context.

    PEFT's ``disable_adapter`` would make their parameters require gradients afterwards.
    """
    layers = adapted_modules(module)
    before = [vars(layer).get("_disable_adapters") for layer in layers]  # None: the default of the class
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, is_off in zip(layers, before, strict=True):
            if is_off is None:
                del layer._disable_adapters
            else:
                layer._disable_adapters = is_off


def saves_all(block: nn.Module) -> bool:
    """Return True if nothing of a block may be recomputed."""
    return SAVES_EVERYTHING.get() or carries_state(block)


def carries_state(module: nn.Module) -> bool:
    """Return True if an adapter hands something on from block to block, so that no encoding can begin between them."""
    return any(getattr(part, "carries_state", False) for part in adapted_modules(module))


class AdapterSettings:
    """Settings of the PEFT layers in a block at one time: active adapters, scaling, what is trained."""

    def __init__(self, block: nn.Module) -> None:
        self._block = block
        self._values = self._read()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Apply the settings inside the context.

        Raises:
            DmgalError: adapters were added, removed or merged since.
        """
        now = self._read()
        if now == self._values:
            yield
            return
        if now.keys() != self._values.keys():
            raise DmgalError(
                "A backward pass recomputes a block whose adapters have changed since.",
                received="adapters that were added, removed, merged or unmerged",
                expected="the adapters of the forward pass, active or not",
                remedy="Call backward() first, or use checkpoint_blocks=False.",
            )
        self._write(self._values)
        try:
            yield
        finally:
            self._write(now)

    def _read(self) -> dict[tuple[object, str, tuple[str, ...]], object]:
        values: dict[tuple[object, str, tuple[str, ...]], object] = {
            (module, name, tuple(getattr(module, "merged_adapters", ()))): copy(vars(module)[name])
            for module in self._block.modules()
            for name in ("_active_adapter", "_disable_adapters", "_mixture", "scaling", "training")
            if name in vars(module)
        }
        # by name, because a LoRA on torch's attention replaces the attention's frozen parameters in each call
        return values | {(name, "requires_grad", ()): p.requires_grad for name, p in self._block.named_parameters()}

    def _write(self, values: dict[tuple[object, str, tuple[str, ...]], object]) -> None:
        for (owner, name, _), value in values.items():
            setattr(self._block.get_parameter(owner) if isinstance(owner, str) else owner, name, copy(value))

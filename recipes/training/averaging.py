"""An exponential moving average of what is trained, which often validates better than the last step's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """Follows the trained parameters of a model; the average starts at their first values.

    Args:
        model: its parameters that require gradients are followed; nothing else is copied.
        decay: share of the average that a step keeps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.values: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._trained.items()}
        self._update: Any = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self) -> None:
        """After each step of the optimizer."""
        self._update(list(self.values.values()), [p.detach() for p in self._trained.values()], 0)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the model has the averaged weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Takes up saved averages of the same parameters."""
        for name, value in self.values.items():
            value.copy_(values[name])

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._trained.items():
            current = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(current)

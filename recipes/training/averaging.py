"""Exponential moving average of the trained parameters, which often validates better than the last step's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """Moving average of the trained parameters of a model, starting at their initial values.

    Args:
        model: the model. Only its parameters that require gradients are averaged and copied.
        decay: weight of the old average in each update.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.values: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._trained.items()}
        self._update: Any = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self) -> None:
        """Update the average. Call this after each optimizer step."""
        self._update(list(self.values.values()), [p.detach() for p in self._trained.values()], 0)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Swap the averaged weights into the model for the duration of the context."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Load saved averages of the same parameters."""
        for name, value in self.values.items():
            value.copy_(values[name])

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._trained.items():
            current = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(current)

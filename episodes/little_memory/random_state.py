"""The state of torch's random generators: restored, a part of a model runs again with the same dropout."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """Of the CPU, where our own dropout draws, and of the device, where that of others does."""

    device: torch.device
    on_cpu: Tensor
    on_device: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> RandomState:
        """As it is at this moment."""
        if device.type == "cpu":
            return cls(device, torch.get_rng_state(), None)
        return cls(device, torch.get_rng_state(), torch.get_device_module(device).get_rng_state(*_index(device)))

    def restore(self) -> None:
        """What is drawn next is what was drawn after `now`."""
        torch.set_rng_state(self.on_cpu)
        if self.on_device is not None:
            torch.get_device_module(self.device).set_rng_state(self.on_device, *_index(self.device))

    def equals(self, other: RandomState) -> bool:
        """Whether both would draw the same."""
        if self.on_device is None or other.on_device is None:
            return torch.equal(self.on_cpu, other.on_cpu)
        return torch.equal(self.on_cpu, other.on_cpu) and torch.equal(self.on_device, other.on_device)


def _index(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # there is only one of these

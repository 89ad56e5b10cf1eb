"""State of torch's random generators, which is restored to run a part of a model again with the same dropout."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """Random states of the CPU (our own dropout) and of the device (dropout of other libraries)."""

    device: torch.device
    on_cpu: Tensor
    on_device: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> RandomState:
        """Return the current state."""
        if device.type == "cpu":
            return cls(device, torch.get_rng_state(), None)
        return cls(device, torch.get_rng_state(), torch.get_device_module(device).get_rng_state(*_index(device)))

    def restore(self) -> None:
        """Restore the state, so that the same numbers are drawn as after `now`."""
        torch.set_rng_state(self.on_cpu)
        if self.on_device is not None:
            torch.get_device_module(self.device).set_rng_state(self.on_device, *_index(self.device))

    def equals(self, other: RandomState) -> bool:
        """Return True if both states draw the same numbers."""
        if self.on_device is None or other.on_device is None:
            return torch.equal(self.on_cpu, other.on_cpu)
        return torch.equal(self.on_cpu, other.on_cpu) and torch.equal(self.on_device, other.on_device)


def _index(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # there is only one MPS device

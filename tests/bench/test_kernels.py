"""Equality of the versions that bench/kernels.py compares."""

from __future__ import annotations

import pytest
import torch

from dmgal.bench import kernels


@pytest.mark.parametrize("name", kernels.KERNELS)
def test_both_forms_agree(monkeypatch, name: str) -> None:
    for constant, small in {"QUERIES": 2, "SUPPORTS": 3, "FRAMES": 4}.items():
        monkeypatch.setattr(kernels, constant, small)
    torch.manual_seed(0)
    with torch.no_grad():
        difference = kernels.largest_difference(kernels.KERNELS[name]())
    assert difference <= (0.02 if "bfloat16" in name else 1e-5)


def test_targets_are_of_kernels_that_exist() -> None:
    assert kernels.WANTED.keys() <= kernels.KERNELS.keys() and len(kernels.WANTED) >= 6

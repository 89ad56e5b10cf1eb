"""Readers of golden files in ``tests/data/golden``: the authors' inputs, weights and outputs."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

FOLDER = Path(__file__).parent / "data" / "golden"


def read_golden(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict]:
    """Return tensors, weights under the authors' names, and the settings of one golden file."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        info = json.loads(file.metadata()["info"])
    weights = {key.removeprefix("weights."): tensors.pop(key) for key in list(tensors) if key.startswith("weights.")}
    return tensors, weights, info


def assert_relatively_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()

"""Golden numbers of the released code, shared by the tests of heads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from torch import Tensor

GOLDEN = Path(__file__).parents[2] / "data" / "golden"


@pytest.fixture(scope="session")
def read_golden() -> Callable[[str], tuple[dict[str, Tensor], dict[str, Tensor], dict]]:
    """Read by name: tensors, weights under the authors' names, and settings."""

    def read(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict]:
        with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            info = json.loads(file.metadata()["info"])
        names = [key for key in tensors if key.startswith("weights.")]
        return tensors, {key.removeprefix("weights."): tensors.pop(key) for key in names}, info

    return read


@pytest.fixture(scope="session")
def assert_relatively_close() -> Callable[..., None]:
    """``max |ours - theirs|`` relative to the largest of theirs."""

    def check(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()

    return check

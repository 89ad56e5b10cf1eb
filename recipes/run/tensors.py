"""Tensors in safetensors files, written atomically."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmgal.errors import DmgalError
from dmgal.files import atomic_write, open_regular, reason


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file atomically. Tensors that share memory, such as tied weights, are written as copies."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    memory = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    for name, tensor in tensors.items():
        if memory[tensor.untyped_storage().data_ptr()] > 1:
            tensors[name] = tensor.clone()
    try:
        with atomic_write(path) as temporary:
            save_file(tensors, temporary)
    except SafetensorError as error:  # it wraps the message of the system error
        raise OSError(str(error)) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU. Raise a DmgalError if it is damaged."""
    try:
        open_regular(path).close()
        return load_file(path)
    except (SafetensorError, OSError, MemoryError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise DmgalError(
            "Saved weights cannot be read.",
            received=f"{path}: {reason(error)[:300]}",
            expected="an intact safetensors file",
            remedy="Copy or train the run again.",
        ) from error

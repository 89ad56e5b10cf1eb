"""Reading and writing of trained weights: an adapter in PEFT's format, everything else as safetensors."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from dmgal.adapters import is_added
from dmgal.backbones.quantized import plain_tensors
from dmgal.episodes import FewShotRecognizer
from dmgal.errors import differences, refuse_differences
from dmgal.recipes.run.folder import Run
from dmgal.recipes.run.tensors import write_tensors
from dmgal.recipes.run.whole_folders import replace_folder, restore_folder

BACKBONE, TEXT = "encoder.backbone.", "head.text_tower.model."
"""Prefixes of the names of the backbone's weights, and of those of a text tower in training."""


def trained_state(recognizer: nn.Module) -> dict[str, Tensor]:
    """Return trained parameters and batch norm statistics by name. Every process must call this function."""
    named = dict(recognizer.named_parameters())
    parameters = {name: gather_shards(p.detach()) for name, p in named.items() if p.requires_grad}
    unnamed = {name for name, _ in recognizer.named_buffers()}  # not the state of quantized layers
    buffers = {name: value for name, value in recognizer.state_dict().items() if name in unnamed}
    return {**parameters, **buffers}


def load_trained_state(recognizer: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Load a trained state. Raise a DmgalError if its names or shapes do not match the model.

    It must have all trained parameters, but may have no adapter, which PEFT loads.
    """
    current = recognizer.state_dict()
    trained = {name for name, p in recognizer.named_parameters() if p.requires_grad and not is_added(name)}
    saved_shapes = {name: tuple(value.shape) for name, value in state.items()}
    refuse_differences(
        differences(saved_shapes, {name: tuple(current[name].shape) for name in trained | state.keys() & current}),
        f"The weights in {source} do not fit the model that the recipe describes.",
        "Use the recipe.yaml that was saved with the weights.",
    )
    recognizer.load_state_dict(shard_all_like(state, current), strict=False)


def best_state(recognizer: FewShotRecognizer) -> dict[str, Tensor]:
    """Return the trained state and all adapter weights for ``save_best``. Every process must call this function."""
    added = {name: gather_shards(p.detach()) for name, p in recognizer.named_parameters() if is_added(name)}
    return {**trained_state(recognizer), **added}


def save_best(recognizer: FewShotRecognizer, state: Mapping[str, Tensor], run: Run) -> None:
    """Write the best state: the adapter to ``adapter/``, all other weights to ``adapter/weights.safetensors``.

    A LoRA of the text tower is ``adapter/text/``. The folder is replaced as one, so all of it is always of the same
    step. A run without an adapter and LoRA has only ``weights.safetensors``, beside ``recipe.yaml``.
    """
    backbone: Any = recognizer.encoder.backbone
    tower: Any = getattr(recognizer.head, "text_tower", None)
    rest = {name: tensor for name, tensor in state.items() if not is_added(name) and not name.startswith(TEXT)}
    adapter = _below(BACKBONE, state)
    has_adapter = hasattr(backbone, "peft_config") and adapter  # a motion expert is not saved again
    if not has_adapter and tower is None:
        if rest:
            write_tensors(run.folder / "weights.safetensors", rest)
        return
    partial = run.folder / ".adapter.partial"
    shutil.rmtree(partial, ignore_errors=True)
    if has_adapter:
        # PEFT saves fixed tensors too: shared projections, which the tuner has (VeRA) or each layer (RandLoRA)
        own = backbone.state_dict().items()
        fixed = {name: t for name, t in own if is_added(name) or not name.startswith("base_model.model.")}
        _save_adapter(backbone, fixed | adapter, partial)
    if tower is not None:
        _save_adapter(tower.model, _below(TEXT, state), partial / "text")
    if rest:
        write_tensors(partial / "weights.safetensors", rest)
    replace_folder(partial, run.folder / "adapter")


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names have a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _save_adapter(model: Any, state: Mapping[str, Tensor], folder: Path) -> None:
    for config in model.peft_config.values():
        _without_folders(config)
    # "auto" for the embeddings would ask the hub
    model.save_pretrained(str(folder), state_dict=dict(state), save_embedding_layers=False)


def clean_up_best(run: Run) -> None:
    """Restore the best adapter after a kill, and delete incomplete files."""
    restore_folder(run.folder / "adapter")
    shutil.rmtree(run.folder / ".adapter.partial", ignore_errors=True)


def optimizer_state(optimizer: torch.optim.Optimizer, recognizer: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer state by names such as ``exp_avg.head.log_scale``. Every process must call this function."""
    return {
        f"{kind}.{name}": gather_shards(value)
        for name, parameter in _optimized(optimizer, recognizer)
        for kind, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, recognizer: nn.Module, remembered: Mapping[str, Tensor]
) -> None:
    """Load an ``optimizer_state`` of the same optimizer class, with any grouping of the parameters.

    Raises:
        ValueError: a state has another shape than its parameter.
    """
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in remembered.items():
        kind, _, name = key.partition(".")
        states.setdefault(name, {})[kind] = value
    for name, parameter in _optimized(optimizer, recognizer):
        if name in states:
            for kind, value in states[name].items():
                if value.numel() > 1 and value.shape != parameter.shape:
                    raise ValueError(f"{kind}.{name} has the shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
            optimizer.state[parameter] = {
                kind: value if kind == "step" else shard_like(value, parameter) for kind, value in states[name].items()
            }


def _optimized(optimizer: torch.optim.Optimizer, recognizer: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the parameters of an optimizer with their names in the model."""
    names = {id(parameter): name for name, parameter in recognizer.named_parameters()}
    return [(names[id(parameter)], parameter) for group in optimizer.param_groups for parameter in group["params"]]


def _without_folders(config: object) -> None:
    """Remove folders of this machine from a saved adapter config. The weights identify the backbone."""
    for name in ("base_model_name_or_path", "backbone", "command"):
        text = getattr(config, name, None)
        if isinstance(text, str):
            setattr(config, name, " ".join(without_folder(word) for word in text.split(" ")))


def without_folder(word: str) -> str:
    """Return a command line word without the folder of an absolute path."""
    before, equals, path = word.rpartition("=")
    quote = path[:1] if path[:1] in ("'", '"') else ""
    path = path.removeprefix(quote)
    return f"{before}{equals}{quote}{Path(path).name if os.path.isabs(path) else path}"


def weights_hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return a hash of names, shapes and bytes of tensors in any order, or ``none`` if there are none."""
    digest, found = blake2b(digest_size=8), False
    for name, tensor in sorted(plain_tensors(dict(tensors))):
        found = True
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest() if found else "none"


def gather_shards(tensor: Tensor) -> Tensor:
    """Return a tensor gathered from all processes. Every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_all_like(values: Mapping[str, Tensor], likes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Shard full tensors like those of the same names in ``likes``."""
    return {name: shard_like(value, likes.get(name, value)) for name, value in values.items()}


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """Move a full tensor to the device and dtype of another one and shard it in the same way."""
    value = value.to(device=like.device, dtype=like.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements) if isinstance(like, DTensor) else value

"""What a run has trained, in and out of files: an adapter as PEFT saves it, everything else as safetensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmgal.adapters import PREFIXES
from dmgal.episodes import FewShotRecognizer
from dmgal.errors import DmgalError
from dmgal.recipes.runs import Run, read_tensors, write_tensors, write_text


def is_added(name: str) -> bool:
    """Whether a parameter of a PEFT model belongs to an adapter and not to the backbone."""
    return any(prefix in name for prefix in PREFIXES)


def trained_state(recognizer: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and the statistics of batch norms, by name."""
    every = dict(recognizer.named_parameters())
    parameters = {name: p.detach() for name, p in every.items() if p.requires_grad}
    buffers = {name: value for name, value in recognizer.state_dict().items() if name not in every}
    return {**parameters, **buffers}


def load_trained_state(recognizer: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Puts a trained state back; DmgalError where it names what the model does not have."""
    unknown = sorted(set(state) - set(recognizer.state_dict()))
    if unknown:
        raise DmgalError(
            "Saved weights do not fit the model that the recipe describes.",
            received=f"{source}: {', '.join(unknown[:3])}, ... ({len(unknown)} names)",
            expected="names of the model's parameters",
            remedy="use the recipe.yaml that was saved beside the weights",
        )
    recognizer.load_state_dict(state, strict=False)


def save_best(recognizer: FewShotRecognizer, run: Run) -> None:
    """The adapter into ``adapter/``, all else that was trained into ``weights.safetensors``."""
    backbone: Any = recognizer.encoder.backbone
    if hasattr(backbone, "peft_config"):
        partial = run.folder / ".adapter.partial"
        shutil.rmtree(partial, ignore_errors=True)
        backbone.save_pretrained(str(partial), save_embedding_layers=False)  # "auto" would ask the hub
        shutil.rmtree(run.adapter, ignore_errors=True)
        partial.rename(run.adapter)
    rest = {n: t for n, t in trained_state(recognizer).items() if not is_added(n)}
    if rest:
        write_tensors(run.weights, rest)


def save_checkpoint(
    recognizer: nn.Module, optimizer: torch.optim.Optimizer, run: Run, progress: dict[str, object]
) -> None:
    """Everything that resuming needs; the folder appears whole or not at all."""
    partial = run.folder / ".checkpoint.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    write_tensors(partial / "model.safetensors", trained_state(recognizer))
    moments = {
        f"{group}.{place}.{name}": value
        for group, place, state in _optimizer_states(optimizer)
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
    write_tensors(partial / "optimizer.safetensors", moments)
    write_text(partial / "progress.json", json.dumps(progress) + "\n")
    old = run.folder / ".checkpoint.old"
    shutil.rmtree(old, ignore_errors=True)
    if run.checkpoint.exists():
        run.checkpoint.rename(old)
    partial.rename(run.checkpoint)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(recognizer: nn.Module, optimizer: torch.optim.Optimizer, run: Run) -> dict[str, object] | None:
    """Puts model and optimizer back; None where the run has no checkpoint yet."""
    folder = run.checkpoint if run.checkpoint.exists() else run.folder / ".checkpoint.old"
    if not folder.exists():
        return None
    load_trained_state(recognizer, read_tensors(folder / "model.safetensors"), folder)
    moments = read_tensors(folder / "optimizer.safetensors")
    for number, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            prefix = f"{number}.{place}."
            state = {key.removeprefix(prefix): value for key, value in moments.items() if key.startswith(prefix)}
            if state:
                optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter) for key, value in state.items()
                }
    return json.loads((folder / "progress.json").read_text())


def _optimizer_states(optimizer: torch.optim.Optimizer) -> list[tuple[int, int, dict[str, object]]]:
    return [
        (number, place, optimizer.state[parameter])
        for number, group in enumerate(optimizer.param_groups)
        for place, parameter in enumerate(group["params"])
        if parameter in optimizer.state
    ]

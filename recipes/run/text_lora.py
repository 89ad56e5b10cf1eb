"""The LoRA of a run's text tower: new for training, and loaded to encode class names."""

from __future__ import annotations

from pathlib import Path

from dmgal.adapters.text_lora import add_text_lora, load_text_lora
from dmgal.backbones import TextEncoder, load_text_encoder
from dmgal.episodes import FewShotRecognizer
from dmgal.errors import DmgalError
from dmgal.recipes.run.adapter import check_adapter_files, check_tensors, construct
from dmgal.recipes.run.build import count_parameters
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.tensors import read_tensors
from dmgal.recipes.run.weights import weights_hash, without_folder


def learns_text(recognizer: FewShotRecognizer) -> bool:
    """Return True if the head uses the text of the classes itself, in training and afterwards."""
    return bool(getattr(recognizer.head, "learns_text", False))


def text_lora_of(recognizer: FewShotRecognizer) -> Path | None:
    """Return the folder of the trained LoRA of the recognizer's text tower, or None if the tower is as loaded."""
    return getattr(recognizer.head, "text_lora", None)


def trainable_encoder(recognizer: FewShotRecognizer, recipe: Recipe) -> TextEncoder:
    """Return the text encoder of a recipe with a new LoRA, or without one if the recipe has none.

    Raises:
        DmgalError: nothing would train the LoRA, or the backbone has no text tower.
    """
    rank = recipe.text.lora
    if rank is None:
        return load_text_encoder(recipe.backbone.name)
    if not learns_text(recognizer) or not recipe.train.steps:
        without = "train.steps: 0" if learns_text(recognizer) else f"the head {type(recognizer.head).__name__}"
        raise DmgalError(
            "Nothing trains the LoRA of the text tower.",
            received=f"text.lora: {rank} with {without}",
            expected="training steps, and a head that learns from text, such as ClipFSAR",
            remedy="Remove text.lora, or train method/clip_fsar.",
        )
    return add_text_lora(load_text_encoder(recipe.backbone.name), rank)


def text_encoder(recipe: Recipe, lora: Path | None) -> TextEncoder:
    """Return the text encoder of a recipe's backbone, with a saved LoRA in its tower if there is one.

    Raises:
        DmgalError: the backbone has no text tower, or the LoRA cannot be read or does not fit it.
    """
    encoder = load_text_encoder(recipe.backbone.name)
    if lora is None:
        return encoder
    check_adapter_files(lora)
    encoder = construct(f"LoRA of {lora}", load_text_lora, {"encoder": encoder, "folder": str(lora)}, Exception)
    check_tensors(encoder.model, lora)
    return encoder


def encoder_name(recipe: Recipe, lora: Path | None) -> str:
    """Return the name that texts have, with the hash of the LoRA, so that texts with and without it are never mixed."""
    name = without_folder(recipe.backbone.name)
    return name if lora is None else f"{name} with LoRA {lora_hash(lora)}"


def lora_hash(lora: Path) -> str:
    """Return the hash of the weights of a saved LoRA."""
    return weights_hash(read_tensors(lora / "adapter_model.safetensors").items())


def num_trained(recognizer: FewShotRecognizer, recipe: Recipe) -> int:
    """Return the number of parameters that a recipe trains. The recognizer of a run does not hold its text tower."""
    if not recipe.train.steps:
        return 0
    num, lora = count_parameters(recognizer, trained_only=True), text_lora_of(recognizer)
    if lora is not None:
        num += sum(tensor.numel() for tensor in read_tensors(lora / "adapter_model.safetensors").values())
    return num

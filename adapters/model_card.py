"""The model card beside a saved adapter: method, backbone, shapes, what is a reconstruction, and how it was made."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .block_config import BlockAdapterConfig

_BEGIN, _END = "<!-- dmgal: written anew at every save -->", "<!-- dmgal: end -->"
_UNFILLED = "[More Information Needed]"
_BACKBONE = ("backbone", "width", "num_blocks", "num_prefix_tokens", "grid", "num_frames")
_NOT_OPTIONS = (*_BACKBONE, "fingerprint", "command", "inference_mode", "peft_version", "auto_mapping")


def write_model_card(folder: str | Path, config: BlockAdapterConfig) -> None:
    """Fills the card that PEFT wrote; of a card that a person wrote, only our own section changes."""
    from huggingface_hub import ModelCard, ModelCardData

    path = Path(folder) / "README.md"
    card = ModelCard(path.read_text(encoding="utf-8")) if path.is_file() else ModelCard("---\n---\n")
    card.data = card.data or ModelCardData()
    card.data["library_name"] = "peft"
    if config.backbone:
        card.data["base_model"] = config.backbone.removeprefix("hf:")
    section = f"{_BEGIN}\n{_section(config)}\n{_END}"
    card.text = (
        f"\n# {config.title.split(' (')[0]}\n\n{section}\n" if _is_unfilled(card.text) else _with(card.text, section)
    )
    path.write_text(str(card), encoding="utf-8")


def _is_unfilled(text: str) -> bool:
    return not text.strip() or _UNFILLED in text


def _with(text: str, section: str) -> str:
    if _BEGIN in text and _END in text:
        return text[: text.index(_BEGIN)] + section + text[text.index(_END) + len(_END) :]
    return f"{text.rstrip()}\n\n{section}\n"


def _section(config: BlockAdapterConfig) -> str:
    options = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in _NOT_OPTIONS and getattr(config, field.name) is not None
    }
    return "\n".join(
        [
            f"Method: {config.title}.",
            "",
            "| Backbone | |",
            "| --- | --- |",
            *(f"| {name} | {_text(getattr(config, name))} |" for name in _BACKBONE),
            "",
            "| Option | |",
            "| --- | --- |",
            *(f"| {name} | {_text(value)} |" for name, value in options.items()),
            "",
            "Made by:",
            "",
            f"    {config.command or command_line()}",
            "",
            "Load it into the same backbone:",
            "",
            "```python",
            "import dmgal.adapters, peft",
            "",
            'model = peft.PeftModel.from_pretrained(backbone, "this folder")',
            "```",
        ]
    )


def command_line() -> str:
    """The command of this process, without the folder of its script."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return shlex.join(words) if words[0] else "an interactive session"


def _text(value: object) -> str:
    return "unknown" if value is None else str(value)

"""The model card beside a saved adapter: method, backbone, shapes, what is a reconstruction, and how it was made."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .block_config import BlockAdapterConfig

_SECRET = re.compile(r"token|secret|password|api.?key", re.IGNORECASE)
_BEGIN, _END = "<!-- dmgal: written anew at every save -->", "<!-- dmgal: end -->"
_UNFILLED, _UNFILLED_PLACES = "[More Information Needed]", 10
_BACKBONE = ("backbone", "width", "num_blocks", "num_prefix_tokens", "grid", "num_frames")
_NOT_OPTIONS = (*_BACKBONE, "fingerprint", "command", "inference_mode", "peft_version", "auto_mapping")


def write_model_card(folder: str | Path, config: BlockAdapterConfig) -> None:
    """Fills the card that PEFT wrote; of a card that a person wrote, only our own section changes."""
    from huggingface_hub import ModelCard, ModelCardData

    path = Path(folder) / "README.md"
    card = ModelCard(path.read_text(encoding="utf-8")) if path.is_file() else ModelCard("---\n---\n")
    card.data = card.data or ModelCardData()
    card.data["library_name"] = "peft"
    if base_model := _on_the_hub(config.backbone or ""):
        card.data["base_model"] = base_model
    section = f"{_BEGIN}\n{_section(config)}\n{_END}"
    card.text = (
        f"\n# {config.title.split(' (')[0]}\n\n{section}\n" if _is_unfilled(card.text) else _with(card.text, section)
    )
    path.write_text(str(card), encoding="utf-8")


def _is_unfilled(text: str) -> bool:
    """Whether nobody has written anything yet: PEFT's template asks for more at dozens of places."""
    return not text.strip() or (_BEGIN not in text and text.count(_UNFILLED) > _UNFILLED_PLACES)


def _on_the_hub(backbone: str) -> str | None:
    """The repository that a hub can link, of ``hf:OWNER/NAME`` and ``timm:MODEL.TAG``."""
    source, _, name = backbone.partition(":")
    return {"hf": name, "timm": f"timm/{name}"}.get(source)


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
            f"    {config.command or 'unknown'}",
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
    """The command of this process as it may be read by others: no folders of this machine, and no secrets."""
    program = Path(sys.argv[0]).name
    if program in ("", "-c", "ipykernel_launcher.py"):
        return "an interactive session"
    words, hide = [program], False
    for word in sys.argv[1:]:
        flag, equals, value = word.partition("=")
        secret = bool(_SECRET.search(flag))
        shown = "***" if hide or (secret and equals) else _without_folders(value if equals else word)
        words.append(f"{flag}={shown}" if equals else shown)
        hide = secret and not equals
    return shlex.join(words)


def _without_folders(word: str) -> str:
    return Path(word).name if Path(word).is_absolute() or word.startswith("~") else word


def _text(value: object) -> str:
    return "unknown" if value is None else str(value)

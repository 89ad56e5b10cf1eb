"""The model card of a saved adapter: method and its source, backbone, options and the command that produced it."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from pathlib import Path
from typing import Any

_SECRET = re.compile(r"token|secret|password|api.?key", re.IGNORECASE)
_BEGIN, _END = "<!-- dmgal: replaced at every save -->", "<!-- dmgal: end -->"
_OUR_SECTION = re.compile(r"<!-- dmgal: (?!end).*?<!-- dmgal: end -->", re.DOTALL)  # also of earlier versions
_UNFILLED, _MAX_UNFILLED = "[More Information Needed]", 10
_BACKBONE = ("backbone", "width", "num_blocks", "num_prefix_tokens", "grid", "num_frames")
_NOT_OPTIONS = (*_BACKBONE, "fingerprint", "command", "inference_mode", "peft_version", "auto_mapping")


def write_model_card(folder: str | Path, config: Any) -> None:
    """Fill in the card that PEFT wrote. In a card with the user's text, replace only dmgal's section."""
    from huggingface_hub import ModelCard, ModelCardData

    path = Path(folder) / "README.md"
    card = ModelCard(path.read_text(encoding="utf-8")) if path.is_file() else ModelCard("---\n---\n")
    card.data = card.data or ModelCardData()
    card.data["library_name"] = "peft"
    if base_model := _hub_repository(config.backbone or ""):
        card.data["base_model"] = base_model
    section = f"{_BEGIN}\n{_section(config)}\n{_END}"
    if _is_unfilled(card.text):
        card.text = f"\n# {config.title.split(' (')[0]}\n\n{section}\n"
    else:
        card.text = _replace_section(card.text, section)
    path.write_text(str(card), encoding="utf-8")


def _is_unfilled(text: str) -> bool:
    """Return True for an empty card or PEFT's template, which has dozens of unfilled fields."""
    return not text.strip() or (not _OUR_SECTION.search(text) and text.count(_UNFILLED) > _MAX_UNFILLED)


def _hub_repository(backbone: str) -> str | None:
    """Return the Hugging Face repository of ``hf:OWNER/NAME`` or ``timm:MODEL.TAG``, or None for other sources."""
    source, _, name = backbone.partition(":")
    return {"hf": name, "timm": f"timm/{name}"}.get(source)


def _replace_section(text: str, section: str) -> str:
    if match := _OUR_SECTION.search(text):
        return text[: match.start()] + section + text[match.end() :]
    return f"{text.rstrip()}\n\n{section}\n"


def _section(config: Any) -> str:
    options = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in _NOT_OPTIONS and getattr(config, field.name) is not None
    }
    return f"""Method: {config.title}.

{_table("Backbone", {name: getattr(config, name) for name in _BACKBONE})}

{_table("Option", options)}

Made by:

    {config.command or "unknown"}

Load it into the same backbone:

```python
import dmgal.adapters, peft

model = peft.PeftModel.from_pretrained(backbone, "this folder")
```"""


def _table(header: str, values: dict[str, object]) -> str:
    rows = (f"| {name} | {'unknown' if value is None else value} |" for name, value in values.items())
    return "\n".join([f"| {header} | |", "| --- | --- |", *rows])


def command_line() -> str:
    """Return the command line of this process without secrets and without folders of this machine."""
    program = Path(sys.argv[0]).name
    if program in ("", "-c", "ipykernel_launcher.py"):
        return "an interactive session"
    words, follows_secret_flag = [program], False
    for word in sys.argv[1:]:
        flag, equals, value = word.partition("=")
        is_secret = bool(_SECRET.search(flag))
        shown = _without_folders(value if equals else word)
        if follows_secret_flag or (is_secret and equals):
            shown = "***"
        words.append(f"{flag}={shown}" if equals else shown)
        follows_secret_flag = is_secret and not equals
    return shlex.join(words)


def _without_folders(word: str) -> str:
    return Path(word).name if Path(word).is_absolute() or word.startswith("~") else word

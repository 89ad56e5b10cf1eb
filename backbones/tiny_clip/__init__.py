"""tiny-clip, a small real CLIP that ships with dmgal. It was trained on stills and knows no motion."""

from pathlib import Path

FOLDER = Path(__file__).parent
"""Folder with ``open_clip_config.json``, weights and tokenizer, for open_clip's ``local-dir:`` schema."""

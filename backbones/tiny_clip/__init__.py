"""tiny-clip: a small real CLIP that ships with dmgal; it knows still appearance and nothing of motion."""

from pathlib import Path

FOLDER = Path(__file__).parent
"""Holds ``open_clip_config.json``, the weights and the tokenizer, as open_clip's ``local-dir:`` schema wants them."""

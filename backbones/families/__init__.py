"""The libraries whose backbones are recognized: each file describes one, ``FAMILIES`` is the whole list."""

from . import open_clip, timm_vit, transformers_vit

FAMILIES = (open_clip.describe, transformers_vit.describe, timm_vit.describe)

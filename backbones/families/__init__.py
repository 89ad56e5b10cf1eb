"""Libraries whose backbones are recognized. Each file describes one, and ``FAMILIES`` lists them."""

from . import open_clip, timm_vit, transformers_vit

FAMILIES = (open_clip.describe, transformers_vit.describe, timm_vit.describe)

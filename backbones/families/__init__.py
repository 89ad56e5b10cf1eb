"""The libraries whose backbones are recognized: each file describes one, ``FAMILIES`` is the whole list."""

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

from . import open_clip, transformers_clip  # noqa: E402

FAMILIES = (open_clip.describe, transformers_clip.describe)

"""Frozen foundation models: loading them, finding their parts, frames in and features out."""

from . import torchvision_cpu as _torchvision_cpu  # noqa: F401  (before open_clip, timm, transformers or peft)
from .encoder import FrameEncoder, make_encoder
from .finding import find_spec
from .sources import load_backbone
from .spec import BackboneSpec
from .video_state import VideoState

__all__ = ["BackboneSpec", "FrameEncoder", "VideoState", "find_spec", "load_backbone", "make_encoder"]

"""Frozen foundation models: loading, description of their parts, and encoding of frames into features."""

from .encoder import BlockInput, FrameEncoder
from .families import FAMILIES, Family, describe_backbone, find_spec, load_backbone
from .quick_gelu import use_memory_efficient_gelu
from .spec import BackboneSpec, BlockParts
from .state import VideoState
from .streams import StreamEncoder

__all__ = [
    "FAMILIES",
    "BackboneSpec",
    "BlockInput",
    "BlockParts",
    "Family",
    "FrameEncoder",
    "StreamEncoder",
    "VideoState",
    "describe_backbone",
    "find_spec",
    "load_backbone",
    "use_memory_efficient_gelu",
]

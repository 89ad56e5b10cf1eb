"""Frozen foundation models: loading, description of their parts, and encoding of frames into features."""

from .encoder import BlockInput, FrameEncoder
from .families import FAMILIES, Family, describe_backbone, find_spec, load_backbone, load_text_encoder
from .frame_memory import FrameMemory
from .quantized import Quantization, quantization_of, quantize
from .quick_gelu import use_memory_efficient_gelu
from .spec import BackboneSpec, BlockParts
from .state import VideoState
from .streams import StreamEncoder
from .text import ClassTexts, TextEncoder, encode_class_names, read_descriptions

__all__ = [
    "FAMILIES",
    "BackboneSpec",
    "BlockInput",
    "BlockParts",
    "ClassTexts",
    "Family",
    "FrameEncoder",
    "FrameMemory",
    "Quantization",
    "StreamEncoder",
    "TextEncoder",
    "VideoState",
    "describe_backbone",
    "encode_class_names",
    "find_spec",
    "load_backbone",
    "load_text_encoder",
    "quantization_of",
    "quantize",
    "read_descriptions",
    "use_memory_efficient_gelu",
]

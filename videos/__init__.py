"""Videos: which exist, and their frames. Nothing here knows about tasks or models."""

from .catalog.catalog import VideoCatalog

__all__ = ["VideoCatalog"]

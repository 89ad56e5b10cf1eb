"""Videos: which exist, and their frames. Nothing here knows about tasks or models."""

from collections.abc import Callable
from pathlib import Path

from .catalog.catalog import VideoCatalog

READERS: dict[str, Callable[[Path], VideoCatalog]] = {}
"""Data sets with a layout of their own, by ``data.name``: functions from the root folder to its catalog."""

__all__ = ["READERS", "VideoCatalog"]

"""A window on the screen that shows what a watched model sees, and its answer."""

from __future__ import annotations

import os
import sys
from types import ModuleType

import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor

from dmgal.errors import DmgalError
from dmgal.files import reason

TITLE = "dmgal watch"
HEIGHT = 480
"""Least height of the picture in pixels. Smaller frames are enlarged by a whole number."""
CLOSING_KEYS = (ord("q"), 27)  # Esc


class DisplayClosed(Exception):
    """The user closed the window, or pressed q or Esc in it."""


class Display:
    """A window of OpenCV. Call its methods from one thread.

    Raises:
        DmgalError: the installed OpenCV has no windows, or there is no screen.
    """

    def __init__(self) -> None:
        import cv2  # takes a moment, and only --display needs it

        self._cv2: ModuleType = cv2
        if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise _no_window("neither DISPLAY nor WAYLAND_DISPLAY is set")  # Qt would end the process
        try:
            cv2.namedWindow(TITLE, cv2.WINDOW_AUTOSIZE)
        except cv2.error as error:
            raise _no_window(f"OpenCV {cv2.__version__}: {error.err or reason(error)}") from error

    def show(self, frame: Tensor, text: str) -> None:
        """Show a frame, uint8 ``(3, H, W)``, with a line of text on it.

        Raises:
            DisplayClosed: the user wants to end.
        """
        picture = Image.fromarray(rearrange(frame.cpu(), "c h w -> h w c").numpy())
        scale = -(-HEIGHT // picture.height)
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)
        ImageDraw.Draw(picture).text((12, 8), text, "white", font_size=28, stroke_width=2, stroke_fill="black")
        self._cv2.imshow(TITLE, np.asarray(picture)[..., ::-1])
        is_closing = self._cv2.waitKey(1) & 0xFF in CLOSING_KEYS
        if is_closing or self._cv2.getWindowProperty(TITLE, self._cv2.WND_PROP_VISIBLE) < 1:
            raise DisplayClosed

    def close(self) -> None:
        """Close the window."""
        self._cv2.destroyAllWindows()


def _no_window(received: str) -> DmgalError:
    return DmgalError(
        "No window can be opened.",
        received=received,
        expected="a screen, and an OpenCV with windows",
        remedy="On a desktop, replace opencv-python-headless by opencv-python with pip. Otherwise remove --display.",
    )

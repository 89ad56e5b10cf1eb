"""Clips of a long video: windows of equal length, one every stride, each cut from a stream of frames.

A window is sampled as a clip is (see ``frames``): in the middle of each of ``T`` equal spans of time, the frame that is
shown then. Only the frames of the few windows that overlap now are kept, each once, at the clip's size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from ...errors import DmgalError
from ..decoding.timed_frames import TimedFrame
from ..frames import uniform_frames


@dataclass(frozen=True, eq=False)
class Window:
    """``clip (T, 3, size, size)`` uint8, of the seconds from ``start`` to ``end``."""

    start: float
    end: float
    clip: Tensor


@dataclass(frozen=True)
class WindowPlan:
    """Window ``k`` is ``[k * stride, k * stride + seconds)``.

    Args:
        seconds: length of a window.
        stride: from the start of a window to the start of the next; at most ``seconds``, so that nothing is left out.

    Raises:
        DmgalError: a length that is not positive, or a stride that is longer than a window.
    """

    seconds: float
    stride: float

    def __post_init__(self) -> None:
        if not 0 < self.stride <= self.seconds < float("inf"):
            raise DmgalError(
                "A video cannot be cut into these windows.",
                received=f"windows of {self.seconds} s every {self.stride} s",
                expected="0 < stride <= window",
                remedy="change --window or --stride",
            )


@dataclass
class _Open:
    """A window that still gathers frames."""

    start: Fraction
    frames: list[Tensor]


def sliding_windows(
    frames: Iterable[TimedFrame], plan: WindowPlan, num_frames: int, transform: Callable[[Tensor], Tensor]
) -> Iterator[Window]:
    """The windows of a video in order, as soon as each is whole.

    What is left at the end makes one more, shorter window if at least half of its samples are there, or if it is the
    only one; its frames are spread over ``T`` as those of a short clip are.

    Args:
        frames: of the whole video, in order.
        plan: where the windows lie.
        num_frames: ``T``.
        transform: from ``(1, 3, H, W)`` to ``(1, 3, size, size)``, both uint8.
    """
    length, stride = (Fraction(part).limit_denominator(1_000_000) for part in (plan.seconds, plan.stride))
    gap = length / num_frames
    opened: deque[_Open] = deque()
    num_opened = num_done = 0
    previous: tuple[Fraction, Callable[[], Tensor]] | None = None
    last_time, last_gap = Fraction(0), gap

    def gathered(until: Fraction) -> Iterator[Window]:
        """Gives the frame at hand to every sample up to ``until``; it is converted once, and only if wanted."""
        nonlocal num_opened, num_done
        image: Tensor | None = None
        while num_opened * stride + gap / 2 < until:
            opened.append(_Open(num_opened * stride, []))
            num_opened += 1
        assert previous is not None
        for window in opened:
            while len(window.frames) < num_frames and window.start + (2 * len(window.frames) + 1) * gap / 2 < until:
                image = transform(previous[1]().unsqueeze(0))[0] if image is None else image
                window.frames.append(image)
        while opened and len(opened[0].frames) == num_frames:
            done = opened.popleft()
            num_done += 1
            yield Window(float(done.start), float(done.start + length), torch.stack(done.frames))

    for time, convert in frames:
        if previous is not None:
            last_gap = time - last_time
            yield from gathered(time)
        previous, last_time = (time, convert), time
    if previous is None:
        return
    end = last_time + last_gap
    yield from gathered(end)
    if not num_done and not opened:  # shorter than half a span
        opened.append(_Open(Fraction(0), [transform(previous[1]().unsqueeze(0))[0]]))
    if opened and (not num_done or 2 * len(opened[0].frames) >= num_frames):
        rest = opened[0]
        clip = torch.stack([rest.frames[place] for place in uniform_frames(len(rest.frames), num_frames)])
        yield Window(float(rest.start), float(end), clip)

"""Events of a live video: actions with their start and end, from the windows in order.

A window speaks for the stride in its middle, or for all of it if it is shorter. An event begins with a known action of
at least ``begin`` probability. It lasts while its action stays the best, known and at least ``stay`` probable
(hysteresis), and survives fewer than ``patience`` windows in which it is not. It also ends when another event begins,
and at a break of the source.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ...errors import DmgalError
from .recognition import WindowScore
from .windows import WindowPlan


@dataclass(frozen=True)
class EventRule:
    """When events begin and end, see the module.

    Raises:
        DmgalError: ``stay`` is larger than ``begin``, or a value is out of range.
    """

    begin: float = 0.6
    stay: float = 0.4
    patience: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.stay <= self.begin <= 1 or self.patience < 1:
            raise DmgalError(
                "Events cannot begin and end like this.",
                received=f"begin {self.begin:g}, stay {self.stay:g}, patience {self.patience}",
                expected="0 <= stay <= begin <= 1, and a patience of at least one window",
                remedy="Change --begin, --stay or --patience.",
            )


@dataclass(frozen=True)
class Event:
    """An action from ``start`` to ``end`` seconds. It continues if ``is_over`` is false.

    Attributes:
        label: the class.
        probability: mean over the windows of the event.
        windows: number of windows in which the action was seen.
    """

    start: float
    end: float
    label: int
    probability: float
    windows: int = 1
    is_over: bool = False


class EventDetector:
    """Events of windows that are added in order.

    Args:
        plan: positions of the windows.
        rule: when events begin and end.
    """

    def __init__(self, plan: WindowPlan, rule: EventRule) -> None:
        self._plan = plan
        self._rule = rule
        self._event: Event | None = None
        self._missed = 0

    def add(self, window: WindowScore) -> Iterator[Event]:
        """Yield an event that ends by a window, and one that begins with it."""
        event, margin = self._event, self._margin(window)
        start, end = window.start + margin, window.end - margin
        if event is not None and window.label == event.label and self._is_at_least(window, self._rule.stay):
            mean = (event.probability * event.windows + window.probability) / (event.windows + 1)
            self._event = replace(event, end=end, probability=mean, windows=event.windows + 1)
            self._missed = 0
            return
        begins = self._is_at_least(window, self._rule.begin)
        self._missed += 1
        if event is not None and (begins or self._missed >= self._rule.patience):
            yield from self.finish()
        if begins:
            start = start if event is None else max(start, event.end)
            self._event, self._missed = Event(start, end, window.label, window.probability), 0
            yield self._event

    def finish(self) -> Iterator[Event]:
        """Yield the current event as one that is over."""
        if self._event is not None:
            yield replace(self._event, is_over=True)
        self._event, self._missed = None, 0

    def _margin(self, window: WindowScore) -> float:
        """Return the seconds at either end that a window does not speak for. That of a short video is short."""
        seconds = min(self._plan.seconds, window.end - window.start)
        return max(0.0, seconds - self._plan.stride) / 2

    @staticmethod
    def _is_at_least(window: WindowScore, probability: float) -> bool:
        return window.known and window.probability >= probability

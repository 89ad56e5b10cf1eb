"""Markup of the page: messages, actions and answers as HTML, in which all names are escaped, and the style sheet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

import jinja2

from dmgal.errors import DmgalError
from dmgal.recipes.reports.films import FRAMES
from dmgal.recipes.web.uploads import MOST_MEGABYTES, MOST_SECONDS
from dmgal.recipes.web.visit import MOST_ACTIONS, MOST_CLIPS, Answer

T = TypeVar("T")
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Notice:
    """One message on the page: what happened, and the details."""

    kind: Literal["done", "error"]
    title: str
    text: str = ""


def attempt(work: Callable[[], T]) -> tuple[T | None, Notice | None]:
    """Return the result of ``work``, or None and the message of its DmgalError."""
    try:
        return work(), None
    except DmgalError as error:
        return None, Notice("error", error.problem, f"{_sentence(error.received)} {error.remedy or ''}".strip())


def intro() -> str:
    """Return the heading of the page."""
    return _part("intro", limits={"clips": MOST_CLIPS, "seconds": MOST_SECONDS, "megabytes": MOST_MEGABYTES})


def notice_markup(notice: Notice | None) -> str:
    """Return a message, or nothing."""
    return "" if notice is None else _part("notice", notice=notice)


def actions_markup(actions: Mapping[str, Sequence[str]], notice: Notice | None = None) -> str:
    """Return a message and the actions with the film strips of their clips. Each has a button that removes it."""
    return notice_markup(notice) + _part("actions", actions=actions, most=MOST_ACTIONS, film_frames=FRAMES)


def answer_markup(answer: Answer) -> str:
    """Return an answer with its bars and films."""
    return _part("answer", answer=answer)


def style() -> str:
    """Return the style sheet. It loads nothing."""
    return (HERE / "page.css").read_text(encoding="utf-8")


@cache
def _templates() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(HERE)
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)


def _part(name: str, **values: object) -> str:
    return _templates().get_template(f"{name}.html.j2").render(values).strip()


def _sentence(text: str | None) -> str:
    return "" if not text else text if text.endswith((".", "!", "?")) else f"{text}."

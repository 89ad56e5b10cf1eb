"""Groups of videos, such as the person or sequence that they show, given by a column or a pattern of their paths."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...errors import DmgalError
from ...files import listed


def groups_of(groups: str | Sequence[str], videos: Sequence[str]) -> tuple[str, ...]:
    """Return the group of each video.

    Args:
        groups: the groups in the order of the videos, or a regular expression. What its parentheses match in the path
            of a video is the group, so ``([^/_]+)_[^/]*$`` is the part of the file name before the underscore.
        videos: paths of the videos.

    Raises:
        DmgalError: the expression is not valid or has no parentheses, or videos have no group.
    """
    groups = _matched(groups, videos) if isinstance(groups, str) else groups
    without = [video for video, group in zip(videos, groups, strict=True) if not group]
    if without:
        raise DmgalError(
            "Some videos have no group.",
            received=f"{len(without)} of {len(videos)}: {listed(without)}",
            expected="a group for each video",
            remedy="Correct data.group, or fill in the column of the split file.",
        )
    return tuple(groups)


def no_columns(group: str, source: str) -> DmgalError:
    """Return the error for a column of groups of data without columns."""
    return DmgalError(
        "The groups of the videos are unknown.",
        received=f"data.group: {group}, and {source} without columns",
        expected="a split file with this column, or a pattern with parentheses of the path, such as '([^/_]+)_[^/]*$'",
        remedy="Correct data.group.",
    )


def _matched(pattern: str, videos: Sequence[str]) -> list[str]:
    """Return what the parentheses of a pattern match in each path, joined by slashes, or "" without a match."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise _bad_pattern(pattern, str(error)) from error
    if not compiled.groups:
        raise _bad_pattern(pattern, "no parentheses")
    matches = (compiled.search(video) for video in videos)
    return ["/".join(part or "" for part in match.groups()) if match else "" for match in matches]


def _bad_pattern(pattern: str, reason: str) -> DmgalError:
    return DmgalError(
        "The pattern of the groups is not valid.",
        received=f"{pattern!r}: {reason}",
        expected="a regular expression with parentheses around the group, such as '([^/_]+)_[^/]*$'",
        remedy="Correct data.group.",
    )

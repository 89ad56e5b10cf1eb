"""Annotations of ELAN: EAF files (https://www.mpi.nl/tools/elan/EAF_Annotation_Format_3.0_and_ELAN.pdf).

All time-aligned annotations of all tiers are segments. Times are milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .markup import read_xml
from .segment import Annotation, Span


def read_elan(path: Path) -> Iterator[Annotation]:
    """Yield the segments of a file.

    Raises:
        OSError, ValueError: the file cannot be read, see `read_xml`, or names no video or no times.
    """
    root = read_xml(path)
    if root.tag != "ANNOTATION_DOCUMENT":
        raise ValueError(f"the root element <{root.tag[:50]}>, not <ANNOTATION_DOCUMENT>")
    media = [element for element in root.iter("MEDIA_DESCRIPTOR") if "audio" not in element.get("MIME_TYPE", "")]
    urls = [element.get("RELATIVE_MEDIA_URL", "") or element.get("MEDIA_URL", "") for element in media]
    if not urls or not urls[0]:
        raise ValueError("no MEDIA_DESCRIPTOR of a video")
    video = unquote(urlsplit(urls[0]).path).removeprefix("./").lstrip("/")
    times = {slot.get("TIME_SLOT_ID"): slot.get("TIME_VALUE", "") for slot in root.iter("TIME_SLOT")}
    for annotation in root.iter("ALIGNABLE_ANNOTATION"):
        name = f"annotation {annotation.get('ANNOTATION_ID', '')[:50]}"
        label = (annotation.findtext("ANNOTATION_VALUE") or "").strip()
        if not label:
            raise ValueError(f"{name} has no text")
        ends = [times.get(annotation.get(f"TIME_SLOT_REF{number}"), "") for number in (1, 2)]
        if not all(end.isdecimal() and len(end) < 12 for end in ends):
            raise ValueError(f"{name} has no times")
        yield Annotation(video, label, Span(Fraction(int(ends[0]), 1000), Fraction(int(ends[1]), 1000)))

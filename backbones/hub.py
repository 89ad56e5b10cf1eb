"""Network check ahead of downloads, because without a network the libraries retry for half a minute."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies


@contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Put Hugging Face's hub into offline mode inside the context if its host name cannot be resolved.

    Files in the local cache are still found. If there is a proxy, which resolves names itself, nothing changes.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode() or getproxies() or _is_resolvable(urlsplit(constants.ENDPOINT).hostname):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def _is_resolvable(host: str | None) -> bool:
    try:
        return bool(socket.getaddrinfo(host, 443))
    except OSError:
        return False

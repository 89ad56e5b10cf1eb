"""Looks whether there is a network before a library does: where there is none, they try again for half a minute."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies


@contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Puts Hugging Face's hub into its offline mode for a while, where its name cannot be looked up.

    What is in the local cache is still found. Behind a proxy, which looks names up itself, nothing is done.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode() or getproxies() or _is_known(urlsplit(constants.ENDPOINT).hostname):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def _is_known(host: str | None) -> bool:
    try:
        return bool(socket.getaddrinfo(host, 443))
    except OSError:
        return False

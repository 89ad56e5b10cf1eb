"""Checks ahead of a download: the name, and the network, without which the libraries retry for minutes."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

from ..errors import DmgalError


def require_hub() -> None:
    """Raise an error if the host name of Hugging Face's hub cannot be resolved.

    In offline mode the libraries read their local cache, and a proxy resolves names itself. Both skip the check.

    Raises:
        ConnectionError: the name cannot be resolved.
    """
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname
    if not (constants.HF_HUB_OFFLINE or getproxies() or _is_resolvable(host)):
        raise ConnectionError(f"the host name {host} cannot be resolved")


def _is_resolvable(host: str | None) -> bool:
    try:
        return bool(socket.getaddrinfo(host, 443))
    except OSError:
        return False


def unknown_name(library: str, what: str, received: str, known: str, example: str) -> DmgalError:
    """Return the error for a name that a library does not know."""
    return DmgalError(
        f"{library} has no such {what}.",
        received=received,
        expected=f"one of {known}",
        remedy=f"Check the name. A valid one is {example}.",
    )

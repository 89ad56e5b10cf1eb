"""Makes a fork server and its processes end with their parents, also while they import torch.

A fork server imports this module first, and nothing else may import it, because the import has that effect. By itself,
a server looks for its parent only after it has imported all modules.
"""

from __future__ import annotations

import os

from .parallel import killed_with_parent

_SERVER = os.getpid()


def _end_with_server() -> None:
    killed_with_parent()
    if os.getppid() != _SERVER:  # it ended before
        os._exit(1)


killed_with_parent()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_end_with_server)

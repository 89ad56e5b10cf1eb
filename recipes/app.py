"""A web page on this computer: name actions, show a few clips of each, and see which action another clip shows.

    dmgal app
    dmgal app runs/mine                       with a run of yours instead of tiny-clip and its motion adapter
    dmgal app --host 0.0.0.0 --port 8000      for other devices in the network, without a password

It needs the optional extra 'app': pip install 'dmgal[app]'. The page works without a network and without a GPU. It
listens on this computer only unless --host says otherwise. Clips are deleted once they were read, and Ctrl-C stops the
page.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import Annotated

import tyro

from dmgal.errors import DmgalError
from dmgal.parallel import environment_variables
from dmgal.recipes.run.action_recognizer import ActionRecognizer
from dmgal.recipes.run.cli_errors import parse_options, run_recipe
from dmgal.recipes.run.ranges import Range
from dmgal.recipes.run.shown_layer import looking_layer


@dataclass(frozen=True)
class App:
    """Options of the command."""

    run: tyro.conf.Positional[Path | None] = None
    """Folder of a run, written by dmgal train. None: the backbone with the motion adapter."""
    host: str = "127.0.0.1"
    """Address to listen on. The default is this computer only. There is no password."""
    port: Annotated[int | None, Range(1, 65535)] = None
    """Port to listen on. None: the first free one from 7860."""
    backbone: str = "tiny-clip"
    """Backbone, if no run is given."""
    adapter: str | None = "tiny-clip-motion"
    """Motion adapter beside the backbone, if no run is given. None: the backbone alone."""


@contextmanager
def serving(options: App) -> Iterator[str]:
    """Serve the page within a ``with`` statement, and give its address. The folder of uploads is deleted at the end.

    Raises:
        DmgalError: Gradio is missing, the model cannot be loaded, or the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="dmgal-app-") as name, environment_variables(_gradio_settings(name)):
        web, folder = _page_module(), Path(name).resolve()
        recognizer = ActionRecognizer(options.run, backbone=options.backbone, adapter=options.adapter)
        looking_layer(recognizer.model)  # once, before the first visit waits for it
        page = web.build_page(recognizer, folder)
        try:
            _, address, _ = page.launch(**web.launch_options(options.host, options.port))
        except OSError as error:
            raise DmgalError(
                "The page cannot listen on this address.",
                received=f"{options.host}, port {options.port or '7860 and later'}: {error}",
                expected="an address of this computer, and a free port",
                remedy="Change --host or --port.",
            ) from error
        try:
            yield address
        finally:
            page.close(verbose=False)


def _gradio_settings(folder: str) -> dict[str, str]:
    """Return the environment variables that Gradio reads."""
    return {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


def _page_module() -> ModuleType:
    """Import the page, which imports Gradio."""
    try:
        import_module("gradio")
    except ImportError as error:
        raise DmgalError(
            "The page needs Gradio.",
            received=str(error),
            expected="the optional extra app",
            remedy="Run pip install 'dmgal[app]', or from a clone pip install -c constraints.txt -e '.[app]'.",
        ) from error
    return import_module("dmgal.recipes.web.page")


@contextmanager
def _stopping() -> Iterator[Callable[[], None]]:
    """Give a function that waits for Ctrl-C or SIGTERM."""
    stop = Event()
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}

    def wait() -> None:
        while not stop.wait(0.5):  # a wait without a limit cannot be interrupted on all systems
            pass

    try:
        yield wait
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def main(argv: list[str] | None = None) -> int | None:
    """Serve the page until Ctrl-C."""
    options = parse_options(App, argv, "app", __doc__)
    with serving(options) as address, _stopping() as wait:
        print(f"page: {address}  (Ctrl-C stops it)", flush=True)
        if options.host not in ("127.0.0.1", "localhost", "::1"):
            print("warning: every device that reaches this address can use the page, without a password", flush=True)
        wait()
    return 0


if __name__ == "__main__":
    run_recipe(main)

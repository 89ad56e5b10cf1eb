"""The page of ``dmgal app`` in Gradio: a thin layer over `Visit`. Only the command imports this module.

The browser gets one page that loads nothing from other servers. A content security policy enforces this. Uploads go to
one temporary folder. Gradio serves files of this folder only, and each upload is deleted when it was read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from gradio.themes.utils.fonts import Font
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dmgal.recipes.run.action_recognizer import ActionRecognizer
from dmgal.recipes.web.markup import (
    Notice,
    actions_markup,
    answer_markup,
    attempt,
    intro,
    notice_markup,
    style,
)
from dmgal.recipes.web.uploads import MOST_MEGABYTES, discard
from dmgal.recipes.web.visit import MOST_NAME, Visit

FORGOTTEN_AFTER = 900
"""Seconds after which an upload that was never used is deleted. A closed tab is forgotten at once."""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""Content security policy. Gradio's scripts need inline code and evaluation, but no other server.

After a recording, Gradio tries to load a video editor from another server. The policy refuses it, and only trimming is
missing.
"""
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
SAMPLE, NEXT_SAMPLE = "Try a sample task", "Show another sample clip"
SCROLL = "() => document.querySelector('#answer').scrollIntoView({behavior: 'smooth', block: 'nearest'})"
REMOVE = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-remove]');
  if (button) trigger('click', {name: button.dataset.remove});
});
"""


def build_page(recognizer: ActionRecognizer, folder: Path) -> gr.Blocks:
    """Return the page.

    Args:
        recognizer: without classes. Its model is shared by all visits.
        folder: for uploads. Gradio must use the same folder, see ``GRADIO_TEMP_DIR``.
    """
    with gr.Blocks(title="dmgal", analytics_enabled=False, fill_width=True, delete_cache=(60, FORGOTTEN_AFTER)) as page:
        visit = gr.State(Visit(recognizer, folder))  # each session begins with a copy, also before the page is loaded
        gr.HTML(intro())
        with gr.Row(elem_id="start"):
            sample = gr.Button(SAMPLE, elem_id="sample", scale=0, min_width=250)
            clear = gr.Button("Start over", elem_id="clear", scale=0, min_width=140)
        with gr.Row(equal_height=False):
            with gr.Column(min_width=300, elem_id="teach"):
                gr.HTML('<h2 class="dm-step">1. Actions</h2>')
                name = gr.Textbox(label="Name of the action", placeholder="for example: wave", max_length=4 * MOST_NAME)
                clips, camera = _sources("Clips of the action", "multiple")
                add = gr.Button("Add action", variant="primary", elem_id="add")
                actions = gr.HTML(actions_markup({}), js_on_load=REMOVE, elem_id="actions")
            with gr.Column(min_width=300, elem_id="ask"):
                gr.HTML('<h2 class="dm-step">2. Which action is it?</h2>')
                query, query_camera = _sources("A clip to recognize", "single")
                answer = gr.HTML(elem_id="answer")
        # One at a time: the model is shared, and two cores are no faster with two queries.
        options: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "model", "concurrency_limit": 1}
        shown = [visit, actions, sample]
        form = [name, clips, camera]
        gr.on([add.click, name.submit], _add, [visit, *form], [*shown, *form], show_progress_on=actions, **options)
        actions.click(_remove, visit, shown, show_progress="hidden", **options)
        clear.click(_clear, visit, [*shown, answer], **options)
        show_answer: dict[str, object] = {"fn": None, "js": SCROLL, "api_visibility": "private"}
        sample.click(_sample, visit, [*shown, answer], show_progress_on=answer, **options).then(**show_answer)
        gr.on(
            [query.upload, query_camera.stop_recording],
            partial(_recognize, folder),
            [visit, query, query_camera],
            [answer, query, query_camera],
            show_progress_on=answer,
            **options,
        ).then(**show_answer)
    return page


def launch_options(host: str, port: int | None) -> dict[str, Any]:
    """Return the arguments of Gradio's ``launch``: one folder, no link to the outside, no record of what was done.

    Args:
        host: address to listen on. Unless it stands for all addresses, requests that name another host are refused.
        port: None: the first free one from 7860.
    """
    hosts = ["*"] if host in ("0.0.0.0", "::") else ["localhost", "127.0.0.1", "[::1]", host]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts), Middleware(Guard)]
    return {
        "server_name": host,
        "server_port": port,
        "share": False,
        "quiet": True,
        "inline": False,
        "prevent_thread_lock": True,
        "allowed_paths": [],
        "blocked_paths": [],
        "max_file_size": MOST_MEGABYTES * 2**20,
        "state_session_capacity": 100,
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
        "theme": gr.themes.Default(
            primary_hue="blue",
            neutral_hue="slate",
            font=[Font("system-ui"), Font("sans-serif")],
            font_mono=[Font("ui-monospace"), Font("monospace")],
        ),
        "css": style(),
        "app_kwargs": {"middleware": middleware, "docs_url": None, "redoc_url": None, "openapi_url": None},
    }


class Guard:
    """Middleware that adds the content security policy, and refuses requests to fetch something from another server."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = str(scope.get("path", ""))
        if "/proxy=" in path or "/file=http" in path.lower():
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


def _sources(label: str, count: Literal["single", "multiple"]) -> tuple[gr.File, gr.Video]:
    """Place a drop zone and the webcam in two tabs. Both hand on lists of paths."""
    with gr.Tabs():
        with gr.Tab("Files"):
            clips = gr.File(label=label, file_count=count, height=150)
        with gr.Tab("Webcam"):
            options = gr.WebcamOptions(mirror=False)
            camera = gr.Video(label=label, sources=["webcam"], webcam_options=options, height=280)
    for source in (clips, camera):
        # Gradio itself would leave an empty file for each upload, and run ffmpeg to remove the sound of a recording.
        # A subclass is no way: Gradio writes a stub file beside the module of each.
        source.preprocess = _paths  # type: ignore[method-assign]
        fetch = source.async_move_resource_to_block_cache
        source.async_move_resource_to_block_cache = partial(_no_download, fetch)  # type: ignore[method-assign]
    return clips, camera


async def _no_download(move: Callable[[Any], Awaitable[object]], source: object) -> Any:
    """Put an upload in its place, but refuse an address, which Gradio would download."""
    if "://" in str(source):
        raise gr.Error("Only files from your device can be used.")
    return await move(source)


def _paths(payload: object) -> list[Path]:
    """Return the paths of what a component holds, which Gradio has checked to be uploads."""
    return [] if payload is None else [Path(file.path) for file in getattr(payload, "root", [payload])]


def _shown(visit: Visit, notice: Notice | None) -> list[object]:
    return [visit, actions_markup(visit.actions, notice), gr.update(value=NEXT_SAMPLE if visit.is_sample else SAMPLE)]


def _add(visit: Visit, name: str | None, clips: list[Path], camera: list[Path]) -> list[object]:
    text, notice = attempt(lambda: visit.add(name or "", clips + camera))
    if text is None:  # the form keeps its files; after `gr.skip`, Gradio would make new components without `_paths`
        discard(camera, visit.folder)
        kept = [str(path) for path in clips if path.exists()]
        return [*_shown(visit, notice), gr.skip(), kept or None, None]
    return [*_shown(visit, Notice("done", text)), "", None, None]


def _remove(visit: Visit, event: gr.EventData) -> list[object]:
    name = getattr(event, "name", None)
    if name is None:  # a click beside the buttons
        return [gr.skip()] * 3
    _, notice = attempt(lambda: visit.remove(str(name)))
    return _shown(visit, notice)


def _clear(visit: Visit) -> list[object]:
    visit.clear()
    return [*_shown(visit, None), ""]


def _sample(visit: Visit) -> list[object]:
    answer, notice = attempt(visit.sample)
    return [*_shown(visit, notice), "" if answer is None else answer_markup(answer)]


def _recognize(folder: Path, visit: Visit, clips: list[Path], camera: list[Path]) -> list[object]:
    paths = clips + camera
    if not paths:
        return [gr.skip(), None, None]
    discard(paths[:-1], folder)
    answer, notice = attempt(lambda: visit.recognize(paths[-1]))
    return [notice_markup(notice) if answer is None else answer_markup(answer), None, None]

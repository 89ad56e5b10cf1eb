"""The page of ``dmgal app`` in a real browser, on a desktop and on a phone: the way of a visitor, and its guards."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from dmgal.videos.generated import write_video
from dmgal.videos.moving_shapes.clips import MovingShapes

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("gradio") is None, reason="needs Gradio: pip install 'dmgal[app]'"),
]
CLASSES = {"down": 18, "circle": 36}
HOSTILE = "<img src=x onerror=alert(1)>${alert(2)}{{7*7}}"
SLOW = 120_000  # milliseconds to wait for an answer, on a busy machine
STOP = 120  # seconds to wait for the end of the server


class Served(NamedTuple):
    """A running page: its address, the folder of its temporary files, and its process."""

    address: str
    temporary: Path
    process: subprocess.Popen[str]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    temporary = tmp_path_factory.mktemp("temporary")
    env = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "dmgal", "app"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            found = re.match(r"page: (http://127\.0\.0\.1:\d+/)", line)
            assert found, f"printed {line!r}"
            yield Served(found[1], temporary, process)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(STOP) == 0
    assert [*temporary.glob("dmgal-app-*")] == []  # nothing remains


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Three files of each class, of three seconds, and bad files under "bad"."""
    root = tmp_path_factory.mktemp("clips")
    shapes = MovingShapes(seed=3, clips_per_class=3, frames=30, pixels=192)
    paths = {name: [root / f"{name}{clip}.mp4" for clip in range(3)] for name in CLASSES}
    for name, motion in CLASSES.items():
        for clip, path in enumerate(paths[name]):
            write_video(path, shapes.clip(motion, clip))
    (root / "damaged.mp4").write_bytes(bytes(range(256)) * 20)
    return {**paths, "bad": [root / "damaged.mp4"]}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    """The loaded page. Afterwards, nothing may have asked another server, opened a dialog or failed."""
    tab = browser.new_page(viewport={"width": 1180, "height": 900})
    tab.set_default_timeout(SLOW)
    asked: list[str] = []
    wrong: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.goto(served.address)
    tab.wait_for_selector("#sample")
    yield tab
    tab.close()
    assert asked and [url for url in asked if not url.startswith((served.address, "data:", "blob:"))] == []
    assert wrong == []


def teach(page: Page, name: str, paths: list[Path]) -> str:
    """Fill in the form, add the action, and return the message."""
    page.get_by_label("Name of the action").fill(name)
    if paths:
        page.set_input_files("#teach input[type=file]", paths)
        page.wait_for_function(f"document.querySelectorAll('#teach tr.file').length == {len(paths)}")
    before = page.locator("#actions .dm-notice").all_inner_texts()
    page.click("#add")
    page.wait_for_function(
        "before => { const found = document.querySelector('#actions .dm-notice');"
        " return found && found.innerText != before }",
        arg=(before or [""])[0],
    )
    return page.inner_text("#actions .dm-notice")


def ask(page: Page, path: Path) -> str:
    """Show a clip and return the text of the answer to it."""
    page.set_input_files("#ask input[type=file]", path)
    page.wait_for_selector(f"#answer :text('{path.name}')")
    return page.inner_text("#answer")


def fits(page: Page) -> bool:
    """Return True if the page cannot be scrolled sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def test_a_visitor_teaches_two_actions_and_gets_the_right_answers(page, served, clips) -> None:
    assert "The action has no clip." in teach(page, "down", [])
    assert "The action has no name." in teach(page, " ", clips["down"][:2])  # the form keeps the clips
    assert "Add a second action" in teach(page, "down", [])
    assert "“circle” is learned from 2 clips." in teach(page, "circle", clips["circle"][:2])
    for name in CLASSES:
        assert ask(page, clips[name][2]).splitlines()[2] == name or page.inner_text("#answer .dm-best .dm-name") == name
        assert page.locator("#answer img.dm-heat").evaluate("image => image.naturalWidth") > 0
        assert page.locator("#answer .dm-frames span").count() == 8
    answer = ask(page, clips["bad"][0])
    assert "This file cannot be read as a video." in answer and "damaged.mp4" in answer
    assert str(served.temporary) not in page.content()
    assert [path for path in served.temporary.rglob("*") if path.is_file()] == []  # each clip is deleted
    assert fits(page)


def test_a_name_with_markup_is_shown_as_text(page, clips) -> None:
    assert f"“{HOSTILE}” is learned from 1 clip." in teach(page, HOSTILE, clips["down"][:1])
    teach(page, "circle", clips["circle"][:1])
    assert HOSTILE in ask(page, clips["down"][2])
    assert page.locator("img[src=x]").count() == 0
    page.click(f'#actions button[aria-label="Remove {HOSTILE}"]')
    page.wait_for_function("document.querySelectorAll('#actions li').length == 1")
    assert HOSTILE not in page.inner_text("#actions")


def test_sample_task_on_a_phone(page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.click("#sample")
    page.wait_for_selector(".dm-answer")
    assert page.locator("#actions li").count() == 4
    assert "✓ Right" in page.inner_text(".dm-answer")
    assert fits(page)
    boxes = page.locator("#actions button").evaluate_all(
        "found => found.map(one => one.getBoundingClientRect().height)"
    )
    assert len(boxes) == 4 and min(boxes) >= 24  # pixels of a target, WCAG 2.2, 2.5.8
    page.click("#clear")
    page.wait_for_selector("#actions .dm-empty")
    assert page.inner_text("#answer").strip() == ""


# ---- without a browser ----


def status(url: str, **headers: str) -> tuple[int, Message]:
    """Return the status and the headers of the response to a request."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as response:
            return response.status, response.headers
    except urllib.error.HTTPError as error:
        return error.code, error.headers


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=/etc/passwd",
        "gradio_api/file=../../../../etc/passwd",
        "gradio_api/file=..%2f..%2f..%2fetc%2fpasswd",
        "static/../../../../etc/passwd",
        "gradio_api/file=http://127.0.0.1/",
        "gradio_api/proxy=https://example.org/",
        "gradio_api/runs",
        "monitoring",
    ],
)
def test_no_other_file_and_no_other_server_is_served(path: str, served: Served) -> None:
    assert status(served.address + path)[0] in (400, 403, 404)


def test_only_this_computer_is_answered_and_the_policy_names_no_other(served: Served) -> None:
    code, headers = status(served.address)
    assert code == 200 and "default-src 'self'" in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]
    assert status(served.address, Host="evil.example")[0] == 400

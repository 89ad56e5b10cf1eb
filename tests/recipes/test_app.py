"""The logic of ``dmgal app``: answers, messages for bad input, deletion of uploads, and no name that becomes markup."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
import torch
from PIL import Image

from dmgal import ActionRecognizer
from dmgal.cli import main
from dmgal.errors import DmgalError
from dmgal.recipes import app, web
from dmgal.recipes.web import uploads, visit
from dmgal.recipes.web.markup import actions_markup, answer_markup, attempt, notice_markup
from dmgal.recipes.web.visit import MOST_ACTIONS, MOST_CLIPS, SAMPLE_ACTIONS, Answer, Visit
from dmgal.videos.generated import write_video as write_frames
from dmgal.videos.moving_shapes.clips import MovingShapes

CLASSES = {"down": 18, "circle": 36}
HOSTILE = "<img src=x onerror=alert(1)>${alert(2)}{{ 7 * 7 }}\"'"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Three files of each class."""
    root, shapes = tmp_path_factory.mktemp("clips"), MovingShapes(seed=3, clips_per_class=3, frames=9, pixels=48)
    paths = {name: [root / f"{name}{clip}.mp4" for clip in range(3)] for name in CLASSES}
    for name, motion in CLASSES.items():
        for clip, path in enumerate(paths[name]):
            write_frames(path, shapes.clip(motion, clip))
    return paths


@pytest.fixture(scope="module")
def recognizer() -> ActionRecognizer:
    return ActionRecognizer.from_backbone()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of uploads."""
    (tmp_path / "uploads").mkdir()
    return tmp_path / "uploads"


@pytest.fixture
def upload(folder: Path) -> Callable[[Path], Path]:
    """Copy a file to a folder of its own in the folder of uploads, as the page does."""

    def copy(path: Path) -> Path:
        place = folder / f"hash{len([*folder.iterdir()])}"
        place.mkdir()
        return shutil.copy(path, place / path.name)

    return copy


@pytest.fixture
def empty(recognizer: ActionRecognizer, folder: Path) -> Visit:
    return Visit(recognizer.__sklearn_clone__(), folder)


@pytest.fixture(scope="module")
def learned(
    recognizer: ActionRecognizer, clips: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory
) -> Visit:
    """A visit with both classes, by two clips each. Tests change copies of it."""
    folder = tmp_path_factory.mktemp("learned")
    one = Visit(recognizer.__sklearn_clone__(), folder)
    for name, paths in clips.items():
        one.add(name, [shutil.copy(path, folder / path.name) for path in paths[:2]])
    assert [*folder.iterdir()] == []
    return one


@pytest.fixture
def taught(learned: Visit, empty: Visit) -> Visit:
    """A copy of `learned` with its own folder."""
    vars(empty.recognizer).update(vars(learned.recognizer))
    empty.actions = {name: [*strips] for name, strips in learned.actions.items()}
    return empty


def test_a_new_session_has_no_actions_and_the_same_model(taught: Visit) -> None:
    fresh = deepcopy(taught)
    assert fresh.actions == {} and len(taught.actions) == 2 and fresh.folder == taught.folder
    assert fresh.recognizer.model is taught.recognizer.model


def refusal(work: Callable[[], object], folder: Path, remain: bool = False) -> str:
    """Return the message of the error that work raises, which must not tell where uploads are.

    Uploads are deleted, or remain in the form if only the name or the number of the clips is to be corrected.
    """
    result, notice = attempt(work)
    assert result is None and notice is not None and notice.kind == "error"
    message = f"{notice.title} {notice.text}"
    assert str(folder) not in message and "hash" not in message
    assert remain or [*folder.rglob("*.*")] == []
    return message


def test_answer_is_that_of_the_recognizer_and_uploads_are_deleted(taught, clips, upload, folder, recognizer) -> None:
    expected = recognizer.__sklearn_clone__().enroll({name: paths[:2] for name, paths in clips.items()})
    for name, paths in clips.items():
        answer, told = taught.recognize(upload(paths[2])), expected.recognize(paths[2])
        assert (answer.best, answer.recognized) == (told.best, told.recognized)
        assert answer.best == name
        assert {bar.name: bar.probability for bar in answer.bars} == pytest.approx(
            {label: score.probability for label, score in told.scores.items()}, abs=1e-6
        )
        assert [bar.is_best for bar in answer.bars] == [True, False]
        assert answer.film.startswith("data:image/jpeg;base64,") and answer.heat.startswith("data:image/jpeg;base64,")
        assert answer.film != answer.heat and answer.heat_title == "Where the model looks"
        assert answer.layer == "Smga-Adapter after block 1"  # the one that looks at moving shapes
    assert [*folder.iterdir()] == []


def test_same_name_twice_adds_to_the_action(taught, clips, upload) -> None:
    message = taught.add("  Circle ", [upload(clips["circle"][2])])
    assert "“circle” was there already" in message and "3 now" in message
    assert [len(strips) for strips in taught.actions.values()] == [2, 3]


def test_same_clip_twice_is_refused(taught, clips, upload, folder) -> None:
    assert "A clip is enrolled twice." in refusal(lambda: taught.add("up", [upload(clips["down"][0])]), folder)
    assert [*taught.actions] == ["down", "circle"]


def still(path: Path) -> Path:
    Image.new("RGB", (48, 48), "red").save(path, format="JPEG")
    return path


def large(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate((uploads.MOST_MEGABYTES + 1) * 2**20)
    return path


def text(path: Path) -> Path:
    path.write_text("import os")
    return path


def damaged(path: Path) -> Path:
    path.write_bytes(bytes(range(256)) * 20)
    return path


def one_frame(path: Path) -> Path:
    write_frames(path, torch.zeros(1, 3, 48, 48, dtype=torch.uint8))
    return path


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (damaged, "clip.mp4", "This file cannot be read as a video. clip.mp4: no video that FFmpeg knows"),
        (text, "clip.mp4", "This file cannot be read as a video. clip.mp4: it is text, which begins with 'import os'"),
        (text, "clip.pkl", "This file cannot be read as a video. clip.pkl: it is text"),
        (still, "photo.jpg", "This is a picture, not a video. photo.jpg"),
        (still, "photo.mp4", "This is a picture, not a video. photo.mp4"),
        (one_frame, "clip.mp4", "Motion needs at least two frames. clip.mp4 with one frame"),
        (large, "clip.mp4", f"This file is too large. clip.mp4, {uploads.MOST_MEGABYTES + 1} MB"),
    ],
)
def test_bad_file_has_its_message_on_both_sides(make, name, message, taught, clips, tmp_path, upload, folder) -> None:
    bad, good = make(tmp_path / name), clips["down"][2]
    assert message in refusal(lambda: taught.recognize(upload(bad)), folder)
    assert message in refusal(lambda: taught.add("new", [upload(good), upload(bad)]), folder)
    assert [*taught.actions] == ["down", "circle"]


@pytest.mark.parametrize("in_header", [True, False])
def test_two_hours_are_refused_before_a_frame_is_decoded(
    in_header, taught, write_video, tmp_path, upload, folder, monkeypatch
) -> None:
    live = {} if in_header else {"live": "1"}  # as a browser records: without a duration
    times = [0, 25, 25 * 7200]
    long = write_video(tmp_path / "long.mkv", [1, 2, 3], times=times, muxer_options=live)
    monkeypatch.setattr(visit, "decode_frames", lambda *_: pytest.fail("a frame was decoded"))
    message = refusal(lambda: taught.recognize(upload(long)), folder)
    assert "This video is too long. long.mkv, 120 min" in message or "long.mkv, 2 h 00 min" in message
    assert "at most" not in message and "Cut the clip" in message


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        (" ", 1, "The action has no name."),
        ("x" * 61, 1, "The name is too long. 61 characters."),
        ("new", 0, "The action has no clip. “new” without a clip."),
        ("new", MOST_CLIPS + 1, "These are too many clips of one action. 6 clips of “new”."),
        ("down", MOST_CLIPS - 1, "These are too many clips of one action. 6 clips of “down”."),
    ],
)
def test_bad_action_has_its_message(name, count, message, taught, clips, upload, folder) -> None:
    paths = [upload(clips["down"][2]) for _ in range(count)]
    assert message in refusal(lambda: taught.add(name, paths), folder, remain=True)
    assert all(path.exists() for path in paths)


def test_thirty_actions_are_too_many(taught, clips, upload, folder) -> None:
    taught.actions |= {f"action {number}": [""] for number in range(MOST_ACTIONS - 2)}
    message = refusal(lambda: taught.add("one more", [upload(clips["down"][2])]), folder, remain=True)
    assert f"These are too many actions for this page. “one more”, action {MOST_ACTIONS + 1}." in message


def test_two_actions_are_needed(empty, clips, upload, folder) -> None:
    assert "Add a second action" in empty.add("down", [upload(clips["down"][0])])
    assert "nothing to choose from yet" in refusal(lambda: empty.recognize(upload(clips["down"][2])), folder)


def test_files_that_were_not_uploaded_are_neither_read_nor_deleted(taught, clips, folder, tmp_path) -> None:
    link = folder / "link.mp4"
    link.symlink_to(clips["down"][2])
    for path in (clips["down"][2], folder / ".." / "outside.mp4", link, Path("/etc/passwd")):
        with pytest.raises(DmgalError, match="was not uploaded"):
            taught.recognize(path)
    assert clips["down"][2].exists() and link.exists()


def test_remove_and_start_over(taught, clips, upload) -> None:
    taught.remove("circle")
    taught.add("round", [upload(clips["circle"][0])])
    assert {bar.name for bar in taught.recognize(upload(clips["down"][2])).bars} == {"down", "round"}
    with pytest.raises(DmgalError, match="no such action"):
        taught.remove("circle")
    taught.remove("down")
    taught.remove("round")
    assert taught.actions == {}
    taught.add("down", [upload(clips["down"][0])])
    taught.clear()
    assert taught.actions == {}


def test_sample_task_shows_a_clip_of_each_action(empty, folder) -> None:
    answers = [empty.sample() for _ in SAMPLE_ACTIONS]
    assert [*empty.actions] == [*SAMPLE_ACTIONS] and empty.is_sample
    assert {answer.truth for answer in answers} == {*SAMPLE_ACTIONS}
    assert [answer.best for answer in answers] == [answer.truth for answer in answers]
    assert [*folder.iterdir()] == []


# ---- markup ----

ANSWER = Answer(
    HOSTILE, HOSTILE, HOSTILE, 0.5, (visit.Bar(HOSTILE, 0.5, True),), "", "", 8, HOSTILE, "layer", 0.1, HOSTILE
)


@pytest.mark.parametrize(
    "markup",
    [
        actions_markup({HOSTILE: ["data:"]}),
        answer_markup(ANSWER),
        answer_markup(replace(ANSWER, recognized=None)),
        notice_markup(attempt(lambda: Visit(ActionRecognizer(), Path("/no/folder")).remove(HOSTILE))[1]),
    ],
)
def test_names_are_text_and_never_markup(markup: str) -> None:
    assert "<img src=x" not in markup and "&lt;img src=x onerror=alert(1)&gt;" in markup
    assert "${alert" in markup and "{{ 7 * 7 }}" in markup  # as they were typed


# ---- the command ----


def test_missing_gradio_is_one_message_with_the_command(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app"]) == 2
    message = capsys.readouterr().err
    assert "The page needs Gradio." in message and "pip install 'dmgal[app]'" in message


def test_taken_port_is_one_message(monkeypatch, capsys) -> None:
    def launch(**options: object) -> None:
        raise OSError("Cannot find empty port: 7860")

    page = SimpleNamespace(build_page=lambda *parts: SimpleNamespace(launch=launch), launch_options=lambda *parts: {})
    monkeypatch.setattr(app, "_page_module", lambda: page)
    monkeypatch.setattr(app, "looking_layer", lambda model: None)
    monkeypatch.setattr(app, "ActionRecognizer", lambda *run, **options: SimpleNamespace(model=None))
    assert main(["app", "--port", "7860"]) == 2
    assert "127.0.0.1, port 7860: Cannot find empty port" in capsys.readouterr().err


def test_only_the_page_imports_gradio_and_only_the_running_command_imports_the_page() -> None:
    root = Path(web.__file__).parents[1]
    sources = {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*.py")}
    importing = re.compile(r"^ *(?:import|from) gradio\b", re.MULTILINE)
    assert [name for name, text in sources.items() if importing.search(text)] == ["web/page.py"]
    page = re.compile(r"(?:import|from) dmgal\.recipes\.web\.page|from dmgal\.recipes\.web import page")
    assert [name for name, text in sources.items() if page.search(text)] == []


PAGE = """
import asyncio
import os
import sys
from pathlib import Path
from types import SimpleNamespace

folder = Path(sys.argv[1])
os.environ["GRADIO_TEMP_DIR"] = str(folder)
import gradio

from dmgal import ActionRecognizer
from dmgal.recipes.app import App
from dmgal.recipes.web.page import build_page, launch_options

recognizer = ActionRecognizer()
page = build_page(recognizer, folder)
assert recognizer._loaded is None and not page.analytics_enabled
config = page.get_config_file()
assert {one["api_visibility"] for one in config["dependencies"]} == {"private"}
sources = [one for one in page.blocks.values() if one.get_block_name() in ("file", "video")]
assert len(sources) == 4
(state,) = (number for number, one in page.blocks.items() if one.get_block_name() == "state")
first, second = page.state_holder["first"][state], page.state_holder["second"][state]  # before any event
assert first is not second and first.actions == second.actions == {} and first.folder == folder
for source in sources:
    try:
        asyncio.run(source.async_move_resource_to_block_cache("http://127.0.0.1/clip.mp4"))
        raise AssertionError("an address was fetched")
    except gradio.Error:
        pass
options = launch_options(App().host, App().port)
assert options["server_name"] == "127.0.0.1" and not options["share"] and options["allowed_paths"] == []
assert "http" not in options["css"] and "@import" not in options["css"]
print("built")
"""


def test_page_builds_without_a_model_and_listens_on_this_computer_only(folder: Path) -> None:
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("needs Gradio: pip install 'dmgal[app]'")
    script = folder.parent / "page.py"  # a program, because Gradio leaves event loops open
    script.write_text(PAGE)
    result = forked.run([str(script), str(folder)], cwd=folder.parent)
    assert result.stdout.endswith("built\n"), result.stderr[-2000:]

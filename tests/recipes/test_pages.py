"""The pages of the demo and of ``dmgal report``: what they show, from real runs, and that they load nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from dmgal.cli import main
from dmgal.errors import DmgalError
from dmgal.recipes import demo
from dmgal.recipes.reports.films import hardest, most_different
from dmgal.recipes.reports.runs import Comparison, compare_in_depth
from dmgal.recipes.run.evaluation import Protocol

VOID = {"meta", "img", "input", "br", "link"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, save_run: Callable[..., Path]) -> list[Path]:
    """The frozen backbone and a Cmga."""
    folder = tmp_path_factory.mktemp("runs")
    frozen = save_run(folder / "frozen", "frozen", "--train.steps", "0")
    return [frozen, save_run(folder / "cmga", "dmgal_adapter")]


@pytest.fixture(scope="module")
def found(runs: list[Path]) -> Comparison:
    comparison = compare_in_depth(runs, Protocol(episodes=40), progress=False)
    assert comparison is not None
    return comparison


class Checker(HTMLParser):
    """Parser that checks nesting, texts of images, and that nothing is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images = 0
        self.headings: list[int] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        for name in ("src", "href", "xlink:href"):
            assert (found.get(name) or "#").startswith(("#", "data:")), found
        if tag == "img":
            self.images += 1
            assert found["alt"]
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(page: str) -> Checker:
    """Return the parser of a page, after checks of its structure."""
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.headings[0] == 1 and checker.headings.count(1) == 1
    steps = zip(checker.headings[:-1], checker.headings[1:], strict=True)
    assert all(later <= earlier + 1 for earlier, later in steps), checker.headings  # no level is skipped
    assert page.count("<svg") == page.count('<svg role="img" aria-label="')
    assert not re.search(r"url\((?!#)|@import|<script", page)
    return checker


def test_the_demo_page_shows_tasks_reversals_and_what_is_next(found: Comparison) -> None:
    page = demo.page(found, demo.Demo(episodes=40))
    checker, task = checked(page), 4  # two films of support, two queries
    pairs = len(found.catalog.reversal_pairs)
    tasks = page.count('class="task"')
    assert pairs == 2 and tasks in (1, 2) and checker.images == tasks * task + 2 * pairs
    assert page.count("<span>cmga: ") == 2 * tasks and "dmgal enroll actions" in page
    assert "What the columns mean" in page and "✓" in page


@pytest.mark.slow
def test_the_report_shows_runs_episodes_attention_and_recipes(runs: list[Path], tmp_path: Path, capsys) -> None:
    out = tmp_path / "pages" / "report.html"
    words = ["report", *map(str, runs), "--episodes", "40", "--hardest", "1", "--out", str(out), "--quiet"]
    assert main(words) == 0
    assert "report.html" in capsys.readouterr().out
    page = out.read_text()
    checker = checked(page)
    assert checker.images == 4 + 1 and "cmga minus frozen" in page
    for text in ("Hardest episodes", "Where the model looks", "Cmga-Adapter after block 3", "Cost", "k_shot: 1"):
        assert text in page
    assert str(tmp_path.parent) not in page and str(runs[0].parent) not in page


def test_hard_and_different_episodes_are_found(found: Comparison) -> None:
    accuracies = [row.evaluations["accuracy"].accuracies for row in found.rows]
    mean = sum(accuracies) / 2
    assert mean[hardest(found.rows, 3)].tolist() == sorted(mean.tolist())[:3]
    best = max(accuracies, key=lambda values: values.mean())
    assert (best - accuracies[0])[most_different(found.rows)] == (best - accuracies[0]).max()


@pytest.mark.parametrize("command", ["report", "compare"])
def test_a_command_without_runs_is_refused(command: str, capsys) -> None:
    assert main([command]) == 2
    assert f"Run dmgal {command} RUN" in capsys.readouterr().err


def test_a_failed_training_of_the_demo_is_one_error(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(demo.subprocess, "run", lambda *words, **options: SimpleNamespace(returncode=3))
    with pytest.raises(DmgalError, match=r"frozen: exit code 3(.|\n)*Run the demo again"):
        demo._train("frozen", tmp_path, demo.Demo(out=tmp_path))


@pytest.fixture
def browser() -> Iterator[str]:
    """The path of a headless Chromium."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs Chromium, for example Debian's package chromium")
    yield path


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1100])
def test_pages_need_no_sideways_scrolling(found: Comparison, browser: str, width: int, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(demo.page(found, demo.Demo(episodes=40)))
    frame = f"<iframe id=f src=page.html style='width:{width}px;height:900px;border:0'></iframe><p id=o></p>"
    script = "<script>f.onload=()=>{o.textContent='WIDTH '+f.contentDocument.documentElement.scrollWidth+'.'}</script>"
    (tmp_path / "frame.html").write_text(frame + script)
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    words += ["--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [browser, *words, f"file://{tmp_path}/frame.html"], capture_output=True, text=True, timeout=120
    )
    shown = re.search(r"WIDTH (\d+)\.", done.stdout)
    assert shown is not None and int(shown[1]) <= width, done.stderr[-500:]

"""The tutorials run from top to bottom and print what they show. The Python of every other page runs too.

A tutorial is run as a reader would: files that it shows are written, its commands and scripts run in one folder. The
output must have every line of the block below, up to its numbers and blanks.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Collection, Iterator
from itertools import pairwise
from pathlib import Path

import forked
import pytest
from doc_blocks import ROOT, SHELLS, Block, blocks, pages

TUTORIALS = [page for page in pages() if page.parent.name == "tutorials"]
CANNOT_RUN = {
    "dmgal reproduce ssv2_small --root DOWNLOAD --plan": "it needs a download",
    "dmgal reproduce ssv2_small --root DOWNLOAD": "it needs a download, and days",
}
"""Commands of tutorials that are only parsed, and why."""
NUMBER = re.compile(r"[+-]?\d[\d,.]*")
PROGRAM = """
import os, sys
from {module} import main
if __name__ == "__main__":
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.exit(main())
"""
"""Console script of a module, in a fork whose Python has read another PYTHONPATH. Workers of it import it again."""
COMMANDS = {name: PROGRAM.format(module=module) for name, module in {"dmgal": "dmgal.cli", "pytest": "pytest"}.items()}


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_tutorial_runs_and_prints_what_it_shows(page: Path, tmp_path: Path) -> None:
    Reader(tmp_path).follow(blocks(page))


def test_there_are_tutorials() -> None:
    assert len(TUTORIALS) >= 5
    lines = {
        line.partition("#")[0].strip()
        for page in TUTORIALS
        for block in blocks(page)
        for line in block.text.splitlines()
    }
    assert set(CANNOT_RUN) - lines == set()
    assert all(any(block.language == "text" for block in blocks(page)) for page in TUTORIALS if page.stem != "index")


class Reader:
    """Someone who follows a tutorial in a folder. Exported variables stay until its end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variables = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}

    def follow(self, steps: tuple[Block, ...]) -> None:
        """Run the blocks in their order and compare the output of each with the text block behind it."""
        for block, after in pairwise([*steps, None]):
            assert block is not None
            output = self.output_of(block)
            if output is not None and after is not None and after.language == "text":
                printed = {as_pattern(line) for line in re.split(r"[\r\n]", output)}
                absent = [line for line in after.text.splitlines() if not is_printed(as_pattern(line), printed)]
                assert absent == [], f"{after}: not printed by {block}, which printed:\n{output}"

    def output_of(self, block: Block) -> str | None:
        """Write the file that a block shows, or run it and return what it printed."""
        if block.title is not None:
            (self.folder / block.title).write_text(block.text)
            return None
        if block.language == "python":
            script = self.folder / f"block_{block.line}.py"
            script.write_text(block.text)
            return self.run([str(script)], str(block))
        if block.language in SHELLS:
            return "".join(self.run_line(line, str(block)) for line in statements(block.text))
        return None

    def run_line(self, line: str, where: str) -> str:
        """Run a line of the shell, or keep the variables that it exports."""
        words = shlex.split(line, comments=True)
        if " ".join(words) in CANNOT_RUN:
            return ""
        if words[0] == "export":
            exported = dict(word.split("=", 1) for word in words[1:])
            if "PYTHONPATH" in exported:  # dmgal itself may be on it
                exported["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")
            self.variables |= exported
            return ""
        if words[0] in COMMANDS:
            return self.run(["-c", COMMANDS[words[0]], *words[1:]], f"{where} {line}")
        if words[0] == "python":
            return self.run(words[1:], f"{where} {line}")
        result = subprocess.run(["bash", "-ec", line], cwd=self.folder, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{where} {line}\n{result.stderr}"
        return result.stdout

    def run(self, words: list[str], where: str) -> str:
        """Run a Python program and return what it printed."""
        result = forked.run(words, cwd=self.folder, **self.variables)
        assert result.returncode == 0, f"{where}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"
        return result.stdout + "\n" + result.stderr


def statements(text: str) -> Iterator[str]:
    """Yield the lines of a shell block. A loop is one."""
    loop: list[str] = []
    for line in text.splitlines():
        if not line.partition("#")[0].strip():
            continue
        if loop or line.startswith("for "):
            loop.append(line)
            if line.strip() == "done":
                yield "\n".join(loop)
                loop = []
        else:
            yield line


def is_printed(pattern: str, printed: Collection[str]) -> bool:
    """Return True if a line was printed. Three dots stand for any lines, or at the end of a line for its rest."""
    if pattern.endswith("..."):
        return any(line.startswith(pattern.removesuffix("...")) for line in printed)
    return not pattern or pattern in printed


def as_pattern(line: str) -> str:
    """Return a line without its numbers and with single blanks."""
    return " ".join(NUMBER.sub("#", line).split())


def test_a_tutorial_that_is_wrong_fails(tmp_path: Path) -> None:
    page = Path("page.md")
    shown = Block(page, 1, "bash", None, "for one in a b; do\n  echo $one 3\ndone\n")
    Reader(tmp_path).follow((shown, Block(page, 5, "text", None, "a 4\n...\nb...\n")))
    with pytest.raises(AssertionError, match="not printed"):
        Reader(tmp_path).follow((shown, Block(page, 5, "text", None, "c 3\n")))
    with pytest.raises(AssertionError):
        Reader(tmp_path).follow((Block(page, 1, "bash", None, "cp nothing here\n"),))


# ---- the Python of the README and the guides ----

CLIPS = """
import pathlib, torch
from dmgal.videos.generated import write_video
torch.manual_seed(0)
for name in ("wave1", "wave2", "bend1", "bend2", "clip"):
    write_video(pathlib.Path(f"{name}.mp4"), torch.randint(0, 256, (9, 3, 48, 48), dtype=torch.uint8))
"""
VIDEOS = """
import torch
support_videos, query_videos, videos = (torch.randint(0, 256, (n, 8, 3, 48, 48), dtype=torch.uint8) for n in (5, 2, 3))
"""
PEFT_CHECKS = """
assert support_features.shape[:2] == (5, 8) and query_features.shape[:2] == (2, 8)
import pathlib
assert sorted(path.name for path in pathlib.Path("my_adapter").iterdir()) == [
    "README.md", "adapter_config.json", "adapter_model.safetensors"
]
"""
TWO_ADAPTERS = """
import dmgal.adapters
from dmgal import SmgaConfig
model = peft.get_peft_model(load_backbone("tiny-clip"), SmgaConfig(), adapter_name="mine")
model.add_adapter("other", SmgaConfig())
encoder, videos = FrameEncoder(model), videos.float() / 255
"""
OWN_ADAPTER = """
from dmgal import SmgaConfig as MyConfig
make_backbone = lambda: load_backbone("tiny-clip")
"""
HEAD = """
import torch
from dmgal.episodes.heads import BiMHM
head, features, labels = BiMHM(), torch.randn(5, 8, 16), torch.arange(5)
support = query = head.prepare(features)
"""
AROUND = {
    "README.md": ([CLIPS, ""], "margin: "),
    "docs/adapters.md": (
        [
            VIDEOS,
            PEFT_CHECKS + TWO_ADAPTERS,
            "backbone = load_backbone('tiny-clip')",
            OWN_ADAPTER,
            "test_my_adapter(ADAPTER_CHECKS[0])",
        ],
        "trainable params: 23,408",
    ),
    "docs/contributing.md": (
        ["from dmgal.episodes.heads import Prototype as MyHead", "test_my_head(HEAD_CHECKS[0])"],
        "",
    ),
    "docs/galleries.md": ([CLIPS, ""], "wave"),
    "docs/heads.md": ([HEAD, "assert head.compare(support, labels, query).logits.shape == (5, 5)"], ""),
    "docs/motion.md": (["", "model.print_trainable_parameters()"], "trainable params"),
    "docs/text.md": ([VIDEOS, "assert logits.shape == (3, 2)"], ""),
    "docs/visualization.md": ([CLIPS, "assert pathlib.Path('maps.png').stat().st_size > 1000"], ""),
}
"""Code before each Python block of a page and after the last one, and a part of the output. Other pages run as they
are."""
SLOW = ("docs/visualization.md",)


WITH_PYTHON = {
    page.relative_to(ROOT).as_posix(): [block.text for block in blocks(page) if block.language == "python"]
    for page in pages()
    if page not in TUTORIALS
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else [])
        for name, found in WITH_PYTHON.items()
        if found
    ],
)
def test_python_of_a_page_runs(name: str, tmp_path: Path) -> None:
    python = WITH_PYTHON[name]
    around, printed = AROUND.get(name, ([""] * (len(python) + 1), ""))
    assert len(around) == len(python) + 1
    script = tmp_path / "page.py"
    script.write_text("\n".join(part for pair in zip(around, [*python, ""], strict=True) for part in pair))
    result = forked.run([str(script)], cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert printed in result.stdout


def test_pages_around_python_exist() -> None:
    assert [name for name in AROUND if not WITH_PYTHON.get(name)] == []

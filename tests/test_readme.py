"""Examples of the README run. Commands that may take hours or a download are only parsed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import forked
import pytest
import tyro

from dmgal import cli

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
CLIPS = """
import pathlib, torch
from dmgal.videos.generated import write_video
torch.manual_seed(0)
for name in ("wave1", "wave2", "bend1", "bend2", "clip"):
    write_video(pathlib.Path(f"{name}.mp4"), torch.randint(0, 256, (9, 3, 48, 48), dtype=torch.uint8))
"""
VIDEOS = """
import torch
support_videos, query_videos = (torch.randint(0, 256, (n, 8, 3, 48, 48), dtype=torch.uint8) for n in (5, 2))
"""
PEFT_CHECKS = """
assert support_features.shape[:2] == (5, 8) and query_features.shape[:2] == (2, 8)
import pathlib
assert sorted(path.name for path in pathlib.Path("my_adapter").iterdir()) == [
    "README.md", "adapter_config.json", "adapter_model.safetensors"
]
"""
SNIPPETS = {
    "README.md": ("## Python", CLIPS, "", "margin: "),
    "docs/galleries.md": ("## Python", CLIPS, "", "wave"),
    "docs/adapters.md": ("## Use with PEFT", VIDEOS, PEFT_CHECKS, "trainable params: 23,408"),
}
"""The section of each file whose first snippet runs, what precedes and follows it, and a part of its output."""


@pytest.mark.parametrize("file", SNIPPETS)
def test_snippet_runs(file: str, tmp_path: Path) -> None:
    title, before, after, printed = SNIPPETS[file]
    section = (ROOT / file).read_text().split(f"{title}\n")[1]
    snippet = re.search(r"```python\n(.+?)```", section, flags=re.DOTALL)
    assert snippet is not None
    script = tmp_path / "snippet.py"
    script.write_text(before + snippet[1] + after)
    result = forked.run([str(script)], cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert printed in result.stdout


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield each file of the documentation and the arguments of each ``dmgal`` command in it."""
    layers = sorted((ROOT / "recipes" / "configs").rglob("*.yaml"))
    for path in [README, *sorted((ROOT / "docs").rglob("*.md")), *layers]:
        for line in path.read_text().splitlines():
            words = shlex.split(line.removeprefix("#"), comments=True) if "dmgal " in line and "`" not in line else []
            if words[:1] == ["dmgal"] and "..." not in words:
                yield path.name, words[1:]


class AcceptedError(Exception):
    """The parser accepted a command line."""


@pytest.mark.parametrize(("file", "words"), [pytest.param(*c, id=f"{c[0]}: {' '.join(c[1])}") for c in commands()])
def test_parser_accepts_every_documented_command(file, words, tmp_path, monkeypatch, capsys):
    parse = tyro.cli

    def parse_and_stop(*args, **options):
        parse(*args, **options)
        raise AcceptedError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tyro, "cli", parse_and_stop)
    for layer in (word for word in words if word.endswith("data.yaml")):  # written by dmgal prepare
        (tmp_path / layer).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / layer).write_text("data: {name: ssv2_small, root: videos}")
    with pytest.raises(AcceptedError):
        pytest.fail(f"exit code {cli.main(words)}: {capsys.readouterr().err}")


def test_documentation_has_commands():
    found = list(commands())
    assert {words[0] for file, words in found if file == "README.md"} >= {"train", "prepare", "store", "evaluate"}
    assert len(found) > 20

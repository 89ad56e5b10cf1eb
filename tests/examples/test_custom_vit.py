"""Test of the example as a user runs it, in two processes."""

from __future__ import annotations

from pathlib import Path

import forked
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "custom_vit.py"


def run_example(*arguments: str) -> str:
    result = forked.run([str(SCRIPT), *arguments])
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout[result.stdout.index("tensor(") :]


@pytest.mark.slow
def test_new_process_gives_the_same_logits(tmp_path: Path) -> None:
    flags = ["--out", str(tmp_path / "run"), "--data", str(tmp_path / "shapes")]
    trained = run_example("train", *flags, "--steps", "2", "--clips", "3")
    assert run_example("recognize", *flags) == trained
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()

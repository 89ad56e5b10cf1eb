"""What the README shows is run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
VIDEOS = """
import torch
support_videos, query_videos = (torch.randint(0, 256, (n, 8, 3, 48, 48), dtype=torch.uint8) for n in (5, 2))
"""
CHECKS = """
assert support_features.shape[:2] == (5, 8) and query_features.shape[:2] == (2, 8)
import pathlib
assert sorted(path.name for path in pathlib.Path("my_adapter").iterdir()) == [
    "README.md", "adapter_config.json", "adapter_model.safetensors"
]
"""


def test_adapt_your_own_backbone(tmp_path: Path) -> None:
    section = README.read_text().split("## Adapt your own backbone")[1]
    snippet = re.search(r"```python\n(.+?)```", section, flags=re.DOTALL)
    assert snippet is not None
    script = tmp_path / "snippet.py"
    script.write_text(VIDEOS + snippet[1] + CHECKS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "trainable params: 23,408" in result.stdout

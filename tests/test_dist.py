"""The files of a release: their bytes depend on the commit alone, and the wheel works without the checkout."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest

import dmgal

ROOT = Path(__file__).resolve().parents[1]
BIN = "Scripts" if sys.platform == "win32" else "bin"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="builds the tracked files of a git checkout"),
]


def build(out: Path, umask: int = 0o022) -> dict[str, bytes]:
    """Build sdist and wheel as ``make dist`` does, and return the digest of each by its name."""
    command = [sys.executable, str(ROOT / ".ci" / "dist.py"), "--allow-changes", "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, umask=umask)
    assert result.returncode == 0, result.stderr[-2000:]
    return {path.name: hashlib.sha256(path.read_bytes()).digest() for path in out.iterdir()}


@pytest.fixture(scope="module")
def first_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with sdist and wheel."""
    out = tmp_path_factory.mktemp("dist")
    build(out)
    return out


@pytest.fixture(scope="module")
def installed(first_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of a fresh environment that has the wheel, and beside it only the dependencies of this one."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=False)
    programs = environment / BIN
    (wheel,) = first_build.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--quiet", str(wheel)], check=True)
    extra = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    folders = [path for path in [*extra, sysconfig.get_path("purelib")] if path and not Path(path, "dmgal").exists()]
    target = run(programs, "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(target, "dependencies.pth").write_text("\n".join(folders))  # their own .pth files are not read
    return programs


def run(programs: Path, name: str, *arguments: str, cwd: Path | None = None) -> str:
    """Run a program of the environment, without the paths of this one, and return what it printed."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "DMGAL"))}
    command: Sequence[str] = [str(programs / name), *arguments]
    result = subprocess.run(command, cwd=cwd or programs, env=env, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}: {result.stdout[-1000:]}{result.stderr[-2000:]}"
    return result.stdout


def test_same_commit_gives_the_same_bytes(first_build: Path, tmp_path: Path) -> None:
    digests = {path.name: hashlib.sha256(path.read_bytes()).digest() for path in first_build.iterdir()}
    assert len(digests) == 2
    assert build(tmp_path, umask=0o077) == digests


def test_wheel_trains_and_recognizes_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    def dmgal_command(line: str) -> str:
        return run(installed, "dmgal", *line.split(), cwd=tmp_path)

    home = run(installed, "python", "-c", "import dmgal; print(dmgal.__file__)", cwd=tmp_path)
    assert Path(home.strip()).is_relative_to(installed.parent)
    assert dmgal_command("--version") == f"dmgal {dmgal.__version__}\n"
    assert "usage: dmgal" in dmgal_command("--help")
    assert "method/dmgal_adapter" in dmgal_command("train --list")
    dmgal_command("generate moving_shapes --clips-per-class 3 --frames 8 --pixels 32 --out shapes --quiet")
    recipe = "method/dmgal_adapter data/moving_shapes --data.generate no"
    data = "--data.root shapes --data.split-file shapes/split.csv"
    steps = "--train.steps 2 --train.validate-every 2 --train.validation-episodes 2"
    dmgal_command(f"train {recipe} {data} {steps} --quiet --out run")
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    for folder in sorted({clip.parent for clip in (tmp_path / "shapes").rglob("*.mp4")})[:2]:
        (tmp_path / "actions" / folder.name).mkdir(parents=True)
        next(folder.iterdir()).rename(tmp_path / "actions" / folder.name / "clip.mp4")
    dmgal_command("enroll actions --out gallery.safetensors --quiet")
    assert folder.name in dmgal_command(f"recognize gallery.safetensors actions/{folder.name}/clip.mp4")

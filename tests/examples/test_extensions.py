"""Example packages outside of the import package: installed, found by their entry points, and each used once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from trainings import losses

from dmgal.videos.generated import write_video
from dmgal.videos.moving_shapes.clips import MovingShapes

PACKAGES = Path(__file__).resolve().parents[2] / "examples" / "extensions"
KINDS = ("adapter", "backbone", "command", "data", "head")
PIP = ["pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation"]
ACTIONS = {"boxing": 0, "walking": 2, "handclapping": 12, "jogging": 14, "handwaving": 18, "running": 20}
KTH = ["--data.name", "kth", "--data.num-workers", "0", "--data.num-frames", "4", "--ways", "2", "--queries", "1"]
KTH += ["--train.steps", "2", "--train.validation-episodes", "2", "--quiet"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed all packages."""
    pytest.importorskip("setuptools", reason="building packages needs setuptools: install dmgal[test]")
    copy, target = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("site")
    shutil.copytree(PACKAGES, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    assert sorted(path.name for path in copy.iterdir()) == sorted(KINDS)
    sources = [str(copy / kind) for kind in KINDS]
    done = subprocess.run(
        [sys.executable, "-m", *PIP, "--target", str(target), *sources], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return target


@pytest.fixture(scope="module")
def kth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Moving shapes in the layout of KTH: three persons, one file with two segments per action."""
    root, shapes = tmp_path_factory.mktemp("kth"), MovingShapes(pixels=48)
    lines = []
    for action, motion in ACTIONS.items():
        (root / action).mkdir()
        for person in (1, 2, 3):
            name = f"person{person:02d}_{action}_d1"
            write_video(root / action / f"{name}_uncomp.avi", shapes.clip(motion, person))
            lines.append(f"{name}\t\tframes\t1-8, 9-16")
    (root / "00sequences.txt").write_text("\n".join(lines))
    return root


def in_fork(site: Path, code: str, *words: str, processes: int = 1) -> str:
    """Run code with the packages on Python's path, and return what it printed."""
    prelude = f"import sys; sys.path.insert(0, {str(site)!r}); sys.argv[1:] = {[*words]!r}"
    done = forked.run(["-c", f"{prelude}\n{code}"], processes=processes)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def train(site: Path, *words: str, processes: int = 1) -> None:
    """Train as a launcher does, in as many processes."""
    code = "from dmgal.recipes.train import main\nfrom dmgal.recipes.run.cli_errors import run_recipe\nrun_recipe(main)"
    in_fork(site, code, *words, processes=processes)


def command_line(site: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "dmgal", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_packages_keep_their_own_promises(site: Path) -> None:
    tests = sorted(str(path) for path in PACKAGES.glob("*/test_*.py"))
    assert len(tests) == len(KINDS)
    code = "from dmgal.recipes.run.plugins import load_plugins; load_plugins()\nimport pytest\n"
    code += "sys.exit(pytest.main(['-q', '-c', '/dev/null', '-p', 'no:cacheprovider', *sys.argv[1:]]))"
    assert " passed" in in_fork(site, code, *tests)


def test_each_package_is_used_by_the_command_line(site: Path, kth: Path, tmp_path: Path) -> None:
    assert all(f"dmgal-example-{kind} 0.1.0" in command_line(site, "--help") for kind in KINDS)
    data, run = [*KTH, "--data.root", str(kth)], tmp_path / "run"
    added = ["--adapter.peft-type", "TEMPORAL_SHIFT", "--head.name", "MotionCosine", "--train.tasks-per-step", "2"]
    train(site, "method/smga", *data, *added, "--out", str(run), processes=2)
    assert len(losses(run)) == 2 and (run / "adapter" / "adapter_model.safetensors").is_file()
    train(site, "method/smga", *data, "--backbone.name", "mixer:tiny", "--out", str(tmp_path / "mixer"))
    assert len(losses(tmp_path / "mixer")) == 2
    printed = command_line(site, "hardest-pairs", str(run), "--episodes", "20", "--quiet")
    assert "test classes, 20 episodes" in printed and "handwaving / running" in printed

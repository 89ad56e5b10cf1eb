"""Tests that torchvision becomes importable beside a CPU torch, and that a working torchvision is left alone.

Each case runs in its own process, because operator definitions cannot be removed and mistakes end the process. The
torchvision of a case is a folder with a library that does or does not load beside a CPU torch.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from dmgal import torchvision_on_cpu

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or torch.version.cuda is not None or torch.version.hip is not None,
    reason="there is nothing to fix outside Linux, or beside a CUDA or ROCm torch",
)

STATE = """
import torch
print(make_torchvision_importable(), *(hasattr(torch.ops.torchvision, n) for n in ("nms", "qnms")),
      "torchvision" in sys.modules)
"""


def run(code: str, folder: Path | None = None) -> list[str]:
    """Run code in a fresh process, with ``folder`` first on the path, and return the words that it printed."""
    start = f"""
import sys
sys.path[:0] = {[str(folder)] * (folder is not None)}
from dmgal import torchvision_on_cpu
from dmgal.torchvision_on_cpu import make_torchvision_importable
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "_BeforeTorchvision"]
"""
    result = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.split()


def test_importing_dmgal_installs_one_hook_without_torch() -> None:
    again = "torchvision_on_cpu.install(); torchvision_on_cpu.install()"
    count = "sum(isinstance(finder, torchvision_on_cpu._BeforeTorchvision) for finder in sys.meta_path)"
    assert run(f"{again}; print({count}, 'torch' in sys.modules)") == ["1", "False"]


@pytest.mark.slow
def test_peft_is_importable_after_dmgal() -> None:
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    assert run("torchvision_on_cpu.install()\nimport peft; print('peft')") == ["peft"]


def torchvision_with_library(folder: Path, *, loads: bool) -> Path:
    """Write a package named torchvision whose library is some loadable library, or a text file."""
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    if loads:
        from safetensors import _safetensors_rust

        shutil.copy(_safetensors_rust.__file__, package / "_C.so")
    else:
        (package / "_C.so").write_text("not a library")
    return folder


def test_schemas_are_defined_if_the_library_does_not_load(tmp_path: Path) -> None:
    folder = torchvision_with_library(tmp_path, loads=False)
    assert run(STATE, folder) == ["True", "True", "True", "False"]


@pytest.mark.slow
def test_no_schemas_are_defined_if_the_library_loads(tmp_path: Path) -> None:
    folder = torchvision_with_library(tmp_path, loads=True)
    assert run(STATE, folder) == ["False", "False", "False", "False"]


@pytest.mark.slow
def test_library_with_operators_can_be_loaded_twice(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("compiling a library that defines torchvision's operators needs g++")
    folder = torchvision_with_library(tmp_path, loads=False)
    compile_library(compiler, folder / "torchvision" / "_C.so")
    load_again = f"\ntorch.ops.load_library({str(folder / 'torchvision' / '_C.so')!r}); print('alive')"
    assert run(STATE + load_again, folder) == ["False", "True", "True", "False", "alive"]


def compile_library(compiler: str, target: Path) -> None:
    """Build a library that defines torchvision's operators when it is loaded."""
    schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    defined = " ".join(f'library.def("{name}{schema}");' for name in ("nms", "qnms"))
    source = target.with_suffix(".cpp")
    source.write_text(f"#include <torch/library.h>\nTORCH_LIBRARY(torchvision, library) {{ {defined} }}\n")
    home = Path(torch.__file__).parent
    include, libraries = [f"-I{home / 'include'}"], [f"-L{home / 'lib'}", "-ltorch_cpu", "-lc10"]
    command = [compiler, "-std=c++20", "-O0", "-shared", "-fPIC", *include, str(source), *libraries, "-o", str(target)]
    subprocess.run(command, check=True)


@pytest.mark.slow
def test_no_schemas_are_defined_if_the_operators_exist(tmp_path: Path) -> None:
    folder = torchvision_with_library(tmp_path, loads=False)
    define = """
import torch
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
    assert run(define + STATE, folder) == ["False", "True", "True", "False"]


@pytest.mark.slow
def test_repeated_calls_do_nothing(tmp_path: Path) -> None:
    folder = torchvision_with_library(tmp_path, loads=False)
    twice = "print(make_torchvision_importable(), make_torchvision_importable())"
    assert run(twice, folder) == ["True", "False"]


@pytest.mark.slow
def test_no_schemas_are_defined_without_torchvision() -> None:
    hide = "torchvision_on_cpu.find_spec = lambda name: None\n"
    assert run(hide + STATE) == ["False", "False", "False", "False"]


@pytest.mark.slow
def test_installed_hook_makes_torchvision_importable(tmp_path: Path) -> None:
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    torchvision_on_cpu.main(tmp_path)
    code = f"""
import site
sys.modules.pop({torchvision_on_cpu.NAME!r}, None)
before = len(sys.meta_path)
site.addsitedir({str(tmp_path)!r})
print(len(sys.meta_path) - before, "torch" in sys.modules)
import torchvision.transforms
from torchvision.models import resnet18
print(resnet18().training, sys.modules[{torchvision_on_cpu.NAME!r}].__file__)
"""
    assert run(code, tmp_path) == ["1", "False", "True", str(tmp_path / f"{torchvision_on_cpu.NAME}.py")]

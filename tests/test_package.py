"""The house's own rules: what is packaged, what imports what, and what no source file may contain.

Checks that look for files recurse, and fail when they find none: a guard that finds nothing is no guard.
"""

from __future__ import annotations

import ast
import graphlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Collection, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import torch
from source_files import ROOT, parsed, python_files

import dmgal
from dmgal.videos.generated import write_video

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LAYERS = {
    "": 0,
    "errors": 0,
    "files": 1,
    "fork_server": 0,
    "loader": 2,
    "names": 0,
    "parallel": 1,
    "progress": 1,
    "torchvision_on_cpu": 0,
    "backbones": 2,
    "adapters": 3,
    "videos": 3,
    "episodes": 4,
    "visualization": 5,
    "recipes": 6,
}
LAYERS |= {"bench": 7, "testing": 7, "cli": 7, "__main__": 8}
SCRIPT_FLOORS = ("recipes", "bench")  # people copy and launch these files, so they name the package in full
DATA = (
    "adapters/bundled/*/*",
    "backbones/tiny_clip/*.json",
    "backbones/tiny_clip/*.md",
    "bench/published.yaml",
    "backbones/tiny_clip/*.safetensors",
    "videos/catalog/splits/*.csv.gz",
    "recipes/configs/**/*.yaml",
    "recipes/configs/launch/*.sh",
    "recipes/reports/*.j2",
    "recipes/web/*.j2",
    "recipes/web/*.css",
)


def in_child(code: str, *, env: dict[str, str] | None = None) -> str:
    """Run code in a fresh Python and return what it printed."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout


# ---- the package and its wheel ----


def test_the_root_init_is_loaded_once() -> None:
    init = ROOT / "__init__.py"
    loaded = [
        name
        for name, module in list(sys.modules.items())
        if (getattr(module, "__file__", None) or "").endswith("__init__.py") and Path(module.__file__).samefile(init)
    ]
    assert loaded == ["dmgal"]


def test_every_package_folder_is_listed() -> None:
    folders = {path.parent.relative_to(ROOT) for path in python_files(tests=False)}
    existing = {".".join(("dmgal", *folder.parts)) for folder in folders}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == existing
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders)


@pytest.fixture(scope="module")
def renamed_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is tracked or would be, in a folder whose name is no Python identifier."""
    copy = tmp_path_factory.mktemp("checkout") / "dmgal-main"
    hidden_or_built = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "runs")
    shutil.copytree(ROOT, copy, ignore=hidden_or_built)
    return copy


def test_wheel_holds_the_sources_and_the_data_and_nothing_else(renamed_checkout: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools", reason="building the wheel needs setuptools: install dmgal[test]")
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    result = subprocess.run([sys.executable, "-c", build], cwd=renamed_checkout, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"dmgal-{dmgal.__version__}-py3-none-any.whl"
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    data = {pattern: list(ROOT.glob(pattern)) for pattern in DATA}
    assert all(data.values()), f"no file for one of the patterns: {data}"
    expected = [*python_files(tests=False), ROOT / "py.typed", *(path for paths in data.values() for path in paths)]
    assert packed == {f"dmgal/{path.relative_to(ROOT).as_posix()}" for path in expected}


@pytest.mark.slow
def test_the_tests_run_in_a_checkout_of_another_name(renamed_checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "dmgal").symlink_to(renamed_checkout, target_is_directory=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    these = ["tests/test_package.py::test_the_root_init_is_loaded_once", "tests/test_cli.py"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run([*command, *these], cwd=renamed_checkout, capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stdout[-2000:]
    assert " passed" in result.stdout and "skipped" not in result.stdout


# ---- the public names ----


def test_root_names_are_lazy_and_there() -> None:
    assert set(dmgal._HOME) | {"__version__"} == set(dmgal.__all__)
    assert set(dmgal.__all__) <= set(dir(dmgal))
    for name, home in dmgal._HOME.items():
        assert getattr(dmgal, name) is getattr(import_module(home, "dmgal"), name)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = dmgal.no_such_name


@pytest.mark.parametrize(
    "code", ["import dmgal", "import dmgal.cli; dmgal.cli.main(['--help'])", "import dmgal.recipes.run.cli_errors"]
)
def test_these_import_no_torch(code: str) -> None:
    heavy = {"torch", "numpy", "transformers", "peft", "tyro", "av"}
    loaded = in_child(f"{code}\nimport sys; print('loaded:', *sys.modules)").rpartition("loaded:")[2].split()
    assert "dmgal" in loaded
    assert not heavy & set(loaded)


UNUSED_BY_RECOGNITION = {
    "cv2",
    "decord",
    "gradio",
    "matplotlib",
    "onnx",
    "pandas",
    "sklearn",
    "dmgal.bench",
    "dmgal.episodes.two_pass",
    "dmgal.recipes.train",
    "dmgal.recipes.training",
    "dmgal.recipes.web",
    "dmgal.testing",
    "dmgal.videos.motion_world",
    "dmgal.videos.moving_shapes",
    "dmgal.visualization",
}


@pytest.mark.slow
def test_recognition_imports_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    """Most of the time from the start of ``dmgal recognize`` to its answer is spent in imports."""
    gallery, clip = tmp_path / "gallery.safetensors", tmp_path / "clip.mp4"
    noise = torch.randint(0, 256, (3, 8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    dmgal.ActionRecognizer().enroll({"up": [noise[0]], "down": [noise[1]]}).save(gallery)
    write_video(clip, noise[2])
    code = f"from dmgal.cli import main; main(['recognize', {str(gallery)!r}, {str(clip)!r}])"
    loaded = set(in_child(f"{code}\nimport sys; print('loaded:', *sys.modules)").rpartition("loaded:")[2].split())
    assert {"dmgal.recipes.recognize", "torch", "open_clip"} <= loaded
    assert not UNUSED_BY_RECOGNITION & loaded


# ---- what the sources may hold ----


@pytest.fixture(scope="module")
def sources() -> dict[Path, ast.Module]:
    """Every Python file of the package, parsed, by its path from the root."""
    return {path.relative_to(ROOT): parsed(path) for path in python_files(tests=False)}


def test_no_file_is_longer_than_400_lines() -> None:
    assert [path for path in python_files(tests=True) if len(path.read_text().splitlines()) > 400] == []


FORBIDDEN_OPENING = re.compile(r"(Of|As|Where|What|Which|Whether|Within|By|From|Nothing|Also)\b")
FORBIDDEN_WORDS = re.compile(
    r"\b(an"
    r"ew|way b"
    r"ack|reck"
    r"oned|comes ap"
    r"art|without a w"
    r"ord|dear"
    r"est|some"
    r"body|who"
    r"ever|men"
    r"d(ed)?)\b"
)


def test_prose_follows_the_writing_guide() -> None:
    texts = {path: path.read_text() for path in python_files(tests=True)}
    openings = [
        f"{path.relative_to(ROOT)}: {docstring.splitlines()[0]}"
        for path in texts
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module)
        if FORBIDDEN_OPENING.match(docstring := (ast.get_docstring(node) or ""))
    ]
    prose = texts | {path: path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]}
    words = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path, text in prose.items()
        for match in FORBIDDEN_WORDS.finditer(text)
    ]
    assert openings == []
    assert words == []


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield each imported module of ours as ``floor.module``, and whether the import is relative."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom):
            named = tuple((node.module or "").split(".")) if node.module else ()
            if node.level:
                base = package[: len(package) - node.level + 1] + named
                targets = [base] if base else [(alias.name,) for alias in node.names]
                yield from ((".".join(target), True) for target in targets)
            elif named[:1] == ("dmgal",):
                targets = [named[1:]] if named[1:] else [(alias.name,) for alias in node.names]
                yield from ((".".join(target), False) for target in targets)
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            yield from ((".".join(parts[1:]), False) for parts in names if parts[0] == "dmgal")


@cache
def import_graph() -> dict[str, set[str]]:
    """Return the modules that each module imports, function-level imports included."""
    names = {}
    for path in python_files(tests=False):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        package = path.relative_to(ROOT).parent.parts
        targets = set()
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ImportFrom):
                base = [*package[: len(package) - node.level + 1]] if node.level else ["dmgal"]
                written = (node.module or "").split(".") if node.module else []
                if not node.level:
                    if written[:1] != ["dmgal"]:
                        continue
                    base, written = [], written[1:]
                targets |= {".".join([*base, *written, alias.name]) for alias in node.names}
            elif isinstance(node, ast.Import):
                targets |= {
                    alias.name.removeprefix("dmgal.") for alias in node.names if alias.name.startswith("dmgal.")
                }
        graph[name] = {known for target in targets if (known := _module_of(target, names)) and known != name}
    return graph


def _module_of(target: str, names: Collection[str]) -> str:
    while target and target not in names:
        target = target.rpartition(".")[0]
    return target


def test_imports_point_down_the_layers() -> None:
    arrows = [(here, there) for here, targets in import_graph().items() if here for there in targets]
    assert len(arrows) > 100
    for here, there in arrows:
        top, below = here.split(".")[0], there.split(".")[0]
        assert top in LAYERS, f"{here} belongs to no layer"
        assert top == below or LAYERS[below] < LAYERS[top], f"{here} imports {there}, which is not below it"


def test_there_are_no_import_cycles() -> None:
    try:
        graphlib.TopologicalSorter(import_graph()).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"import cycle: {error.args[1]}")


def test_no_two_folders_import_each_other() -> None:
    folders = {here: str(Path(*here.split("."))) for here in import_graph()}
    folders = {
        name: folder if (ROOT / folder).is_dir() else str(Path(folder).parent) for name, folder in folders.items()
    }
    pairs = {(folders[here], folders[there]) for here, targets in import_graph().items() for there in targets}
    pairs = {(here, there) for here, there in pairs if here != there and "." not in (here, there)}
    assert len(pairs) > 10
    assert [pair for pair in pairs if pair[::-1] in pairs] == []


def test_scripts_name_the_package_and_the_library_does_not() -> None:
    for path in python_files(tests=False):
        relative = path.relative_to(ROOT)
        for target, is_relative in imports(path):
            if relative.parts[0] in SCRIPT_FLOORS:
                assert not is_relative, f"{relative}: write dmgal.{target}, the file is also run as a script"
            elif len(relative.parts) > 1:
                assert is_relative, f"{relative}: import {target} relatively"


def test_no_script_hides_a_module_that_others_import() -> None:
    """The folder of a file that is run as a script is the first place where Python looks for modules."""
    requirements = (
        "accelerate av decord einops filelock jinja2 matplotlib numpy open_clip peft PIL "
        "safetensors timm torch tqdm transformers tyro xxhash yaml"
    )
    taken = sys.stdlib_module_names | set(requirements.split())
    scripts = {path.stem for name in SCRIPT_FLOORS for path in (ROOT / name).glob("*.py")}
    assert scripts and not scripts & taken


FORBIDDEN_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "pickle.load"}


def test_no_code_is_loaded_from_data(sources: dict[Path, ast.Module]) -> None:
    for path, tree in sources.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                origin = node.module if isinstance(node, ast.ImportFrom) else None
                names = {(origin or alias.name).split(".")[0] for alias in node.names}
                assert not names & FORBIDDEN_MODULES, f"{path}, line {node.lineno}"
            elif isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in FORBIDDEN_CALLS, f"{path}, line {node.lineno}"
                assert not any(keyword.arg == "allow_pickle" for keyword in node.keywords), (
                    f"{path}, line {node.lineno}"
                )


# ---- the guard of conftest.py ----


def test_the_network_is_refused_and_this_machine_is_not() -> None:
    with pytest.raises(pytest.fail.Exception, match="must not use the network"):
        socket.getaddrinfo("example.org", 80)
    with socket.socket() as outward, pytest.raises(pytest.fail.Exception, match="must not use the network"):
        outward.connect(("192.0.2.1", 80))
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass

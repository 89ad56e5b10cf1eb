"""Extension from outside of the package: each test adds a toy of one kind, checks its contract and runs it.

A test writes the files that a user would write, as `docs/contributing.md` describes, and counts them and their lines.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import peft
import pytest
from trainings import losses

from dmgal.adapters import ADAPTERS
from dmgal.backbones import FAMILIES, load_backbone
from dmgal.cli import COMMANDS, main
from dmgal.episodes.heads import HEADS
from dmgal.testing import ADAPTER_CHECKS, BACKBONE_CHECKS, HEAD_CHECKS
from dmgal.videos import VideoCatalog

TASKS = ["--ways", "2", "--queries", "1", "--train.validation-episodes", "2", "--train.steps", "1", "--quiet"]

ADAPTER = {
    "shift.py": '''
from dataclasses import dataclass

import torch
from torch import nn

from dmgal.adapters import AdapterLayer, BlockAdapterConfig, BlockTuner, register


class Shift(nn.Module):
    """One trained vector, added to all tokens."""

    def __init__(self, width):
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(width))

    def forward(self, tokens):  # (V, T, N, C)
        return tokens + self.vector


@dataclass
class ShiftConfig(BlockAdapterConfig):
    kind = "SHIFT"
    title = "Shift"

    def complete(self, spec):
        pass

    def adapter_for(self, block, module, spec):
        return Shift(spec.width)


class ShiftLayer(AdapterLayer):
    child = "shift"
    prefix = "toy_"

    def leave_block(self, tokens):
        return self.through(tokens)


class ShiftModel(BlockTuner):
    tuner_layer_cls = ShiftLayer


register(ShiftConfig, ShiftModel)
''',
    "shift.yaml": """
adapter: {peft_type: SHIFT}
head: {name: BiMHM, center: video, logit_scale: 10.0}
""",
    "test_shift.py": """
import pytest
import torch
from shift import ShiftConfig

from dmgal.backbones import load_backbone
from dmgal.testing import ADAPTER_CHECKS, AdapterCase

CASE = AdapterCase(lambda: load_backbone("tiny-clip"), ShiftConfig(num_frames=2), torch.randn(4, 2, 3, 48, 48))


@pytest.mark.parametrize("check", ADAPTER_CHECKS)
def test_shift(check):
    check(CASE)
""",
}

HEAD = {
    "last_frame.py": '''
import torch
from torch import nn

from dmgal.backbones import VideoState
from dmgal.episodes.episode import EpisodeOutput
from dmgal.episodes.heads import HEADS


class LastFrame(nn.Module):
    """Squared distance of the last frame to the mean of each class, with a trained scale."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def prepare(self, features):  # (V, T, D)
        return VideoState(last=features[:, -1])

    def compare(self, support, labels, query):
        dtype = torch.promote_types(query["last"].dtype, torch.float32)
        support, query = support["last"].to(dtype), query["last"].to(dtype)
        means = torch.stack([support[labels == label].mean(0) for label in range(int(labels.max()) + 1)])
        distances = (query[:, None] - means).square().mean(-1)
        return EpisodeOutput(-self.scale.to(dtype).exp() * distances)


HEADS["LastFrame"] = LastFrame
''',
    "last_frame.yaml": "head: {name: LastFrame}\n",
    "test_last_frame.py": """
import pytest
from last_frame import LastFrame

from dmgal.testing import HEAD_CHECKS, HeadCase


@pytest.mark.parametrize("check", HEAD_CHECKS)
def test_last_frame(check):
    check(HeadCase(LastFrame, video=(4, 16)))
""",
}

FAMILY = {
    "little_vit.py": '''
import torch
import torch.nn.functional as F
from torch import nn

from dmgal.backbones import FAMILIES, BackboneSpec, BlockParts, Family


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, tokens):
        return self.out(F.scaled_dot_product_attention(*self.qkv(tokens).chunk(3, -1)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(16), Attention(), nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, tokens):
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class LittleViT(nn.Module):
    """A ViT of width 16 on 4 x 4 patches, without a class token."""

    def __init__(self, depth):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.norm = nn.LayerNorm(16)

    def embed(self, images):
        return self.patches(images).flatten(2).transpose(1, 2)

    def forward(self, images):
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens).mean(1)


def describe(model):
    if not isinstance(model, LittleViT):
        return None
    return BackboneSpec(
        library="little", tower="", blocks="blocks", num_blocks=len(model.blocks), width=16, batch_first=True,
        num_prefix_tokens=0, grid=(4, 4), image_size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, pools_prefix=False,
        patch_embedding="patches", parts=BlockParts("norm1", "attention", "norm2", "mlp"),
        stem=LittleViT.embed, run_block=lambda model, block, tokens: block(tokens),
        pool=lambda model, tokens: model.norm(tokens).mean(1), norm=lambda model, tokens: model.norm(tokens),
        project=lambda model, features: features, attend=lambda block, tokens: block.attention(tokens),
    )


def load(name):
    torch.manual_seed(0)
    return LittleViT(depth=int(name)).eval()


FAMILIES["little"] = Family(describe, load, ("DEPTH",))
''',
    "test_little_vit.py": """
import little_vit
import pytest
import torch

from dmgal.testing import BACKBONE_CHECKS, BackboneCase

VIDEOS = torch.randn(2, 3, 3, 32, 32)


@pytest.mark.parametrize("check", BACKBONE_CHECKS)
def test_little_vit(check):
    check(BackboneCase(lambda: little_vit.load("3").requires_grad_(False), VIDEOS))
""",
}

COMMAND = {
    "hello.py": '''
"""Greeting of the user."""

from dmgal.cli import COMMANDS, Command


def main(argv):
    print("Hello", *argv)


COMMANDS["hello"] = Command("hello", "greet the user")
''',
}

DATA = {
    "toy.yaml": "data: {name: toy, root: videos, split_file: toy.csv, num_frames: 4, num_workers: 0}\n",
    "toy.csv": "split,class_name,video\n"
    + "".join(f"{s},{s} {c},{s}{c}{v}\n" for s in ("train", "val", "test") for c in "ab" for v in "12"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder on Python's path. Registries and modules are restored after the test."""
    tables = [peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING, peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING]
    registries = [HEADS, ADAPTERS, FAMILIES, COMMANDS, peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING, *tables]
    before = [dict(registry) for registry in registries]
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)
    for name in [n for n, m in sys.modules.items() if str(tmp_path) in (getattr(m, "__file__", None) or "")]:
        del sys.modules[name]


@pytest.fixture
def toy_data(folder: Path, write_frames: Callable[..., Path]) -> str:
    """Layer of a toy data set of two classes per split, and its videos."""
    write(folder, DATA, files=2, lines=14)
    for number, row in enumerate(DATA["toy.csv"].splitlines()[1:]):
        write_frames(folder / "videos" / row.split(",")[2], range(number, number + 4))
    return "toy.yaml"


def write(folder: Path, contents: dict[str, str], files: int, lines: int) -> None:
    """Write files, and check that they are at most this many."""
    for name, content in contents.items():
        (folder / name).write_text(content.lstrip())
    assert len(contents) <= files
    assert sum(len(content.strip().splitlines()) for content in contents.values()) <= lines


def train(*words: str) -> None:
    """Train a step on the command line and check that it left a run."""
    assert main(["train", *words, *TASKS, "--out", "run"]) == 0
    assert len(losses(Path("run"))) == 1


def test_an_adapter_takes_three_files(folder: Path, toy_data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, ADAPTER, files=4, lines=65)
    test_module = import_module("test_shift")
    assert ADAPTERS[test_module.ShiftConfig].prefix == "toy_"
    for check in ADAPTER_CHECKS:
        test_module.test_shift(check)
    monkeypatch.setenv("DMGAL_PLUGINS", "shift")
    train("shift.yaml", toy_data)
    assert (folder / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_a_head_takes_three_files(folder: Path, toy_data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, HEAD, files=3, lines=45)
    test_module = import_module("test_last_frame")
    assert HEADS["LastFrame"] is test_module.LastFrame
    for check in HEAD_CHECKS:
        test_module.test_last_frame(check)
    monkeypatch.setenv("DMGAL_PLUGINS", "last_frame")
    train("last_frame.yaml", toy_data)


def test_a_backbone_family_takes_two_files(folder: Path, toy_data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, FAMILY, files=3, lines=85)
    test_module = import_module("test_little_vit")
    for check in BACKBONE_CHECKS:
        test_module.test_little_vit(check)
    assert load_backbone("little:2").dmgal_name == "little:2" and len(load_backbone("little:2").blocks) == 2
    monkeypatch.setenv("DMGAL_PLUGINS", "little_vit")
    train("method/smga", toy_data, "--backbone.name", "little:2")


def test_a_data_set_takes_two_files(folder: Path, toy_data: str) -> None:
    catalog = VideoCatalog.from_split(folder / "toy.csv", folder / "videos")
    assert len(catalog) == 12 and [*map(catalog.class_splits.count, ("train", "val", "test"))] == [2, 2, 2]
    train("method/smga", toy_data)


def test_a_command_takes_one_file(folder: Path) -> None:
    write(folder, COMMAND, files=2, lines=10)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "DMGAL_PLUGINS": "hello"}
    for words, expected in ((["hello", "Ada"], "Hello Ada\n"), (["--help"], "greet the user")):
        command = [sys.executable, "-m", "dmgal", *words]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0 and expected in result.stdout, result.stderr


def test_an_unknown_plug_in_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DMGAL_PLUGINS", "nothing_here")
    assert main(["train"]) == 2
    assert "DMGAL_PLUGINS=nothing_here" in capsys.readouterr().err

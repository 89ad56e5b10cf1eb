"""A run folder: the resolved recipe, where and with what it ran, its log, its weights and results.

    recipe.yaml          everything that shapes the run, complete
    paths.yaml           the recipe's absolute paths, of this machine only
    split.csv            classes and videos of each split, where the data has no split file
    environment.json     command, versions, git revision, hardware, the run's id for trackers
    log.jsonl            one line per step and per validation
    checkpoints/         to resume from, the newest ones
    adapter/             the best adapter, as PEFT saves it; in it weights.safetensors: all else that was trained
    weights.safetensors  the best weights of a run without an adapter
    results/             evaluations

It is written before the first step. Files are written under another name and renamed, so a killed run leaves none half.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import re
import secrets
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmgal import __version__
from dmgal.episodes import VideoCatalog
from dmgal.errors import DmgalError
from dmgal.recipes.config import Recipe
from dmgal.recipes.layers import from_mapping, to_mapping
from dmgal.recipes.saved_split import SAVED_SPLIT, read_split, split_of
from dmgal.recipes.saving.places import put_back, set_apart

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

MOST_CHANGES = 20
"""That a message names."""
PACKAGES = ("torch", "peft", "transformers", "accelerate", "open_clip_torch", "av")


class Run:
    """A run folder; nothing is created before ``start``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.adapter = folder / "adapter"
        self.checkpoints = folder / "checkpoints"

    @property
    def split(self) -> Path:
        """The split of the classes, where the data has no split file."""
        return self.folder / SAVED_SPLIT

    @property
    def weights(self) -> Path:
        """The best of everything trained that is not the adapter's, whether it exists or not."""
        alone, beside = self.folder / "weights.safetensors", self.adapter / "weights.safetensors"
        return beside if beside.exists() or (self.adapter.exists() and not alone.exists()) else alone

    def start(
        self, recipe: Recipe, resume: bool, accept_changes: bool = False, catalog: VideoCatalog | None = None
    ) -> dict[str, tuple[Any, Any]]:
        """Makes the folder and writes what is known beforehand.

        Args:
            recipe: of the run, complete.
            resume: go on with the run in the folder, if there is one.
            accept_changes: go on though the folder's recipe or split is another, and write down the new one.
            catalog: whose split to keep, and to compare; None where the data has a split file.

        Returns:
            What was accepted: values before and now, by the recipe's key; the split of a class by ``split.CLASS``.

        Raises:
            DmgalError: the folder holds a run that was not asked to be resumed, or one of another recipe; or it cannot
                be written.
        """
        changes: dict[str, tuple[Any, Any]] = {}
        if (self.folder / "recipe.yaml").exists():
            if not resume:
                raise DmgalError(
                    "This folder already holds a run.",
                    received=str(self.folder),
                    expected="a folder that does not exist yet",
                    remedy="pass --resume to continue the run, or another --out",
                )
            changes = _differences(to_mapping(self.recipe()), to_mapping(recipe))
            before = read_split(self.split) if catalog is not None else {}
            if before and catalog is not None:
                changes |= _differences({"split": before}, {"split": split_of(catalog)})
            if not changes:
                return changes
            if not accept_changes:
                raise _other_recipe(changes)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if catalog is not None:
                catalog.to_csv(self.split)
            shared, paths = set_apart(to_mapping(recipe))
            if not changes:
                known = {**environment(), "tracker_id": secrets.token_hex(4)}  # not of the seed: runs share that
                write_text(self.folder / "environment.json", json.dumps(known, indent=2) + "\n")
            if paths:
                write_text(self.folder / "paths.yaml", yaml.safe_dump(paths))
            else:
                (self.folder / "paths.yaml").unlink(missing_ok=True)
            write_text(self.folder / "recipe.yaml", yaml.safe_dump(shared, sort_keys=False))
        return changes

    def tracker_id(self) -> str | None:
        """Drawn when the run began, so that trackers tell it from others in folders of the same name."""
        path = self.folder / "environment.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return found.get("tracker_id")  # type: ignore[no-any-return]

    def recipe(self) -> Recipe:
        path, paths = self.folder / "recipe.yaml", self.folder / "paths.yaml"
        if not path.is_file():
            raise DmgalError(
                "This folder holds no run.",
                received=str(self.folder),
                expected="a folder with a recipe.yaml, as dmgal train writes it",
                remedy="give a run's folder",
            )
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        apart = (yaml.safe_load(paths.read_text(encoding="utf-8")) if paths.is_file() else None) or {}
        return from_mapping(Recipe, put_back(tree, apart))

    def check_complete(self, recipe: Recipe) -> None:
        """Refuses a run that has not yet saved what its recipe trains."""
        wanted = [self.adapter] if recipe.adapter is not None else [self.weights]
        missing = [path.name for path in wanted if not path.exists()]
        if recipe.train.steps and missing:
            raise DmgalError(
                "This run has no trained weights yet.",
                received=f"{self.folder} without {', '.join(missing)}",
                expected="a run that has come to its first validation",
                remedy="let it go on with dmgal train ... --resume",
            )

    def rewind_log(self, step: int, validated: int) -> list[dict[str, Any]]:
        """Forgets what was logged after a checkpoint, and a line that a kill left half; returns what is left.

        A validation of the checkpoint's own step counts only where it is ``validated``, the last one that was saved.
        """
        path = self.folder / "log.jsonl"
        kept = [
            entry
            for entry in _whole_lines(path)
            if entry.get("step", 0) <= (validated if "validation_accuracy" in entry else step)
        ]
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))
        return kept

    def log(self, **entry: Any) -> None:
        """One line more, with what is given."""
        with writing(self.folder), (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")

    def write_result(self, name: str, result: Mapping[str, Any]) -> Path:
        path = self.folder / "results" / f"{name}.json"
        with writing(self.folder, "the result stands above; make room, or copy the run to where it may be written"):
            path.parent.mkdir(exist_ok=True)
            write_text(path, json_text(result))
        return path

    def trained_bytes(self) -> int:
        """Size of what was trained, as saved."""
        files = [self.adapter / "adapter_model.safetensors", self.weights]
        return sum(path.stat().st_size for path in files if path.exists())

    def training_cost(self) -> dict[str, float | None]:
        """Median seconds of a training step and the peak memory of the training process, from the log."""
        path = self.folder / "log.jsonl"
        entries = _whole_lines(path)
        times = [entry["seconds"] for entry in entries if "seconds" in entry]
        peaks = [entry["peak_memory_mb"] for entry in entries if "peak_memory_mb" in entry]
        steps = [later - earlier for earlier, later in itertools.pairwise(times) if later > earlier]
        return {
            "seconds_per_step": statistics.median(steps) if steps else None,
            "peak_memory_mb": max(peaks) if peaks else None,
        }


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Values of two recipes where they differ, by dotted key."""
    one, other = dict(flat(before)), dict(flat(now))
    keys = sorted({*one, *other})
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def _other_recipe(changes: Mapping[str, tuple[Any, Any]]) -> DmgalError:
    received = [f"{key}={now!r}" for key, (_, now) in changes.items()]
    expected = [f"{key}={before!r}" for key, (before, _) in changes.items()]
    more = f" and {len(changes) - MOST_CHANGES} more" if len(changes) > MOST_CHANGES else ""
    return DmgalError(
        "This run was made by another recipe, or of other classes.",
        received=", ".join(received[:MOST_CHANGES]) + more,
        expected=", ".join(expected[:MOST_CHANGES]) + more,
        remedy="resume with the run's own recipe, pass --accept-changes to go on with this one, or give another --out",
    )


@contextmanager
def writing(
    folder: Path, remedy: str = "make room or give another --out; --resume goes on from the last checkpoint"
) -> Iterator[None]:
    """Turns what a file system says against writing into a DmgalError."""
    try:
        yield
    except OSError as error:
        raise DmgalError(
            "This run folder cannot be written.",
            received=f"{folder}: {error.strerror or error}",
            expected="a folder on a disk that has room and may be written",
            remedy=remedy,
        ) from error


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # half a line, from a kill
    return entries


def environment() -> dict[str, Any]:
    """What a reader needs to judge or repeat a run; no paths, no names of people or machines."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [re.sub(r"(^|=)/(\S*/)?", r"\1", word) for word in sys.argv],
        "versions": {"dmgal": __version__, "python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "git_revision": _git_revision(),
        "hardware": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def peak_memory_mb() -> float:
    """The most memory this process has held: on the GPU where there is one, else resident in RAM; 0 on Windows."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    if resource is None:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def json_text(result: Mapping[str, Any]) -> str:
    """Numbers as a file; those that JSON has not, the interval of a single episode say, are null."""
    return json.dumps(_finite(result), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [*map(_finite, value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes safetensors whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
    except SafetensorError as error:  # what the system said is in its text
        raise OSError(str(error)) from error
    partial.replace(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads safetensors onto the CPU; DmgalError where the file is damaged."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DmgalError(
            "Saved weights cannot be read.",
            received=f"{path}: {error}",
            expected="a whole safetensors file",
            remedy="copy the run again, or train it again",
        ) from error


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The values of nested mappings by dotted key."""
    pairs: list[tuple[str, Any]] = []
    for key, value in tree.items():
        pairs += flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return pairs


def _git_revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.is_file()
        else []
    )
    return names[0] if names else platform.processor()

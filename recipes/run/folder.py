"""A run folder: the resolved recipe, its environment, log, weights and results.

    recipe.yaml          all settings of the run
    paths.yaml           the recipe's absolute paths on this machine
    split.csv            classes and videos of each split if the data has no split file, or classes were left out
    folds/               runs that each left other classes out, if the data has too few for a validation
    environment.json     command, versions, git revision, hardware, the run's id for trackers, the data's fingerprints
    log.jsonl            one line per step and per validation
    checkpoints/         the newest states to resume from
    adapter/             the best adapter in PEFT's format, and weights.safetensors with all other trained weights
    adapter/text/        the best LoRA of the text tower in PEFT's format
    weights.safetensors  the best weights of a run without an adapter and LoRA
    results/             evaluations

The folder is written before the first step. Files are written under a temporary name and renamed, so a killed run
leaves no incomplete files.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import secrets
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, TypedDict

import torch
import yaml

from dmgal import __version__
from dmgal.errors import DmgalError, differences, refuse_differences
from dmgal.files import exclusively, parse_json, parse_yaml, read_mapping, read_text, write_text
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.data import SAVED_SPLIT, fingerprint, has_split_file, read_split, split_of
from dmgal.recipes.run.layers import flat, from_mapping, put_back, set_apart, to_mapping
from dmgal.recipes.run.log import complete_entries, step_seconds
from dmgal.recipes.run.plugins import plugin_versions
from dmgal.recipes.run.whole_folders import complete_folder
from dmgal.videos import VideoCatalog

PACKAGES = ("torch", "peft", "transformers", "accelerate", "open_clip_torch", "av")


class Run:
    """A run folder. Nothing is created before ``start``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"

    @property
    def adapter(self) -> Path:
        """Path of the best adapter, which may not exist."""
        return complete_folder(self.folder / "adapter")

    @property
    def text_lora(self) -> Path:
        """Path of the best LoRA of the text tower, which may not exist."""
        return self.adapter / "text"

    @property
    def split(self) -> Path:
        """Path of the class split, written if the data has no split file."""
        return self.folder / SAVED_SPLIT

    @property
    def weights(self) -> Path:
        """Path of the best trained weights outside the adapter, which may not exist."""
        alone, beside = self.folder / "weights.safetensors", self.adapter / "weights.safetensors"
        return beside if beside.exists() or (self.adapter.exists() and not alone.exists()) else alone

    def start(
        self,
        recipe: Recipe,
        resume: bool,
        accept_changes: bool = False,
        catalog: VideoCatalog | None = None,
        own_split: bool = False,
    ) -> dict[str, tuple[object, object]]:
        """Create the folder and write recipe, paths, split and environment.

        Args:
            recipe: the complete recipe of the run.
            resume: continue the run in the folder if there is one.
            accept_changes: continue although the recipe or the split differs, and save the new one.
            catalog: the split to save and to compare, unless the data has a split file.
            own_split: save the split even so, because the run divides the classes differently.

        Returns:
            The accepted changes: old and new value by the recipe's key. The split of a class is ``split.CLASS``.

        Raises:
            DmgalError: the folder holds a run and ``resume`` is off, its recipe or split differs, or the folder cannot
                be written.
        """
        split = None if has_split_file(recipe.data) and not own_split else catalog
        changes: dict[str, tuple[object, object]] = {}
        if (self.folder / "recipe.yaml").exists():
            if not resume:
                raise DmgalError(
                    "This folder already holds a run.",
                    received=str(self.folder),
                    expected="a folder that does not exist yet",
                    remedy="Pass --resume to continue the run, or another --out.",
                )
            changes = self._changes(recipe, split)
            if not changes:
                return changes
            if not accept_changes:
                refuse_differences(
                    changes,
                    "This run was started with another recipe or other classes.",
                    "Resume with the run's own recipe, pass --accept-changes to use the new one, or another --out.",
                )
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if split is not None:
                split.to_csv(self.split)
            known = self._environment()
            if not changes:
                known = {**environment(), "tracker_id": secrets.token_hex(4)}  # random, because runs share seeds
            known["data"] = {} if catalog is None else _fingerprints(catalog)
            write_text(self.folder / "environment.json", json.dumps(known, indent=2) + "\n")
            self._write_recipe(recipe)
        return changes

    def _changes(self, recipe: Recipe, split: VideoCatalog | None) -> dict[str, tuple[object, object]]:
        """Return the saved and the new value of each setting that differs, and of the split of each class."""
        changes = differences(dict(flat(to_mapping(self.recipe()))), dict(flat(to_mapping(recipe))))
        saved_split = read_split(self.split) if split is not None else {}
        if saved_split and split is not None:
            saved, current = (dict(flat({"split": names})) for names in (saved_split, split_of(split)))
            changes |= differences(saved, current)
        return changes

    def _write_recipe(self, recipe: Recipe) -> None:
        """Write the recipe last, because a folder with one holds a run. Its absolute paths are a file of their own."""
        shared, paths = set_apart(to_mapping(recipe))
        if paths:
            write_text(self.folder / "paths.yaml", yaml.safe_dump(paths))
        else:
            (self.folder / "paths.yaml").unlink(missing_ok=True)
        write_text(self.folder / "recipe.yaml", yaml.safe_dump(shared, sort_keys=False))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder and hold its lock, the file ``.lock``, which is not deleted.

        Raises:
            DmgalError: another process holds the lock, the folder cannot be written, or the file system has no locks.
        """
        lock_file = self.folder / ".lock"

        def refuse() -> NoReturn:
            holder = "unknown"
            with suppress(OSError):
                holder = read_text(lock_file).strip() or holder
            raise DmgalError(
                "This run folder is in use.",
                received=f"{self.folder}, where process {holder} trains",
                expected="a folder that no other process trains in",
                remedy="Wait for that process or end it, or pass another --out.",
            )

        with ExitStack() as locks:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                locks.enter_context(exclusively(lock_file, refuse))
                if os.name != "nt":  # Windows lets nobody write to or read from a locked file
                    lock_file.write_text(f"{os.getpid()}\n")
            yield

    def tracker_id(self) -> str | None:
        """Return the random id of the run, by which trackers distinguish folders of the same name."""
        name = self._environment().get("tracker_id")
        return name if isinstance(name, str) else None

    def has_data(self, split: str, fingerprint: str) -> bool:
        """Return True if the run was started with data of this fingerprint in the split."""
        data = self._environment().get("data")
        return isinstance(data, dict) and data.get(split) == fingerprint

    def _environment(self) -> dict[str, object]:
        return self._read("environment.json", parse_json) if os.path.lexists(self.folder / "environment.json") else {}

    def _read(self, name: str, parse: Callable[[str], object] = parse_yaml) -> dict[str, Any]:
        """Return the mapping in a file of this folder. Raise a DmgalError if it cannot be read."""
        return read_mapping(self.folder / name, "A file of this run cannot be read.", "Copy the run again.", parse)

    def recipe(self) -> Recipe:
        """Return the saved recipe with this machine's paths. Raise a DmgalError if one of the files is unusable."""
        if not os.path.lexists(self.folder / "recipe.yaml"):
            raise DmgalError(
                "This folder holds no run.",
                received=str(self.folder),
                expected="a folder with a recipe.yaml, as dmgal train writes it",
                remedy="Pass the folder of a run.",
            )
        tree = self._read("recipe.yaml")
        last = [*to_mapping(Recipe())][-1]
        if not isinstance(tree.get(last), dict) or "seed" not in tree[last]:  # the last key: a cut file is valid YAML
            raise DmgalError(
                "The recipe of this run is incomplete.",
                received=f"{self.folder / 'recipe.yaml'} without {last}.seed",
                expected="the complete recipe.yaml that dmgal train wrote",
                remedy="Copy the run again.",
            )
        paths = self._read("paths.yaml") if os.path.lexists(self.folder / "paths.yaml") else {}
        return from_mapping(Recipe, put_back(tree, paths))

    def check_complete(self, recipe: Recipe) -> None:
        """Raise a DmgalError if the run has not yet saved the weights that its recipe trains."""
        required = [self.adapter] if recipe.adapter is not None else [self.weights]
        required += [self.text_lora] if recipe.text.lora is not None else []
        missing = [path.name for path in required if not os.path.lexists(path)]
        if recipe.train.steps and missing:
            raise DmgalError(
                "This run has no trained weights yet.",
                received=f"{self.folder} without {', '.join(missing)}",
                expected="a run that has reached its first validation",
                remedy="Continue it with dmgal train ... --resume.",
            )

    def rewind_log(self, step: int, validated: int) -> list[dict[str, Any]]:
        """Remove log entries after a checkpoint and incomplete lines, and return the remaining entries.

        A validation remains only up to step ``validated``, the last validation that the checkpoint includes.
        """
        path = self.folder / "log.jsonl"
        entries = [
            entry
            for entry in complete_entries(path)
            if entry.get("step", 0) <= (validated if "validation_accuracy" in entry else step)
        ]
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in entries))
        return entries

    def log(self, **entry: object) -> None:
        """Append one entry to the log."""
        with writing(self.folder), (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")

    def write_result(self, name: str, result: Mapping[str, object]) -> Path:
        """Write a result as JSON and return its path."""
        path = self.folder / "results" / f"{name}.json"
        with writing(self.folder, "Make room, or copy the run to a writable disk. The result is printed above."):
            path.parent.mkdir(exist_ok=True)
            write_text(path, json_text(result))
        return path

    def trained_bytes(self) -> int:
        """Return the size of the saved trained weights."""
        files = [*(folder / "adapter_model.safetensors" for folder in (self.adapter, self.text_lora)), self.weights]
        return sum(path.stat().st_size for path in files if path.exists())

    def log_entries(self) -> list[dict[str, Any]]:
        """Return the complete entries of the log."""
        return complete_entries(self.folder / "log.jsonl")

    def training_cost(self) -> dict[str, float | None]:
        """Return the median seconds per training step and the peak memory of the training process, from the log."""
        entries = self.log_entries()
        peaks = [entry["peak_memory_mb"] for entry in entries if "peak_memory_mb" in entry]
        steps = step_seconds(entries)
        return {
            "seconds_per_step": statistics.median(steps) if steps else None,
            "peak_memory_mb": max(peaks) if peaks else None,
        }


def _fingerprints(catalog: VideoCatalog) -> dict[str, str]:
    """Return the fingerprints of the splits that are evaluated."""
    splits = [split for split in ("val", "test") if split in (catalog.class_splits or ())]
    return {split: fingerprint(catalog.split(split)) for split in splits}


@contextmanager
def writing(
    folder: Path, remedy: str = "Make room or pass another --out. --resume continues from the last checkpoint."
) -> Iterator[None]:
    """Convert an OSError while writing into a DmgalError."""
    try:
        yield
    except OSError as error:
        raise DmgalError(
            "This run folder cannot be written.",
            received=f"{folder}: {error.strerror or error}",
            expected="a writable folder on a disk with free space",
            remedy=remedy,
        ) from error


class Environment(TypedDict):
    """Command, versions and hardware of a run."""

    date: str
    command: list[str]
    versions: dict[str, str]
    git_revision: str | None
    hardware: dict[str, object]


def environment() -> Environment:
    """Return command, versions and hardware, to judge or repeat a run. No paths or names of people or machines."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [re.sub(r"(^|=)([A-Za-z]:)?[/\\](\S*[/\\])?", r"\1", word) for word in sys.argv],
        "versions": {
            "dmgal": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
            **plugin_versions(),
        },
        "git_revision": _git_revision(),
        "hardware": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def peak_memory_mb() -> float:
    """Return the peak memory of this process: allocated on the GPU if there is one, else resident in RAM.

    Return 0 on Windows without a GPU.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "win32":
        return 0.0
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def json_text(result: Mapping[str, object]) -> str:
    """Return a result as JSON text. Numbers that are not finite, e.g. the interval of one episode, become null."""
    return json.dumps(_finite(result), indent=2, allow_nan=False) + "\n"


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [*map(_finite, value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _git_revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())

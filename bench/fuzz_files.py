"""Search for small files that cause a traceback, a hang or gigabytes of memory instead of a result or one clean error.

    python -m dmgal.bench.fuzz_files                    # 10,000 files, writes bench/results/fuzz_files.json

Sources are a run, a layer, a cache, a gallery, a store, a checkpoint, backbones, lists, a report and a log, all small.
A seed decides which file is changed and how (`file_mutations`); then the code that a command would run reads it. Some
changes are signed again with a right checksum, as an attacker would.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from xxhash import xxh3_64_hexdigest

from dmgal.backbones import FrameEncoder, load_backbone
from dmgal.bench.file_mutations import become_special, changed_tree, mutated
from dmgal.bench.fuzz import Findings, parse, read_damaged, search
from dmgal.bench.measuring import hardware, process_bytes, write_report
from dmgal.bench.small_files import CLIPS, backbone, cache_of, recipe_of, write_sources
from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.gallery.gallery_file import checksum, load_gallery
from dmgal.errors import DmgalError
from dmgal.recipes import train
from dmgal.recipes.run.build import build_recognizer
from dmgal.recipes.run.checkpoints import Checkpoints
from dmgal.recipes.run.config import DataOverrides, Recipe
from dmgal.recipes.run.data import build_catalog
from dmgal.recipes.run.evaluation import evaluation_data, load_run
from dmgal.recipes.run.folder import Run
from dmgal.recipes.run.gallery import gallery_task, made_with
from dmgal.recipes.run.layers import from_mapping, merge_layers, read_layer
from dmgal.videos import VideoCatalog
from dmgal.videos.check_log import CheckLog, read_report
from dmgal.videos.checking import CheckedVideo
from dmgal.videos.store.store import StoredClips, StoredFrames

OUT = Path(__file__).parent / "results" / "fuzz_files.json"
MODULE = "dmgal.bench.fuzz_files"
SECONDS_PER_FILE = 5.0
MORE_BYTES = 2**30
"""Memory beyond that of reading the intact files."""
SPECIAL = 0.02
"""Share of files that become a pipe, a device, a folder or the like."""
FORGED = 0.5
"""Share of the files with a checksum that are signed again."""
Draw = random.Random


@dataclass(frozen=True)
class Kind:
    """A kind of file: the source folder that holds it, its path there, and the code that reads it."""

    folder: str
    file: str
    read: Callable[[Path], object]
    forge: Callable[[Path, Draw], None] | None = None


# ---- reading, as the commands do ----


def _read_run(folder: Path) -> None:
    run = Run(folder)
    recipe, _ = load_run(run, backbone=deepcopy(backbone()))
    evaluation_data(run, recipe, DataOverrides(), "test", progress=False)
    run.training_cost()
    run.trained_bytes()


def _resume(folder: Path) -> None:
    recipe = from_mapping(Recipe, yaml.safe_load((folder / "intact.yaml").read_text()))
    train.run(recipe, folder, backbone=deepcopy(backbone()), resume=True, accept_changes=True, quiet=True)


def _read_layer(folder: Path) -> None:
    recipe = from_mapping(Recipe, merge_layers([read_layer("method/smga"), read_layer(str(folder / "a.yaml"))]))
    build_recognizer(recipe, backbone=deepcopy(backbone()))


def _read_cache(folder: Path) -> None:
    try:
        cache = cache_of(folder).open()
    except DmgalError:
        cache_of(folder).fill(_recognizer(), torch.zeros(4, 2, 3, 48, 48, dtype=torch.uint8), progress=False)
        raise
    for tensor in cache.states.tensors().values():
        tensor.double().sum()


def _read_gallery(folder: Path) -> None:
    gallery = load_gallery(folder / "a.safetensors")
    gallery.check_model(made_with(_saved_recipe(), _recognizer()))
    task, first = gallery_task(gallery, _recognizer()), gallery.states.select(torch.arange(1))
    scores = task.scores(first, task.logits(first), gallery.rejection)
    if gallery.rejection is not None:
        bool((scores < gallery.rejection.threshold).all())
    gallery.removed([*gallery.class_names][:1])


def _read_store(folder: Path) -> None:
    for split, store in (
        ("test", lambda c: StoredClips(folder, c, CLIPS)),
        ("train", lambda c: StoredFrames(folder, c)),
    ):
        catalog = _catalog().split(split)
        part = store(catalog)
        for video in range(len(catalog)):
            part.read(video) if isinstance(part, StoredClips) else part.read(video, range, 2)


def _read_list(name: str, folder: Path) -> None:
    catalog = VideoCatalog.from_split(folder / name, _sources() / "videos")
    if catalog.class_splits is not None:
        catalog.to_csv(folder / "written.csv")
        catalog.split(catalog.class_splits[0])


def _read_checks(folder: Path) -> None:
    read_report(folder / "report.csv")
    log = CheckLog(folder / "checked.jsonl", _sources() / "videos", _catalog().videos)
    log.done()
    log.equal_contents()
    with log.writer() as file:
        log.write(file, 0, CheckedVideo(1))


def _read_backbone(folder: Path) -> None:
    FrameEncoder(load_backbone(str(folder))).image_size  # noqa: B018


# ---- changes with a right checksum ----


def _forge_progress(path: Path, draw: Draw) -> None:
    checkpoints = Checkpoints(path.parents[1])
    newest = checkpoints.newest()
    assert newest is not None
    text = json.dumps(changed_tree(newest.progress, draw))
    checkpoints.save(1, newest.tensors, json.loads(text.replace("NaN", "1").replace("Infinity", "1")))  # are not saved


def _forge_tensors(path: Path, draw: Draw) -> None:
    newest = Checkpoints(path.parents[1]).newest()
    assert newest is not None
    tensors = {name: dict(values) for name, values in newest.tensors.items()}
    _change_tensors(tensors[path.stem], draw)
    Checkpoints(path.parents[1]).save(1, tensors, newest.progress)


def _forge_weights(path: Path, draw: Draw) -> None:
    tensors = load_file(path)
    _change_tensors(tensors, draw)
    save_file(tensors, path)


def _forge_gallery(path: Path, draw: Draw) -> None:
    with safe_open(path, framework="pt") as file:
        text = file.metadata()["gallery"]
    tensors = load_file(path)
    if draw.random() < 0.3:
        _change_tensors(tensors, draw)
    else:
        text = json.dumps(changed_tree(json.loads(text), draw))
    save_file(tensors, path, {"gallery": text, "checksum": checksum(text, tensors)})


def _forge_index(path: Path, draw: Draw) -> None:
    lines = path.read_bytes().splitlines()
    at = draw.randrange(len(lines))
    text = json.dumps(changed_tree(json.loads(lines[at].partition(b" ")[2]), draw)).encode()
    lines[at] = xxh3_64_hexdigest(text).encode() + b" " + text
    path.write_bytes(b"\n".join(lines) + b"\n")


def _change_tensors(tensors: dict[str, torch.Tensor], draw: Draw) -> None:
    name = draw.choice(sorted(tensors))
    value = tensors.pop(name)
    changes: list[Callable[[torch.Tensor], torch.Tensor]] = [
        *(
            lambda t: t[None].contiguous(),
            lambda t: t.flatten(),
            lambda t: t[:0],
            lambda t: t.double(),
            lambda t: t.long(),
        ),
        *(lambda t: torch.full_like(t, -1), lambda t: t.float() * float("nan"), lambda t: torch.cat([t, t])),
    ]
    way = draw.choice(["drop", "rename", "change", "change", "change"])
    if way == "rename":
        tensors[draw.choice([f"{name}x", name.partition(".")[2] or "x", ""])] = value
    elif way == "change":
        tensors[name] = draw.choice(changes)(value if value.dim() else value[None]).clone()


CHECKPOINT = "checkpoints/step_00000001"
RUN_FILES = ("recipe.yaml", "recipe.yaml", "paths.yaml", "split.csv", "log.jsonl", "adapter/adapter_config.json")
KINDS = (
    *(Kind("run", name, _read_run) for name in RUN_FILES),
    Kind("run", "adapter/adapter_model.safetensors", _read_run, _forge_weights),
    Kind("run", "adapter/weights.safetensors", _read_run, _forge_weights),
    Kind("run", "log.jsonl", _resume),
    Kind("run", "environment.json", _resume),
    Kind("run", f"{CHECKPOINT}/checkpoint.json", _resume, _forge_progress),
    Kind("run", f"{CHECKPOINT}/model.safetensors", _resume, _forge_tensors),
    Kind("run", f"{CHECKPOINT}/optimizer.safetensors", _resume, _forge_tensors),
    *(Kind("layer", "a.yaml", _read_layer),) * 3,
    *(Kind("cache", name, _read_cache) for name in ("key.json", "blocks/00000.json", "frames.npy")),
    *(Kind("gallery", "a.safetensors", _read_gallery, _forge_gallery),) * 2,
    *(Kind("store", f"{part}/key.json", _read_store) for part in ("train", "test")),
    *(Kind("store", f"{part}/index.txt", _read_store, _forge_index) for part in ("train", "test")),
    *(Kind("store", f"{part}/blocks.bin", _read_store) for part in ("train", "test")),
    *(
        Kind("lists", name, partial(_read_list, name))
        for name in ("table.csv", "table.csv.gz", "labels.txt", "frames.txt", "classes.txt", "numbers.txt")
    ),
    *(Kind("checks", name, _read_checks) for name in ("report.csv", "checked.jsonl")),
    Kind("open_clip", "open_clip_config.json", _read_backbone),
    Kind("open_clip", "open_clip_model.safetensors", _read_backbone),
    *(Kind("hf", name, _read_backbone) for name in ("preprocessor_config.json", "config.json", "model.safetensors")),
)


# ---- the search ----


_SOURCES: list[Path] = []


def _sources() -> Path:
    return _SOURCES[0]


@cache
def _catalog() -> VideoCatalog:
    return build_catalog(recipe_of(_sources() / "videos").data)


@cache
def _saved_recipe() -> Recipe:
    return Run(_sources() / "run").recipe()


@cache
def _recognizer() -> FewShotRecognizer:
    return load_run(Run(_sources() / "run"), backbone=deepcopy(backbone()))[1]


def damage(seed: int, here: Path) -> tuple[str, Callable[[], str]]:
    """Return the kind of file that a seed chooses, and a function that reads its damaged copy in ``here``."""
    draw = random.Random(seed)
    kind, other = draw.choice(KINDS), draw.choice(KINDS)
    folder = here / kind.folder
    shutil.copytree(_sources() / kind.folder, folder)
    path = folder / kind.file
    if draw.random() < SPECIAL:
        become_special(path, draw)
    elif kind.forge is not None and draw.random() < FORGED:
        kind.forge(path, draw)
    else:
        rest = (_sources() / other.folder / other.file).read_bytes()
        path.write_bytes(mutated(path.read_bytes(), path.name, rest, draw))
    return f"{kind.folder}/{kind.file}", partial(_outcome, kind, folder)


def _outcome(kind: Kind, folder: Path) -> str:
    try:
        kind.read(folder)
    except DmgalError as error:
        assert error.problem and error.remedy and len(str(error)) < 5000, f"not a clean error: {error!r}"
        return "refused"
    return "read"


def _read(sources: Path, first: int, end: int, seconds: float) -> Iterator[dict[str, object]]:
    _SOURCES.append(sources)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for kind in {(kind.folder, kind.file): kind for kind in KINDS}.values():  # what is loaded or cached once
        with tempfile.TemporaryDirectory() as here:
            kind.read(Path(shutil.copytree(sources / kind.folder, Path(here) / kind.folder)))
    gc.freeze()  # a training collects all garbage at its end, and need not look at the library again
    normal = process_bytes("VmSize") or 0
    yield {"normal": (process_bytes("VmHWM") or 0) // 2**20}
    yield from read_damaged(damage, first, end, seconds, normal + MORE_BYTES)


def main() -> None:
    """Search, write the report, and exit with 1 if any outcome is neither a result nor a clean error."""
    options = parse(__doc__, _read, 10_000, SECONDS_PER_FILE, OUT)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        sources = options.sources or write_sources(Path(name))
        findings = search(sources, options.first_seed, options.files, options.seconds_per_file, MODULE)
    write_report(_report(options, findings, round(time.monotonic() - start)), options.out)
    sys.exit(1 if findings.failures else 0)


def _report(options: argparse.Namespace, findings: Findings, seconds: int) -> dict[str, object]:
    return {
        "hardware": hardware(),
        "files": options.files,
        "first_seed": options.first_seed,
        "seconds": seconds,
        "seconds_per_file_limit": options.seconds_per_file,
        "memory_limit_beyond_normal_mib": MORE_BYTES // 2**20,
        "most_memory_mib": findings.most_mib,
        "outcomes": findings.totals(),
        "by_file": {source: dict(counts) for source, counts in sorted(findings.outcomes.items())},
        "failures": findings.failures,
    }


if __name__ == "__main__":
    main()

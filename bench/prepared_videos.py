"""The videos of a reproduction: matched and checked once, as by ``dmgal prepare``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from dmgal.bench.matrix.runner import duration
from dmgal.bench.reproduction import TITLES
from dmgal.errors import DmgalError
from dmgal.files import parse_yaml, read_json, read_mapping
from dmgal.parallel import available_cores
from dmgal.recipes import prepare
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.data import build_catalog
from dmgal.recipes.run.layers import from_mapping, merge_layers, read_layer
from dmgal.videos.catalog.lists import StandardSplit
from dmgal.videos.decoding.video import probe_video

SAMPLED_VIDEOS = 3
"""Videos that are decoded to estimate the time of the check."""


def is_prepared(folder: Path, root: Path) -> bool:
    """Return True if all videos of a root were checked into this folder."""
    layer, summary = folder / "data.yaml", folder / "summary.json"
    if not (layer.exists() and summary.exists() and "sound" in read_json(summary)):
        return False
    data = read_mapping(layer, "The prepared data cannot be read.", "Delete the folder.", parse_yaml).get("data", {})
    return data.get("root") == str(root.resolve())


def prepare_videos(
    dataset: StandardSplit | None, videos: Path, folder: Path, check: bool = True, quiet: bool = False
) -> Mapping[str, object]:
    """Match the videos, check them if wanted, and write their recipe layer. Return the content of summary.json."""
    if check and is_prepared(folder, videos):
        return read_json(folder / "summary.json")
    if not dataset and not videos.is_dir():
        raise DmgalError(
            "This data set is unknown.",
            received=str(videos),
            expected=f"one of {', '.join(TITLES)}, or a folder of videos",
            remedy="Check the name.",
        )
    settings = prepare.Prepare(dataset=dataset, root=videos, out=folder, check=check, quiet=quiet)
    return prepare.run(settings, suggest=False)


def checking_cost(folder: Path) -> str:
    """Return a line about the time of checking all videos that were matched in a folder, from a few of them."""
    recipe = from_mapping(Recipe, merge_layers([read_layer(str(folder / "data.yaml"))]))
    catalog = build_catalog(recipe.data, progress=False)
    places = range(0, len(catalog), -(-len(catalog) // SAMPLED_VIDEOS))
    start = time.perf_counter()
    for place in places:
        probe_video(catalog.path(place))
    seconds = (time.perf_counter() - start) / len(places) * len(catalog) / available_cores()
    return f"the check of {len(catalog):,} videos takes about {duration(seconds)}"

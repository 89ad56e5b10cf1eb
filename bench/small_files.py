"""Intact small files of every kind that dmgal reads, and the objects that read them: sources of `fuzz_files`."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from functools import cache
from pathlib import Path

import torch
import yaml
from PIL import Image

from dmgal.backbones import load_backbone, tiny_clip
from dmgal.episodes.evaluation.cache import StateCache
from dmgal.episodes.gallery.gallery_file import save_gallery
from dmgal.recipes import train
from dmgal.recipes.run.config import DataConfig, EpisodeConfig, Recipe, TrainConfig
from dmgal.recipes.run.data import build_catalog
from dmgal.recipes.run.evaluation import load_run
from dmgal.recipes.run.gallery import GalleryModel, make_gallery
from dmgal.recipes.run.layers import to_mapping
from dmgal.videos import VideoCatalog
from dmgal.videos.check_log import CheckLog, write_report
from dmgal.videos.checking import CheckedVideo
from dmgal.videos.dataset import ClipSource
from dmgal.videos.decoding.clip import TestTransform
from dmgal.videos.store.build import build_store
from dmgal.videos.store.content import EvaluationClips


@cache
def backbone() -> torch.nn.Module:
    """Return tiny-clip, loaded once. Copy it before adding an adapter."""
    return load_backbone("tiny-clip")


def recipe_of(root: Path) -> Recipe:
    """Return the recipe of a run on the videos in a folder: one step, an adapter and a head with a weight."""
    return Recipe(
        data=DataConfig(root=root, num_frames=2, num_workers=0, keep_in_memory=True),
        adapter={"peft_type": "DMGAL", "cmga_blocks": []},
        head={"name": "BiMHM", "center": "video", "logit_scale": 10.0},
        episode=EpisodeConfig(2, 1, 1),
        train=TrainConfig(steps=1, validate_every=1, validation_episodes=2, checkpoint_every=1, warmup_steps=0),
    )


def write_sources(folder: Path) -> Path:
    """Write the intact files of all kinds."""
    videos = folder / "videos"
    for split in ("train", "val", "test"):
        for number in range(6):
            clip = videos / split / f"{split}{number // 2}" / str(number)
            clip.mkdir(parents=True)
            for frame in range(2):
                Image.new("RGB", (16, 16), (40 * number, 99 * frame, 7)).save(clip / f"{frame}.png")
    run = train.run(recipe_of(videos), folder / "run", backbone=deepcopy(backbone()), quiet=True)
    recipe, recognizer = load_run(run, backbone=deepcopy(backbone()))
    catalog = build_catalog(recipe.data)
    (folder / "gallery").mkdir()
    source = ClipSource(catalog.split("test"), recipe.data.decoder)
    gallery = make_gallery(source, GalleryModel(recipe, recognizer), progress=False)
    save_gallery(gallery, folder / "gallery/a.safetensors")
    build_store(catalog, folder / "store", CLIPS, workers=1, progress=False)
    cache_of(folder / "cache").fill(recognizer, torch.zeros(4, 2, 3, 48, 48, dtype=torch.uint8), progress=False)
    _write_lists(folder / "lists", catalog)
    _write_checks(folder / "checks", catalog)
    (folder / "layer").mkdir()
    for path in (folder / "layer/a.yaml", run.folder / "intact.yaml"):
        path.write_text(yaml.safe_dump(to_mapping(recipe), sort_keys=False))
    _write_backbones(folder)
    return folder


CLIPS = EvaluationClips(2, TestTransform(48))


def cache_of(folder: Path) -> StateCache:
    """Return a cache of four videos in two blocks."""
    return StateCache(folder, {"model": "a", "clips": {"size": 48}}, [f"{n}.mp4 7 9" for n in range(4)], block_size=2)


def _write_lists(folder: Path, catalog: VideoCatalog) -> None:
    folder.mkdir()
    catalog.to_csv(folder / "table.csv")
    catalog.to_csv(folder / "table.csv.gz")
    rows = [(video, int(label)) for video, label in zip(catalog.videos, catalog.labels, strict=True)]
    (folder / "labels.txt").write_text("".join(f"{video} {label}\n" for video, label in rows))
    (folder / "frames.txt").write_text("".join(f"{video} 2 {label}\n" for video, label in rows))
    (folder / "classes.txt").write_text("".join(f"{video}\n" for video, _ in rows))
    (folder / "numbers.txt").write_text("".join(f"train{label}//{video}\n" for video, label in rows))


def _write_checks(folder: Path, catalog: VideoCatalog) -> None:
    folder.mkdir()
    results = {
        video: CheckedVideo(n % 3, None if n % 2 else "cut", content=n // 2) for n, video in enumerate(catalog.videos)
    }
    write_report(folder / "report.csv", {video: result for video, result in results.items() if result.problem})
    log = CheckLog(folder / "checked.jsonl", catalog.root, catalog.videos)
    with log.writer() as file:
        for place, result in enumerate(results.values()):
            log.write(file, place, result)


def _write_backbones(folder: Path) -> None:
    import transformers

    shutil.copytree(tiny_clip.FOLDER, folder / "open_clip", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=8, image_size=16, intermediate_size=32
    )
    transformers.ViTModel(config).save_pretrained(folder / "hf")
    processing = {"size": {"height": 16, "width": 16}, "crop_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processing |= {
        "do_normalize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_resize": True,
        "resample": 2,
    }
    (folder / "hf/preprocessor_config.json").write_text(json.dumps(processing))

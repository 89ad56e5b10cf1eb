"""From a recipe to its parts: catalog, recognizer, episodes of clips."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Dataset

import dmgal.episodes.heads as heads
from dmgal.adapters.model_card import command_line
from dmgal.backbones import load_backbone, make_encoder
from dmgal.episodes import FewShotRecognizer, VideoCatalog
from dmgal.episodes.catalog import OnMissing
from dmgal.episodes.dataset import VideoDataset
from dmgal.episodes.recognizer import Head
from dmgal.episodes.transforms import TestTransform
from dmgal.errors import DmgalError
from dmgal.recipes.bad_videos import tell_skipped, without_reported
from dmgal.recipes.config import DataConfig, Recipe
from dmgal.recipes.saved_split import with_saved_split
from dmgal.recipes.saving.weights import is_added


def build_catalog(data: DataConfig, progress: bool = True, saved_split: Path | None = None) -> VideoCatalog:
    """The catalog of all splits; bad videos follow ``on_bad_video``.

    A missing split is drawn by class, or taken from the split file that a run has saved.

    Raises:
        DmgalError: videos are missing or bad, and not to be skipped; or a class has no other ones.
    """
    missing: list[str] = []
    on_missing = (lambda split, class_name, video: missing.append(video)) if data.on_bad_video == "skip" else None
    catalog = without_reported(list_catalog(data, progress, on_missing), data)
    if missing:
        tell_skipped(len(missing), len(catalog) + len(missing), "not there", missing)
    return catalog if catalog.class_splits is not None else with_saved_split(catalog, data.seed, saved_split)


def list_catalog(data: DataConfig, progress: bool = True, on_missing: OnMissing | None = None) -> VideoCatalog:
    """The videos that a split file, lists or folders name; a data set that is generated is made first."""
    if data.generate == "moving_shapes":
        from dmgal.episodes.shapes.moving_shapes import generate_moving_shapes

        split_file = generate_moving_shapes(data.root, seed=data.seed, progress=progress)
        return VideoCatalog.from_csv(split_file, data.root, on_missing)
    if data.split_file is not None:
        return VideoCatalog.from_split(data.split_file, data.root, data.list_format, on_missing)
    return VideoCatalog.from_folders(data.root)


def build_recognizer(
    recipe: Recipe, *, backbone: nn.Module | None = None, head: nn.Module | None = None, adapter: Path | None = None
) -> FewShotRecognizer:
    """The recognizer of a recipe; only what it trains requires gradients.

    Args:
        backbone, head: take these instead of the recipe's.
        adapter: folder of a trained adapter to load; otherwise a new one is injected where the recipe has one.
    """
    backbone = load_backbone(recipe.backbone.name) if backbone is None else backbone
    backbone.requires_grad_(recipe.backbone.trainable)
    if recipe.adapter is not None:
        backbone = _adapted(backbone, recipe, adapter)
    encoder = make_encoder(backbone, recipe.backbone.pooling, recipe.backbone.checkpoint_blocks)
    if head is None:
        head = build_head(recipe.head, channels=encoder.feature_width, num_frames=recipe.data.num_frames)
    return FewShotRecognizer(encoder, cast(Head, head))


def with_base_classes(recipe: Recipe, catalog: VideoCatalog) -> Recipe:
    """The recipe with the number of training classes, if its head classifies them and was not told how many."""
    num_base_classes = (catalog.class_splits or ()).count("train")
    wanted = "num_base_classes" in inspect.signature(_head_class(recipe.head.get("name"))).parameters
    if not wanted or not num_base_classes:
        return recipe
    return replace(recipe, head={"num_base_classes": num_base_classes, **recipe.head})


def build_head(options: Mapping[str, Any], **known: Any) -> nn.Module:
    """A head by the name of its class in ``dmgal.episodes.heads`` and its arguments; ``known`` fills in what fits."""
    options = dict(options)
    name = options.pop("name", None)
    cls = _head_class(name)
    parameters = inspect.signature(cls).parameters
    unknown = [key for key in options if key not in parameters]
    if unknown:
        raise DmgalError(
            "A head was given options that it does not have.",
            received=", ".join(f"head.{key}" for key in unknown),
            expected=f"for {name}: {', '.join(parameters)}",
            remedy="take them out",
        )
    arguments = {key: build_head(value) if isinstance(value, Mapping) else value for key, value in options.items()}
    return _made(f"head {name}", cls, {**{k: v for k, v in known.items() if k in parameters}, **arguments})


def _head_class(name: object) -> type[nn.Module]:
    if name not in heads.__all__ or not isinstance(cls := getattr(heads, str(name)), type):
        raise DmgalError(
            "This head is not known.",
            received=repr(name),
            expected=f"one of {', '.join(heads.__all__)}",
            remedy="mend head.name",
        )
    return cls


def test_transform(recipe: Recipe, size: tuple[int, int]) -> TestTransform:
    """What makes a test clip of a video, for a backbone that takes images of this size."""
    return TestTransform(size[0], resize=recipe.data.test_resize)


def test_clips(catalog: VideoCatalog, recipe: Recipe, size: tuple[int, int]) -> VideoDataset | RememberedClips:
    """The fixed test clip of every video of a catalog; ``bad_videos`` knows those that could not be read."""
    transform = test_transform(recipe, size)
    data = recipe.data
    videos = VideoDataset(catalog, data.num_frames, transform, data.store, data.decoder, data.on_bad_video)
    return RememberedClips(videos) if recipe.data.keep_in_memory else videos


class RememberedClips(Dataset[Tensor]):
    """Keeps every clip once it was read; validation reads the same ones again and again."""

    def __init__(self, videos: VideoDataset) -> None:
        self.videos = videos
        self.bad_videos = videos.bad_videos
        self._clips: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, video: int) -> Tensor:
        if video not in self._clips:
            self._clips[video] = self.videos[video]
        return self._clips[video]


def _adapted(backbone: nn.Module, recipe: Recipe, folder: Path | None) -> nn.Module:
    import peft

    import dmgal.adapters  # noqa: F401  (registers our adapters with PEFT)

    if folder is not None:
        read = {"model": backbone, "model_id": str(folder), "is_trainable": True}
        model = _made(f"adapter of {folder}", peft.PeftModel.from_pretrained, read)
    else:
        config = _adapter_config(recipe)
        model = _made("adapter", peft.get_peft_model, {"model": backbone, "peft_config": config})
    if recipe.backbone.trainable:  # PEFT freezes what it wraps
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or not is_added(name))
    return model


def _made(what: str, make: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Values come from files and command lines, so what a constructor says against them is for the user."""
    try:
        return make(**arguments)
    except DmgalError:
        raise
    except (TypeError, ValueError, SafetensorError) as error:
        raise DmgalError(
            f"The {what} cannot be made.",
            received=" ".join(str(error).split())[:300],
            expected="options and files that fit",
            remedy="mend the options, or give the folder of a whole run",
        ) from error


def _adapter_config(recipe: Recipe) -> Any:
    import peft

    options = dict(recipe.adapter or {})
    known = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING
    kind = options.pop("peft_type", None)
    if kind not in known:
        raise DmgalError(
            "This adapter is not known.",
            received=f"adapter.peft_type: {kind!r}",
            expected=f"one of {', '.join(sorted(map(str, known)))}",
            remedy="DMGAL, ST_ADAPTER, AIM, D2ST and BITFIT are ours, the others are PEFT's",
        )
    parameters = inspect.signature(known[kind]).parameters
    unknown = [key for key in options if key not in parameters]
    if unknown:
        raise DmgalError(
            "An adapter was given options that it does not have.",
            received=", ".join(f"adapter.{key}" for key in unknown),
            expected=f"for {kind}: {', '.join(parameters)}",
            remedy="take them out",
        )
    if "num_frames" in parameters:
        options.setdefault("num_frames", recipe.data.num_frames)
    if "command" in parameters:
        options.setdefault("command", command_line())
    return _made(f"adapter {kind}", known[kind], options)


def count_parameters(module: nn.Module, trained_only: bool = False) -> int:
    """Numbers in a module's parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained_only)


def visual_tower_parameters(recognizer: FewShotRecognizer) -> int:
    """Parameters of the backbone without what was added to it."""
    backbone = recognizer.encoder.backbone
    return sum(p.numel() for name, p in backbone.named_parameters() if not is_added(name))


def freeze_batch_norm(recognizer: nn.Module) -> None:
    """Batch norms use their stored statistics from now on; call it after every ``train()``."""
    for module in recognizer.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            module.eval()


def dtype_of(precision: str) -> torch.dtype:
    """Of the weights; the half precisions keep theirs in float32."""
    return torch.float64 if precision == "float64" else torch.float32

"""Table of what the adapter of each recipe can do, found by trying it on tiny random backbones.

    python -m dmgal.bench.capabilities                         # all columns, about five minutes
    python -m dmgal.bench.capabilities --columns merge export  # only some, and keep the others

A cell is ``yes`` if the call gave the right features, ``refused: ...`` if it raised an error that says why, and
``fails: ...`` otherwise. There must be none of the last kind. Writes ``bench/results/capabilities.json``, from which
`docs_tables` generates a table.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import peft
import torch
import tyro
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard

from dmgal.adapters import METHODS, BlockAdapterConfig, is_added, targets
from dmgal.backbones import FrameEncoder, quantize
from dmgal.backbones.quantized import KINDS
from dmgal.bench.measuring import write_report
from dmgal.errors import DmgalError
from dmgal.recipes.run.layers import bundled_layers, read_layer
from dmgal.recipes.run.weights import gather_shards
from dmgal.recipes.training.fsdp import blocks_of, is_sharded_alone

FRAMES, PIXELS, SUPPORT = 4, 32, 2
_FOUR_STAGES = {"hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 1, 1], "embedding_size": 32}
_VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_SIZES = {"image_size": PIXELS, "patch_size": 8}
_SWIN = {"image_size": PIXELS, "embed_dim": 32, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}


def _of_transformers(name: str, **options: object) -> nn.Module:
    """Return a random frozen model of transformers, with the same weights at each call."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**options)
    model: nn.Module = getattr(transformers, f"{name}Model")(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    vars(model)["dmgal_preprocessing"] = {"size": {"height": PIXELS, "width": PIXELS}}
    return model


BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "plain ViT": partial(_of_transformers, "ViT", **_VIT, **_SIZES),
    "rotary ViT": partial(_of_transformers, "DINOv3ViT", **_VIT, **_SIZES),
    "in stages": partial(_of_transformers, "Swin", **_SWIN),
    "convolutional": partial(_of_transformers, "ResNet", **_FOUR_STAGES),
}
"""Tiny backbones by the name of their column."""
QUANTIZED: dict[str, Callable[[], nn.Module]] = {
    kind.replace("_", " "): partial(lambda kind: quantize(BACKBONES["plain ViT"](), kind), kind) for kind in KINDS
}
"""Quantized plain ViTs by the name of their column."""


class Subject:
    """The adapter of a recipe, on any backbone.

    Args:
        recipe: name of the recipe, such as ``method/smga``.
    """

    def __init__(self, recipe: str) -> None:
        options = dict(read_layer(recipe)["adapter"])
        self.kind: str = options.pop("peft_type")
        self.options = options
        generator = torch.Generator().manual_seed(1)
        self.videos = torch.randn(5, FRAMES, 3, PIXELS, PIXELS, generator=generator)

    def config(self, backbone: nn.Module) -> peft.PeftConfig:
        """Return a new config for a backbone."""
        kind: Callable[..., peft.PeftConfig] = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[self.kind]  # type: ignore[index]
        chosen = targets(backbone, self.kind, **self.options) if self.kind in METHODS else {"num_frames": FRAMES}
        return kind(**self.options, **chosen)

    def inject(
        self, backbone: nn.Module | None = None, names: tuple[str, ...] = ("one",), perturb: bool = True
    ) -> peft.PeftModel:
        """Return a backbone, the plain ViT by default, with adapters of other weights each. The first is active."""
        backbone = BACKBONES["plain ViT"]() if backbone is None else backbone
        configs = [self.config(backbone) for _ in names]
        model = peft.get_peft_model(backbone, configs[0], adapter_name=names[0])
        for name, config in zip(names[1:], configs[1:], strict=True):
            model.add_adapter(name, config)
        generator = torch.Generator().manual_seed(2)
        for name, parameter in model.named_parameters():
            if perturb and is_added(name):
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)
        return model.eval()

    def features(self, model: nn.Module) -> Tensor:
        """Return the features of a task's videos."""
        return torch.cat(FrameEncoder(model)(self.videos[:SUPPORT], self.videos[SUPPORT:]))


def works_on(make: Callable[[], nn.Module], subject: Subject) -> None:
    """Check that an adapter starts as the backbone, then changes it, and that gradients reach all its parameters."""
    with torch.no_grad():
        _assert_close(subject.features(subject.inject(make(), perturb=False)), subject.features(make()))
    model = subject.inject(make())
    features = subject.features(model)
    assert (features - subject.features(make())).abs().max() > 1e-4, "the adapter does nothing"
    model_parameters = dict(model.named_parameters())
    FrameEncoder(model, pooling="map")(subject.videos[:SUPPORT], subject.videos[SUPPORT:])[1].square().sum().backward()
    reached = {name for name, p in model_parameters.items() if p.grad is not None}
    assert reached == {name for name, p in model_parameters.items() if is_added(name)}, "gradients are missing"


@torch.no_grad()
def switches(subject: Subject) -> None:
    """Check that two adapters are switched and deleted."""
    model = subject.inject(names=("one", "two"))
    first = subject.features(model)
    model.set_adapter("two")
    assert not torch.allclose(subject.features(model), first), "both adapters are the same"
    model.set_adapter("one")
    model.delete_adapter("two")
    _assert_close(subject.features(model), first)


@torch.no_grad()
def mixes(subject: Subject) -> None:
    """Check that a batch with two adapters equals a call for each."""
    names = ["one", "two", "one", "two", "__base__"]
    model = subject.inject(names=("one", "two"))
    if isinstance(model.active_peft_config, BlockAdapterConfig):
        call = partial(model, num_support=SUPPORT)
        mixed = call(pixel_values=subject.videos, adapter_names=names).pooler_output.unflatten(0, (5, FRAMES))
        alone = partial(model, num_support=1)
    else:
        mixed = FrameEncoder(model).encode(subject.videos, adapter_names=names)["features"]
        alone = partial(model)
    for name in ("one", "two"):
        rows = [index for index, other in enumerate(names) if other == name]
        model.set_adapter(name)
        if isinstance(model.active_peft_config, BlockAdapterConfig):
            features = alone(pixel_values=subject.videos[rows]).pooler_output
        else:
            features = FrameEncoder(model).encode(subject.videos[rows])["features"].flatten(0, 1)
        _assert_close(mixed[rows].flatten(0, 1), features)


@torch.no_grad()
def merges(subject: Subject) -> None:
    """Check that merging into the weights keeps the features, and that it is undone."""
    model = subject.inject()
    expected = subject.features(model)
    model.merge_adapter()
    _assert_close(subject.features(model), expected, 1e-3)
    model.unmerge_adapter()
    _assert_close(subject.features(model), expected, 1e-3)


@torch.no_grad()
def adds_weighted(subject: Subject) -> None:
    """Check that a weighted adapter of an adapter with weight 1 is this adapter."""
    model = subject.inject(names=("one", "two"))
    expected = subject.features(model)
    if not hasattr(type(model.base_model), "add_weighted_adapter"):
        raise DmgalError("This method of PEFT has no add_weighted_adapter.")
    model.add_weighted_adapter(["one"], [1.0], "three")
    model.set_adapter("three")
    _assert_close(subject.features(model), expected)


@torch.no_grad()
def swaps(subject: Subject) -> None:
    """Check that other weights replace those of an adapter in place."""
    from peft.utils.hotswap import hotswap_adapter

    model = subject.inject(names=("one", "two"))
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        model.set_adapter("two")
        expected = subject.features(model)
        model.set_adapter("one")
        hotswap_adapter(model, str(Path(folder, "two")), "one", torch_device="cpu")
    _assert_close(subject.features(model), expected)


@torch.no_grad()
def compiles(subject: Subject) -> None:
    """Check ``torch.compile`` as one graph."""
    encoder = FrameEncoder(subject.inject())
    parts = subject.videos[:SUPPORT], subject.videos[SUPPORT:]
    torch._dynamo.reset()
    compiled = torch.compile(lambda support, query: encoder(support, query), fullgraph=True, backend="eager")
    for one, other in zip(compiled(*parts), encoder(*parts), strict=True):
        _assert_close(one, other)


@torch.no_grad()
def exports(subject: Subject) -> None:
    """Check ``torch.export`` of the per-video state, for a fixed number of videos."""
    encoder = FrameEncoder(subject.inject())
    program = torch.export.export(_Encoding(encoder), (subject.videos,))
    exported, expected = program.module()(subject.videos), encoder.encode(subject.videos)
    for name in expected:
        _assert_close(exported[name], expected[name])


class _Encoding(nn.Module):
    """The function ``encode`` as a module."""

    def __init__(self, encoder: FrameEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, videos: Tensor) -> dict[str, Tensor]:
        """Return the state of videos ``(V, T, 3, H, W)``, by name ``(V, ...)``."""
        return dict(self.encoder.encode(videos))


def checkpoints(subject: Subject) -> None:
    """Check that ``checkpoint_blocks`` gives the same gradients."""
    gradients = []
    for checkpoint in (False, True):
        model = subject.inject()
        encoder = FrameEncoder(model, checkpoint_blocks=checkpoint)
        torch.cat(encoder(subject.videos[:SUPPORT], subject.videos[SUPPORT:])).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


FSDP, PROCESSES = "FSDP", 2


def shards(subject: Subject) -> None:
    """Check features and gradients while the processes of a group share the weights of the model by FSDP2.

    Blocks are divided one by one if they can be, and the rest together, as in training by a recipe.
    """
    results = []
    for divide in (False, True):
        encoder = FrameEncoder(subject.inject())
        if divide:
            for module in (*filter(is_sharded_alone, blocks_of(encoder)), encoder):
                fully_shard(module)
        features = torch.cat(encoder(subject.videos[:SUPPORT], subject.videos[SUPPORT:]))
        features.square().sum().backward()
        gradients = {name: gather_shards(p.grad) for name, p in encoder.named_parameters() if p.grad is not None}
        results.append((features.detach(), gradients))
    (expected, gradients), (features, divided) = results
    _assert_close(features, expected)
    assert divided.keys() == gradients.keys() != set(), "gradients are missing"
    for name, gradient in gradients.items():
        torch.testing.assert_close(divided[name], gradient, rtol=1e-3, atol=1e-4)


@cache
def _cells_of_a_group() -> dict[str, str]:
    """Return the cells of `shards` for all recipes, found by processes that are started once."""
    with TemporaryDirectory() as folder, ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        ranks = [pool.submit(_cells_of_a_process, rank, f"file://{folder}/group") for rank in range(PROCESSES)]
        first, *others = [rank.result() for rank in ranks]
    return {name: next((o[name] for o in others if o[name] != "yes"), cell) for name, cell in first.items()}


def _cells_of_a_process(rank: int, address: str) -> dict[str, str]:
    torch.set_num_threads(1)
    limit = timedelta(minutes=5)
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=PROCESSES, timeout=limit)
    try:
        return {name: probe(name, FSDP) for name in subjects()}
    finally:
        distributed.destroy_process_group()


PROBES: dict[str, Callable[[Subject], None]] = {
    **{name: partial(works_on, make) for name, make in BACKBONES.items()},
    **{name: partial(works_on, make) for name, make in QUANTIZED.items()},
    "several": switches,
    "mixed batch": mixes,
    "merge": merges,
    "weighted": adds_weighted,
    "hot swap": swaps,
    "compile": compiles,
    "export": exports,
    "checkpointing": checkpoints,
    FSDP: shards,
}
"""What is tried, by the name of the column. A probe raises an error if the adapter cannot do it."""


def subjects() -> list[str]:
    """Return the names of the recipes with an adapter, without their folder."""
    methods = [name for name in bundled_layers() if name.startswith("method/")]
    return [name.removeprefix("method/") for name in methods if "peft_type" in (read_layer(name).get("adapter") or {})]


def probe(name: str, column: str) -> str:
    """Return the cell of a recipe and a column."""
    if column == FSDP and not distributed.is_initialized():
        return _cells_of_a_group()[name]
    with warnings.catch_warnings(), mock.patch.dict(os.environ):  # BOFT sets the compilers
        warnings.simplefilter("ignore")
        try:
            PROBES[column](Subject(f"method/{name}"))
        except (ValueError, NotImplementedError) as error:
            return f"refused: {_reason(error)}"
        except Exception as error:
            if (name, column) in LIMITS_OF_PEFT:
                return f"limit of PEFT: {LIMITS_OF_PEFT[name, column]}"
            return f"fails: {type(error).__name__}: {_reason(error)}"
    return "yes"


LIMITS_OF_PEFT = {
    ("peft_dora", "weighted"): "Its add_weighted_adapter leaves out the magnitudes of DoRA.",
    ("peft_dora", "hot swap"): "Its hot swap does not know the magnitudes of DoRA.",
    ("peft_dora", "compile"): "torch.compile cannot trace its DoRA as one graph.",
}
"""Calls of PEFT's own methods that fail or are wrong in PEFT itself, by recipe and column."""


def _reason(error: Exception) -> str:
    """Return the reason of an error as one sentence, without the name of the method."""
    text = str(error)
    if isinstance(error, DmgalError):
        is_about_backbone = error.problem.endswith("is not supported on this backbone.")
        text = f"Not supported on this backbone: {error.received}." if is_about_backbone else error.problem
    return " ".join(re.sub(r" but \w+ was passed", "", text).split())[:200]


def _assert_close(features: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(features, expected, rtol=tolerance, atol=tolerance)


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    columns: tuple[str, ...] = ()
    """Columns to probe, by default all. The others keep their cells."""
    rows: tuple[str, ...] = ()
    """Recipes to probe, by default all."""
    out: Path = Path(__file__).parent / "results" / "capabilities.json"


def measure(options: Options, cells: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Return the cells of all recipes, with earlier cells of what is not probed."""
    columns, rows = options.columns or tuple(PROBES), options.rows or tuple(subjects())
    probed = {name: {column: probe(name, column) for column in columns} for name in rows}
    merged = {name: {**cells.get(name, {}), **probed.get(name, {})} for name in subjects()}
    return {name: {column: row[column] for column in PROBES if column in row} for name, row in merged.items()}


def main(argv: list[str] | None = None) -> int:
    """Probe and write the report. Return 1 if a cell fails."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    earlier = json.loads(options.out.read_text())["cells"] if options.out.is_file() else {}
    cells = measure(options, earlier)
    versions = {"torch": torch.__version__.split("+")[0], "peft": peft.__version__}
    write_report({"versions": versions, "cells": cells}, options.out, show=False)
    failing = [(name, *cell) for name, row in cells.items() for cell in row.items() if "fails" in cell[1]]
    for cell in failing:
        print(*cell)
    return 1 if failing else 0


if __name__ == "__main__":
    raise SystemExit(main())

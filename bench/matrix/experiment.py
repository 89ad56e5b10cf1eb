"""An experiment: a small JSON of differences to the recipes, and the cells of its matrix.

    {
      "name": "tiny_clip",
      "layers": ["demo", "data/moving_shapes"],
      "recipe": {"train": {"steps": 100}},
      "backbones": ["tiny-clip"],
      "methods": ["frozen", "lora", "dmgal_adapter"],
      "variants": [{"name": "bottleneck 12", "methods": ["dmgal_adapter"], "recipe": {"adapter": {"bottleneck": 12}}}],
      "shots": [1],
      "seeds": [0, 1, 2],
      "test_shots": [1, 5],
      "episodes": 2000
    }

A cell is one training: a backbone, a method, a variant of the method, the shots of its training tasks, and a seed. Its
recipe is merged from the layers, ``recipe``, the layer of the method (``method/NAME``, or a file of your own) and the
variant. A method's own values replace those of ``recipe``, so ``frozen`` stays at 0 steps. Only variants replace a
method's values.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dmgal.errors import DmgalError
from dmgal.files import listed, read_mapping
from dmgal.recipes.run.config import Recipe, TargetData
from dmgal.recipes.run.layers import Tree, from_mapping, merge_layers, read_layer, to_mapping

Names = tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """Differences to the recipe of some methods, such as another bottleneck. ``methods`` None: of all methods."""

    name: str
    recipe: Tree
    methods: Names | None = None


@dataclass(frozen=True)
class Experiment:
    """The matrix of an experiment, see the module.

    Attributes:
        name: name of the experiment, shown in its report.
        layers: recipe layers of all cells, such as the data.
        recipe: differences for all cells, below the methods' own values.
        backbones, methods, variants, shots, seeds: the axes of the matrix. Every method also runs without a variant.
        test_shots: support videos per class of the tests.
        episodes: number of test episodes of each kind.
        tests: other data by name, on which every cell is also tested. All classes but those of its own train and val
            splits are novel.
    """

    methods: Names
    name: str = "experiment"
    layers: Names = ()
    recipe: Tree = field(default_factory=dict)
    backbones: Names = ("tiny-clip",)
    variants: tuple[Variant, ...] = ()
    shots: tuple[int, ...] = (1,)
    seeds: tuple[int, ...] = (0,)
    test_shots: tuple[int, ...] = (1, 5)
    episodes: int = 2000
    tests: Mapping[str, TargetData] = field(default_factory=dict)

    def cells(self) -> list[Cell]:
        """Return all cells, method by method. A method that trains nothing has one cell for all shots and seeds.

        Raises:
            DmgalError: the matrix is empty or has a cell twice, a method or variant is unknown, or a recipe is invalid.
        """
        variants = (Variant("", {}), *self.variants)
        axes = itertools.product(self.backbones, self.methods, variants, self.shots, self.seeds)
        cells = [
            Cell(
                backbone, label(method), variant.name, shots, seed, self._recipe(backbone, method, variant, shots, seed)
            )
            for backbone, method, variant, shots, seed in axes
            if variant.methods is None or method in variant.methods
        ]
        first = self.shots[:1], self.seeds[:1]
        cells = [cell for cell in cells if cell.recipe.train.steps or ((cell.shots,), (cell.seed,)) == first]
        names = [cell.name for cell in cells]
        repeated = sorted({name for name in names if names.count(name) > 1})
        unknown = sorted({name for v in self.variants for name in v.methods or () if name not in self.methods})
        if not cells or repeated or unknown:
            raise DmgalError(
                "The matrix of the experiment is not valid.",
                received=f"cells that occur twice: {listed(repeated)}"
                if repeated
                else f"variants of methods that are not listed: {listed(unknown)}"
                if unknown
                else "no cell, because an axis is empty",
                expected="at least one of each of backbones, methods, shots and seeds, each once",
                remedy="Correct the experiment.",
            )
        return cells

    def _recipe(self, backbone: str, method: str, variant: Variant, shots: int, seed: int) -> Recipe:
        own = {"backbone": {"name": backbone}, "episode": {"k_shot": shots}, "train": {"seed": seed}}
        layer = method if is_file(method) else f"method/{method}"
        layers = [*map(read_layer, self.layers), self.recipe, read_layer(layer), variant.recipe, own]
        return from_mapping(Recipe, merge_layers(layers))


@dataclass(frozen=True)
class Cell:
    """One training of the matrix, and its complete recipe."""

    backbone: str
    method: str
    variant: str
    shots: int
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """File name of the cell's result, without extension, as in PEFT's method comparison."""
        return cell_name(*self.kind, self.seed)

    @property
    def kind(self) -> tuple[str, str, str, int]:
        """Everything but the seed. Cells of one kind are rows of one mean."""
        return self.backbone, self.method, self.variant, self.shots

    def describe(self) -> str:
        """Return a line for messages."""
        return f"{self.backbone} {self.method}{f' {self.variant}' if self.variant else ''}, seed {self.seed}"

    def as_json(self) -> dict[str, object]:
        """Return the position of the cell in the matrix."""
        names = ("backbone", "method", "variant", "shots", "seed")
        return {name: getattr(self, name) for name in names}


def cell_name(backbone: str, method: str, variant: str, shots: int, seed: int) -> str:
    """Return the name of a cell's files and of its run folder."""
    parts = [backbone, method, variant, f"{shots}shot", f"seed{seed}"]
    return "--".join(re.sub(r"[^\w.-]+", "-", part) for part in parts if part)


def is_file(method: str) -> bool:
    """Return True if a method is the path of a layer, and not the name of a bundled one."""
    return method.endswith((".yaml", ".yml"))


def label(method: str) -> str:
    """Return the name of a method in results."""
    return Path(method).stem if is_file(method) else method


def read_experiment(path: Path) -> Experiment:
    """Return the experiment of a JSON file. Paths in it are relative to the working folder.

    Raises:
        DmgalError: the file cannot be read, or a key or value is not valid.
    """
    tree = read_mapping(path, "The experiment cannot be read.", "Check the path and the file.")
    return experiment_from({"name": path.stem, **tree})


def experiment_from(tree: Mapping[str, object]) -> Experiment:
    """Return the experiment of nested mappings and lists. Raise a DmgalError if a key or value is not valid."""
    plain = {key: _as_tuple(value) for key, value in tree.items() if key not in ("variants", "tests")}
    variants, tests = tree.get("variants", ()), tree.get("tests", {})
    if (
        not isinstance(variants, list | tuple)
        or not isinstance(tests, Mapping)
        or not all(isinstance(one, Mapping) and one.get("root") for one in tests.values())
    ):
        raise DmgalError(
            "The experiment is not valid.",
            received=f"variants: {variants!r}, tests: {tests!r}",
            expected="a list of variants, and other data by name, each with its root",
            remedy="Correct the experiment.",
        )
    return replace(
        from_mapping(Experiment, plain),
        variants=tuple(from_mapping(Variant, {k: _as_tuple(v) for k, v in one.items()}) for one in variants),
        tests={name: from_mapping(TargetData, one) for name, one in tests.items()},
    )


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def experiment_as_json(experiment: Experiment) -> Tree:
    """Return an experiment as `read_experiment` reads it."""
    tree: Tree = to_mapping(experiment)
    return tree


def data_layer(data: Path, root: Path | None, group: str | None) -> tuple[list[str], Tree]:
    """Return the recipe layers of a user's data, and their differences to the default recipe.

    Args:
        data: a folder, a CSV of videos, or a recipe layer.
        root: folder of the videos of a CSV. None: the folder of the CSV.
        group: see docs/data.md.
    """
    grouped = {} if group is None else {"group": group}
    if data.suffix in (".yaml", ".yml"):
        return [str(data)], {"data": grouped} if grouped else {}
    if data.is_dir():
        return [], {"data": {"name": data.name, "root": str(data), **grouped}}
    root = root or data.parent
    return [], {"data": {"name": data.stem, "root": str(root), "split_file": str(data), **grouped}}

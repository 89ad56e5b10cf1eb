"""Study of what makes a motion adapter transfer: one change of its training at a time, on real validation clips.

    python -m dmgal.bench.motion_study runs/study --clips VIDEOS/ut_interaction VIDEOS/mini/train,VIDEOS/mini/val

Every variant trains on the base classes of motion world, and is compared with the reference and with the frozen
backbone on the same episodes. No variant has seen a real clip. These clips serve for choices; none is a test clip. A
variant takes about four minutes on one core. Adds to ``bench/results/motion_study.json``; what is in it already is not
repeated.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from dmgal.adapters.dmgal import SmgaAdapter
from dmgal.bench.measuring import hardware, write_report
from dmgal.bench.motion_transfer import as_json, catalog_of, evaluated
from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.evaluation import Evaluation, paired_difference
from dmgal.episodes.heads import OTAM, BiMHM, FrameAligned, Prototype
from dmgal.episodes.recognizer import Head
from dmgal.recipes.run.config import Recipe, parse
from dmgal.recipes.run.evaluation import load_run
from dmgal.recipes.run.folder import Run
from dmgal.recipes.train import Train, run
from dmgal.videos.generated import generate
from dmgal.videos.motion_world.clips import MotionWorld
from dmgal.videos.motion_world.motions import all_motions
from dmgal.videos.motion_world.stage.cameras import View
from dmgal.videos.motion_world.stage.curves import Tempo
from dmgal.videos.motion_world.stage.scenes import Cast

CLIPS, STEPS, TASKS = 7, 300, 3
REFERENCE, FROZEN = "reference", "frozen"
SHARES = (0.25, 0.5, 0.75, 1.5)
"""Factors of the adapters' output. 0 is the frozen backbone, 1 the reference."""
HEADS: Mapping[str, Head] = {
    "Bi-MHM": BiMHM(logit_scale=10.0, eps=0.0),
    "frames of the same index, centered": FrameAligned(center="video", logit_scale=10.0, eps=0.0),
    "OTAM, centered": OTAM(relaxation=0.1, center="video", logit_scale=10.0, eps=0.0),
    "prototype": Prototype(logit_scale=10.0),
}
"""Other heads than the reference's, Bi-MHM with features centered per video."""
Evaluations = dict[str, Evaluation]
"""By data set and number of shots."""


@dataclass(frozen=True)
class SimplerWorld(MotionWorld):
    """Motion world without ``camera`` motion, ``movers`` (things that move without meaning), or ``textures``.

    Args:
        without: the nuisance factor.
        share: share of the videos that lack it.
    """

    without: str = "camera"
    share: float = 1.0

    def parameters(self, rng: np.random.Generator) -> tuple[Cast, View, Tempo]:
        """Draw what `MotionWorld` draws, without the nuisance factor."""
        cast, view, tempo = super().parameters(rng)
        if self.share < 1 and rng.random() >= self.share:
            return cast, view, tempo
        return *simplified(cast, view, self.without), tempo


def simplified(cast: Cast, view: View, without: str) -> tuple[Cast, View]:
    """Return a cast and a view without a nuisance factor."""
    if without == "camera":
        still = np.array([1, 0])
        pan, shake = view.pan * np.repeat(still, 2), view.shake * np.array([0, 0, 1, 1, 1, 1])
        return cast, replace(view, zoom=view.zoom * still, pan=pan, tilt=view.tilt * still, shake=shake)
    if without == "movers":
        return cast, replace(view, movers=())
    flat = replace(view.background, colors=np.repeat(view.background.colors[:1], 3, axis=0))
    bodies = tuple(replace(look, pattern=None) for look in cast.bodies)
    things = tuple(replace(look, pattern=None) for look in cast.things)
    hands = tuple(replace(look, pattern=None) for look in cast.hands)
    props, movers = (
        tuple((replace(look, pattern=None), place) for look, place in items) for items in (view.props, view.movers)
    )
    return (
        replace(cast, bodies=bodies, things=things, hands=hands, floor_pattern=None),
        replace(view, background=flat, props=props, movers=movers),
    )


@dataclass(frozen=True)
class Variant:
    """A training that differs from the reference in one respect.

    Args:
        flags: of ``dmgal train``, in addition to those of the reference.
        method: layer of the method.
        steps, clips, classes: training steps, clips of a class, and base classes (None: all).
        families: families of motions that are left out of the base classes.
        world: nuisance factor that is left out of the videos.
        share: share of the videos that lack it.
    """

    flags: tuple[str, ...] = ()
    method: str = "smga"
    steps: int = STEPS
    clips: int = CLIPS
    classes: int | None = None
    families: tuple[str, ...] = ()
    world: str = ""
    share: float = 1.0


VARIANTS: Mapping[str, Mapping[str, Variant]] = {
    "": {REFERENCE: Variant(), FROZEN: Variant(method="frozen", steps=0)},
    "classes": {str(n): Variant(classes=n) for n in (10, 30, 100)},
    "clips of a class": {str(n): Variant(clips=n) for n in (3, 15, 30)},
    "steps": {str(n): Variant(steps=n) for n in (100, 900)},
    "rate, tasks per step, seed": {
        f"{rate}, {tasks}, {seed}": Variant(
            ("--train.learning-rate", rate, "--train.tasks-per-step", tasks, "--train.seed", seed)
        )
        for rate, tasks, seeds in (
            ("1e-3", "1", "012"),
            ("2e-3", "1", "012"),
            ("4e-3", "1", "012"),
            ("4e-3", "3", "12"),
        )
        for seed in seeds
    },
    "motions left out": {
        "bodies": Variant(families=("solo", "duo")),
        "two bodies": Variant(families=("duo",)),
        "hands and things": Variant(families=("table",)),
        "deformation": Variant(families=("shape",)),
        "paths": Variant(families=("path",)),
    },
    "nuisance left out": {
        "camera": Variant(world="camera"),
        "camera in half of the videos": Variant(world="camera", share=0.5),
        "movers": Variant(world="movers"),
        "textures": Variant(world="textures"),
    },
    "frames": {str(n): Variant(("--data.num-frames", str(n))) for n in (4, 16)},
    "training episodes": {
        "5 shots": Variant(("--shots", "5")),
        "10 ways": Variant(("--ways", "10")),
        "not centered": Variant(("--head.center", "none")),
    },
    "parts of the adapter": {
        "without attention": Variant(("--adapter.attention", "false")),
        "without motion values": Variant(("--adapter.signed", "false")),
        "without temporal position": Variant(("--adapter.temporal", "false")),
        "forward only": Variant(("--adapter.directions", "forward")),
        "separate directions": Variant(("--adapter.directions", "separate")),
        "three scales": Variant(("--adapter.scales", "multi")),
        "bottleneck 48, motion width 16": Variant(("--adapter.bottleneck", "48", "--adapter.motion-width", "16")),
    },
    "methods": {
        "bitfit": Variant(method="bitfit"),
        "lora": Variant(method="lora"),
        "st_adapter": Variant(method="st_adapter"),
        "aim": Variant(method="aim"),
        "d2st": Variant(method="d2st"),
        "cmga": Variant(method="cmga"),
        "dmgal_adapter": Variant(method="dmgal_adapter"),
        "full": Variant(method="bi_mhm"),
        "dmgal_ft": Variant(method="dmgal_ft"),
    },
}


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    work: tyro.conf.Positional[Path]
    """Folder for the generated videos and the runs."""
    clips: tuple[str, ...]
    """Data sets of real validation clips: folders of class folders, those of one data set separated by commas."""
    only: tuple[str, ...] = ()
    """Groups of variants. Empty: all."""
    episodes: int = 5000
    """Number of episodes."""
    out: Path = Path(__file__).parent / "results" / "motion_study.json"


def split_rows(source: Path, variant: Variant) -> Iterator[list[str]]:
    """Yield the rows of a split file: validation classes, and the base classes and clips of a variant."""
    family = {motion.name: motion.family for motion in all_motions()}
    with source.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] != "test"]
    base = [*dict.fromkeys(row["class_name"] for row in rows if row["split"] == "train")]
    kept = [name for name in base if family[name] not in variant.families]
    kept = [kept[index] for index in np.random.default_rng(0).permutation(len(kept))][: variant.classes]
    seen: Counter[str] = Counter()
    yield ["split", "class_name", "video"]
    for row in rows:
        name, is_base = row["class_name"], row["split"] == "train"
        seen[name] += 1
        if seen[name] <= (variant.clips if is_base else CLIPS) and (name in kept or not is_base):
            yield [row["split"], name, row["video"]]


def trained(place: Path, variant: Variant, work: Path) -> Run:
    """Return the run of a variant, trained unless it is finished."""
    world, root = MotionWorld(), work / "motion_world"
    if variant.world:
        world = SimplerWorld(without=variant.world, share=variant.share, clips_per_class=CLIPS)
        root = work / f"motion_world_without_{variant.share:g}_{variant.world}"
    source = generate(world, root)
    split_file = work / f"{place.name}.csv"
    with split_file.open("w", newline="") as file:
        csv.writer(file).writerows(split_rows(root / source.name, variant))
    words = [f"method/{variant.method}", "--data.name", "motion", "--data.root", str(root), "--data.no-may-flip"]
    words += ["--data.split-file", str(split_file), "--data.num-workers", "0", "--data.keep-in-memory"]
    words += ["--train.validate-every", str(max(1, variant.steps))]
    if variant.method != "frozen":
        words += ["--train.steps", str(variant.steps), "--train.tasks-per-step", str(TASKS)]
    recipe = parse([*words, *variant.flags], prog="motion_study", description="", wrapper=Train)[0].recipe
    return run(recipe, place, resume=True)


def name_of(folders: Sequence[Path]) -> str:
    """Return the name of a data set of one folder, or of several in a common parent."""
    names = " and ".join(folder.name for folder in folders)
    return names if len(folders) == 1 else f"{folders[0].parent.name} {names}"


class Study:
    """Evaluations on all data sets, beside those of the reference and of the frozen backbone.

    Args:
        options: of the command.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        folders = [[Path(folder) for folder in group.split(",")] for group in options.clips]
        self.catalogs = {name_of(group): catalog_of(group) for group in folders}
        self.reference, self.frozen = (self.measured("", name) for name in (REFERENCE, FROZEN))

    def run(self, group: str, name: str) -> Run:
        """Return the run of a variant."""
        return trained(
            self.options.work / "_".join(f"{group} {name}".split()), VARIANTS[group][name], self.options.work
        )

    def measured(self, group: str, name: str) -> Evaluations:
        """Return the evaluations of a variant."""
        return self.evaluated(*load_run(self.run(group, name)))

    def evaluated(self, recipe: Recipe, recognizer: FewShotRecognizer) -> Evaluations:
        """Return the evaluations of a recognizer, by data set and shots."""
        return {
            f"{name}, {shots}-shot": evaluation
            for name, catalog in self.catalogs.items()
            for shots, evaluation in evaluated(
                recipe, recognizer, catalog, self.options.episodes, progress=False
            ).items()
        }

    def row(self, found: Evaluations) -> dict[str, dict[str, dict[str, float]]]:
        """Return accuracies, and paired differences to the frozen backbone and to the reference."""
        return {
            name: {
                "accuracy": as_json(evaluation.accuracy),
                "minus frozen": as_json(paired_difference(evaluation, self.frozen[name])),
                "minus reference": as_json(paired_difference(evaluation, self.reference[name])),
            }
            for name, evaluation in found.items()
        }

    def scaled(self) -> Iterator[tuple[str, Evaluations]]:
        """Yield the evaluations of the reference with a share of its adapters' output."""
        for share in SHARES:
            recipe, recognizer = load_run(self.run("", REFERENCE))
            for module in recognizer.modules():
                if isinstance(module, SmgaAdapter):
                    module.up.weight.data *= share
                    module.up.bias.data *= share
            yield f"{share:g}", self.evaluated(recipe, recognizer)

    def heads(self) -> Iterator[tuple[str, Evaluations]]:
        """Yield the evaluations of the reference and of the frozen backbone with other heads."""
        for of in (REFERENCE, FROZEN):
            recipe, recognizer = load_run(self.run("", of))
            for name, head in HEADS.items():
                yield f"{of}, {name}", self.evaluated(recipe, FewShotRecognizer(recognizer.encoder, head))


def main(argv: list[str] | None = None) -> None:
    """Train and measure what the report lacks."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    report = json.loads(options.out.read_text()) if options.out.exists() else {"groups": {}}
    study = Study(options)
    derived = {"share of the adapter": study.scaled, "heads": study.heads}
    for group in options.only or (*VARIANTS, *derived):
        rows = report["groups"].setdefault(group, {})
        missing = [name for name in VARIANTS.get(group, ()) if name not in rows]
        found = derived[group]() if group in derived and not rows else ((n, study.measured(group, n)) for n in missing)
        for name, evaluations in found:
            rows[name] = study.row(evaluations)
            print(group, name, json.dumps(rows[name]), flush=True)
            write_report(report | {"episodes": options.episodes, "hardware": hardware()}, options.out, show=False)


if __name__ == "__main__":
    main()

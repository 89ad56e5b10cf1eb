"""Report of one or several runs as a web page: one file that loads nothing and can be sent to others.

    dmgal report runs/mine
    dmgal report runs/frozen runs/mine --out report.html --episodes 2000

The page shows accuracies with intervals, the paired comparison with the first run, training curves, the hardest
episodes as short films with the answers of each run, confusions, where the last run looks, costs and all settings. Runs
are evaluated on the same episodes. It contains small pictures of the videos, but no paths of this machine.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from dmgal.errors import DmgalError
from dmgal.files import parse_json, printable, read_mapping, read_text, write_text
from dmgal.recipes.reports.charts import training_curves
from dmgal.recipes.reports.films import Films, hardest, show_task
from dmgal.recipes.reports.page import NOTES, confusion_section, pairing_section, render, results_of
from dmgal.recipes.reports.runs import Comparison, Row, compare_in_depth
from dmgal.recipes.run.cli_errors import parse_options, run_recipe
from dmgal.recipes.run.config import DataOverrides
from dmgal.recipes.run.encoding import Kept
from dmgal.recipes.run.evaluation import Protocol, load_run, samplers
from dmgal.recipes.run.folder import Run, json_text
from dmgal.recipes.run.gallery import GalleryModel, read_frames
from dmgal.recipes.run.ranges import Range
from dmgal.visualization import record, task_attention
from dmgal.visualization.layers import choose_layer

MOST_ATTENTION = 5
"""Support videos in an attention picture. A page is no place for more."""


@dataclass(frozen=True)
class Report:
    """Options of the command."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs. The others are compared with the first."""
    out: Path = Path("report.html")
    """HTML file to write."""
    protocol: tyro.conf.OmitArgPrefixes[Protocol] = field(default_factory=Protocol)
    hardest: Annotated[int, Range(0, 20)] = 3
    """Number of hardest episodes to show."""
    states: Kept = "disk"
    """Storage of the encoded videos, see dmgal evaluate. float16 is INEXACT."""
    cache: Path | None = None
    """Folder for the encoded videos, see dmgal compare. None: RUN/states."""
    data: DataOverrides = field(default_factory=DataOverrides)
    quiet: bool = False
    """Hide progress bars."""


def run(options: Report) -> Path | None:
    """Evaluate the runs and write the page. Return its path, or None on all ranks but 0.

    Raises:
        DmgalError: a run cannot be used, or the page cannot be written.
    """
    if not options.runs:
        raise DmgalError(
            "No runs to report.", received="no run", expected="folders of runs", remedy="Run dmgal report RUN [RUN ...]"
        )
    found = compare_in_depth(
        options.runs, options.protocol, not options.quiet, options.states, 5, options.data, options.cache
    )
    if found is None:
        return None
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, _page(found, options))
    return options.out


def _page(found: Comparison, options: Report) -> str:
    folders = [Run(folder) for folder in options.runs]
    names = [row.name for row in found.rows]
    logs = {name: one.log_entries() for name, one in zip(names, folders, strict=True)}
    films, sampler = Films(found.catalog), samplers(found.catalog, found.recipe, options.protocol)["accuracy"]
    episodes = hardest(found.rows, options.hardest)
    return render(
        "run_report.html.j2",
        title=f"Report: {', '.join(names)}",
        summary=_summary(found, options),
        notes=NOTES,
        **results_of(found.rows),
        pairings=[pairing_section(pairing, found.catalog) for pairing in found.pairings],
        curves=training_curves(logs),
        tasks=[show_task(films, found.rows, sampler, e, _reason(found.rows, e)) for e in episodes],
        confusions=[confusion_section(method, found.catalog.class_names) for method in found.methods],
        attention=_attention(found, folders[-1], options) if episodes else [],
        costs=[_cost(row) for row in found.rows],
        recipes=[
            (name, read_text(one.folder / "recipe.yaml").strip()) for name, one in zip(names, folders, strict=True)
        ],
        environments=[(name, _environment(one)) for name, one in zip(names, folders, strict=True)],
    )


def _summary(found: Comparison, options: Report) -> str:
    protocol, episode = options.protocol, found.recipe.episode
    ways, shots = protocol.n_way or episode.n_way, protocol.k_shot or episode.k_shot
    best = max(found.rows, key=lambda row: row.evaluations["accuracy"].accuracy.mean)
    estimate = best.evaluations["accuracy"].accuracy
    kind = "novel" if protocol.split == "test" else "validation"
    of = "" if len(found.rows) == 1 else f" {best.name} is the best of {len(found.rows)} runs:"
    count = len(best.evaluations["accuracy"].accuracies)
    inexact = " INEXACT: states were stored as float16." if options.states == "float16" else ""
    return (
        f"{ways}-way {shots}-shot recognition on {len(found.catalog.class_names)} {kind} classes, {count:,} episodes."
        f"{of} {estimate} % of the answers are right, and {100 / ways:.0f} % by chance.{inexact}"
    )


def _reason(rows: Sequence[Row], episode: int) -> str:
    texts = [f"{row.name} {100 * row.evaluations['accuracy'].accuracies[episode].item():.0f} %" for row in rows]
    return f"Right answers: {', '.join(texts)}."


def _cost(row: Row) -> list[str]:
    seconds, memory = row.cost.get("seconds_per_step"), row.cost.get("peak_memory_mb")
    saved = f"{row.saved_bytes / 1024:,.0f} KB" if row.saved_bytes else "-"
    return [
        row.name,
        f"{row.trained_parameters:,}",
        f"{row.share:.1f} %",
        f"{seconds:.3f}" if seconds else "-",
        f"{memory:,.0f}" if memory else "-",
        saved,
    ]


def _environment(one: Run) -> str:
    path = one.folder / "environment.json"
    return json_text(
        read_mapping(path, "A file of this run cannot be read.", "Copy the run again.", parse_json)
    ).strip()


def _attention(found: Comparison, last: Run, options: Report) -> list[dict[str, Any]]:
    """Return a picture of where the last run looks in the hardest episode, if one of its layers has attention."""
    recipe, recognizer = load_run(last)
    model, catalog = GalleryModel(recipe, recognizer), found.catalog
    if choose_layer(recognizer, None, across=True).attention == "none":
        return []
    [episode] = hardest(found.rows, 1)
    task = samplers(catalog, found.recipe, options.protocol)["accuracy"][episode]
    places = [task.support_labels.index(label) for label in sorted(set(task.support_labels))][:MOST_ATTENTION]
    support = [task.support[place] for place in places]
    clips = torch.stack([read_frames(model, catalog.path(video)) for video in (*support, task.query[0])])
    recording = record(recognizer, clips, num_support=len(support))
    names = [catalog.class_names[catalog.labels[video]] for video in support]
    truth = catalog.class_names[catalog.labels[task.query[0]]]
    file = io.BytesIO()
    task_attention(recording, range(len(support)), names, name=truth).savefig(file, format="png", dpi=90)
    image = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    text = f"First query of task {episode + 1}, of class {truth}, and a support film of each class. {recording.title}."
    return [{"name": printable(last.folder.name), "image": image, "text": text}]


def main(argv: list[str] | None = None) -> int | None:
    """Report the runs named on the command line."""
    written = run(parse_options(Report, argv, "report", __doc__))
    if written is not None:
        print(f"written: {printable(str(written))}")
    return 0


if __name__ == "__main__":
    run_recipe(main)

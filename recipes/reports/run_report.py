"""Web page of one or several runs: results, curves, hardest episodes as films, attention, costs and settings."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import torch

from dmgal.files import parse_json, printable, read_mapping, read_text
from dmgal.recipes.reports.charts import training_curves
from dmgal.recipes.reports.films import Films, hardest, show_task
from dmgal.recipes.reports.page import NOTES, confusion_section, pairing_section, render, results_of
from dmgal.recipes.reports.runs import Comparison, Row
from dmgal.recipes.run.evaluation import Protocol, load_run, samplers
from dmgal.recipes.run.folder import Run, json_text
from dmgal.recipes.run.gallery import GalleryModel, read_frames
from dmgal.visualization import record, task_attention
from dmgal.visualization.layers import choose_layer

MOST_ATTENTION = 5
"""Support videos in an attention picture. A page is no place for more."""


def run_report(found: Comparison, runs: Sequence[Path], protocol: Protocol, num_hardest: int, is_inexact: bool) -> str:
    """Return the page of runs, with the episodes that were hardest for them.

    Args:
        found: comparison of the runs.
        runs: folders of the runs, as in ``found``.
        protocol: choice of episodes of the comparison.
        num_hardest: number of episodes to show.
        is_inexact: True if states were stored as float16.
    """
    folders = [Run(folder) for folder in runs]
    names = [row.name for row in found.rows]
    logs = {name: one.log_entries() for name, one in zip(names, folders, strict=True)}
    films, sampler = Films(found.catalog), samplers(found.catalog, found.recipe, protocol)["accuracy"]
    episodes = hardest(found.rows, num_hardest)
    return render(
        "run_report.html.j2",
        title=f"Report: {', '.join(names)}",
        summary=_summary(found, protocol, is_inexact),
        notes=NOTES,
        **results_of(found.rows),
        pairings=[pairing_section(pairing, found.catalog) for pairing in found.pairings],
        curves=training_curves(logs),
        tasks=[show_task(films, found.rows, sampler, e, _reason(found.rows, e)) for e in episodes],
        confusions=[confusion_section(method, found.catalog.class_names) for method in found.methods],
        attention=_attention(found, folders[-1], protocol) if episodes else [],
        costs=[_cost(row) for row in found.rows],
        recipes=[
            (name, read_text(one.folder / "recipe.yaml").strip()) for name, one in zip(names, folders, strict=True)
        ],
        environments=[(name, _environment(one)) for name, one in zip(names, folders, strict=True)],
    )


def _summary(found: Comparison, protocol: Protocol, is_inexact: bool) -> str:
    ways, shots = protocol.ways_and_shots(found.recipe)
    best = max(found.rows, key=lambda row: row.evaluations["accuracy"].accuracy.mean)
    estimate = best.evaluations["accuracy"].accuracy
    kind = "novel" if protocol.split == "test" else "validation"
    of = "" if len(found.rows) == 1 else f" {best.name} is the best of {len(found.rows)} runs:"
    count = len(best.evaluations["accuracy"].accuracies)
    inexact = " INEXACT: states were stored as float16." if is_inexact else ""
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


def _attention(found: Comparison, last: Run, protocol: Protocol) -> list[dict[str, object]]:
    """Return a picture of where the last run looks in the hardest episode, if one of its layers has attention."""
    recipe, recognizer = load_run(last)
    model, catalog = GalleryModel(recipe, recognizer), found.catalog
    if choose_layer(recognizer, None, across=True).attention == "none":
        return []
    [episode] = hardest(found.rows, 1)
    task = samplers(catalog, found.recipe, protocol)["accuracy"][episode]
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

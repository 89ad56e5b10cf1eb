"""Figures of the documentation, from ``bench/results/*.json``. ``docs_tables`` writes them.

They are deterministic, see ``matrix/figures.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dmgal.bench.matrix import report as matrix_report
from dmgal.bench.matrix.figures import Draw, Form, breakdown_figure, cost_figure, drawing, saved

RESULTS = Path("bench", "results")
NAMES = {
    "frozen": "frozen tiny-clip",
    "smga": "Smga only",
    "cmga": "Cmga only",
    "dmgal_adapter": "DMGAL-Adapter",
    "dmgal_ft": "DMGAL-FT",
    "d2st": "D2ST-Adapter",
    "st_adapter": "ST-Adapter",
    "aim": "AIM",
    "lora": "LoRA, attention and MLP",
    "bitfit": "BitFit",
    "side": "ladder side network",
    "hyrsm": "HyRSM",
    "otam": "OTAM",
    "trx": "TRX",
    "molo": "MoLo",
    "frame_aligned": "frame-aligned cosine",
    "strm": "STRM",
    "bi_mhm": "Bi-MHM",
    "m2acl": "M2ACL",
    "sact": "SA-CT",
    "prototype": "prototype",
}
"""Names in tables by the name of a method's recipe."""
LEFT = ((-8, 0), "right")
LABELS = {"molo": ((-6, -11), "center"), "prototype": ((0, 11), "center")} | dict.fromkeys(
    ("dmgal_ft", "otam", "frame_aligned", "bi_mhm", "sact"), LEFT
)
"""Offsets in points and alignments of labels that would overlap. The others are to the right of their point."""
HEAD_SCALE = 1
"""The learned scale of the logits, which the comparison counts as a trained parameter beside an adapter's."""
EFFICIENCY = RESULTS / "efficiency"
"""Results of the committed matrix."""


def load(root: Path, name: str) -> dict[str, Any]:
    """Return one file of results."""
    content: dict[str, object] = json.loads((root / RESULTS / f"{name}.json").read_text())
    return content


def accuracy_figure(root: Path, form: Form = "svg") -> bytes:
    """Plot 1-shot accuracy against trained parameters, with ranges over seeds."""
    methods, adapters = (load(root, name)["summary"]["1-shot"] for name in ("method_comparison", "adapter_comparison"))
    groups = {
        "adapters on the frozen backbone": ("#1f77b4", "o", adapters),
        "whole backbone trained": ("#8c564b", "s", {n: r for n, r in methods.items() if n != "dmgal_adapter"}),
    }
    with drawing() as pyplot:
        figure, axes = pyplot.subplots(figsize=(7.2, 4.0), layout="constrained")
        for label, (color, marker, rows) in groups.items():
            values = [row["accuracy"] for row in rows.values()]
            means, trained = [v["mean"] for v in values], [row["trained_parameters"] for row in rows.values()]
            errors = [[v["mean"] - v["lowest"] for v in values], [v["highest"] - v["mean"] for v in values]]
            axes.errorbar(trained, means, errors, fmt=marker, color=color, markersize=5, elinewidth=1, label=label)
            for name, x, y in zip(rows, trained, means, strict=True):
                offset, side = LABELS.get(name, ((8, 0), "left"))
                text, weight = NAMES[name].partition(",")[0], "bold" if name.startswith("dmgal") else "normal"
                axes.annotate(text, (x, y), offset, textcoords="offset points", ha=side, va="center", weight=weight)
        axes.set(xscale="log", xlim=(2.5e3, 7e6), ylim=(10, 100), xlabel="trained parameters (log scale)")
        axes.set(ylabel="accuracy %, 5-way 1-shot", title="Novel classes of moving shapes, mean and range over 3 seeds")
        axes.axhline(20, color="gray", linewidth=0.8, linestyle=":")
        axes.annotate("chance", (2.8e3, 21), color="gray")
        axes.grid(alpha=0.25)
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 0.16), frameon=False)
        return saved(figure, form)


def shots_figure(root: Path, form: Form = "svg") -> bytes:
    """Plot the accuracy by the number of shots, with clips alone and with the text of the class names."""
    kinds = {"clips and text": ("#d95f02", "s"), "clips": ("#1f77b4", "o")}
    with drawing() as pyplot:
        figure, panels = pyplot.subplots(1, 2, figsize=(7.2, 3.2), sharey=True, layout="constrained")
        for axes, (classes, methods) in zip(panels, load(root, "shots")["results"].items(), strict=True):
            [(method, curves)] = methods.items()
            for kind, (color, marker) in kinds.items():
                points = [point for point in curves[kind] if "-" not in point["shots"]]
                shots = [int(point["shots"]) for point in points]
                values, errors = ([point[name] for point in points] for name in ("percent", "half_width"))
                axes.errorbar(shots, values, errors, marker=marker, color=color, markersize=4, label=kind, capsize=2)
            axes.axhline(20, color="gray", linewidth=0.8, linestyle=":")
            axes.set(xlabel="clips per class", title=f"{classes}: {method}", ylim=(10, 100))
            axes.grid(alpha=0.25)
        panels[0].set_ylabel("accuracy %, 5-way")
        panels[0].legend(loc="lower right", frameon=False)
        return saved(figure, form)


def study_figure(root: Path, form: Form = "svg") -> bytes:
    """Plot what an adapter gains over the frozen backbone on real clips, by what its training had or lacked."""
    groups = load(root, "motion_study")["groups"]
    rows = [
        (f"{group}: {name}" if group else name, found)
        for group, variants in groups.items()
        for name, found in variants.items()
        if name != "frozen" and group != "heads"
    ]
    with drawing() as pyplot:
        size = 7.2, 1.0 + 0.2 * len(rows)
        figure, panels = pyplot.subplots(1, len(rows[0][1]), figsize=size, sharey=True, layout="constrained")
        for axes, column in zip(panels, rows[0][1], strict=True):
            gains = [found[column]["minus frozen"] for _, found in rows]
            values, errors = ([gain[key] for gain in gains] for key in ("percent", "half_width"))
            axes.errorbar(values, range(len(rows)), xerr=errors, fmt="o", color="#1f77b4", markersize=3)
            axes.axvline(0, color="gray", linewidth=0.8)
            axes.axvline(values[0], color="#d95f02", linewidth=0.8, linestyle=":")
            axes.set_title(column.replace(", ", "\n"), fontsize=7)
            axes.grid(alpha=0.25, axis="y")
        panels[0].set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=7)
        panels[0].invert_yaxis()
        figure.supxlabel("points over the frozen backbone, with 95 % intervals. Dotted: the reference", fontsize=8)
        return saved(figure, form)


def efficiency_figure(root: Path, draw: Draw = cost_figure, form: Form = "svg", dark: bool = False) -> bytes:
    """Plot a figure of the committed matrix."""
    return draw(matrix_report.rows_of(matrix_report.load(root / EFFICIENCY)), form, dark)


FIGURES: dict[Path, Callable[[Path], bytes]] = {
    Path("docs", "figures", "accuracy.svg"): accuracy_figure,
    Path("docs", "figures", "shots.svg"): shots_figure,
    Path("docs", "figures", "motion_study.svg"): study_figure,
    Path("docs", "figures", "efficiency.svg"): efficiency_figure,
    Path("docs", "figures", "efficiency_dark.svg"): partial(efficiency_figure, dark=True),
    Path("docs", "figures", "breakdown.svg"): partial(efficiency_figure, draw=breakdown_figure),
    Path("docs", "figures", "breakdown_dark.svg"): partial(efficiency_figure, draw=breakdown_figure, dark=True),
}
"""Functions that return a figure, by its path."""

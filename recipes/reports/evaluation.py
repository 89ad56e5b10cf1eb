"""Results of an evaluation: printed as lines of text, and written to the run folder as JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmgal.episodes.evaluation import Evaluation
from dmgal.episodes.evaluation.exact_accuracy import ExactAccuracy
from dmgal.files import printable, write_text
from dmgal.recipes.run.config import DataConfig
from dmgal.recipes.run.evaluation import Protocol, as_json, exact_as_json
from dmgal.recipes.run.folder import Run, environment, json_text
from dmgal.recipes.run.generalized import Generalized
from dmgal.recipes.run.shots import Point, curve_as_json, curve_as_text
from dmgal.recipes.run.text import text_line
from dmgal.videos import VideoCatalog

INEXACT = "INEXACT: states were stored as float16. Predictions may differ from those of exact states."


def data_suffix(run: Run, own: DataConfig, data: DataConfig, described: Mapping[str, Any]) -> str:
    """Return the end of a result's name that names other data than the run's own, wherever its own are now."""
    fingerprint = described["data"]["fingerprint"]
    if data.location == own.location or run.has_data(described["split"], fingerprint):
        return ""
    name = re.sub(r"[^\w.-]+", "-", data.location[0].name)[:40]
    return f"_{name}_{fingerprint}"


@dataclass(frozen=True)
class EvaluationReport:
    """The common part of all results of an evaluation. Each method prints one kind of result and writes it.

    Attributes:
        run, protocol: the evaluated run, and the choice of episodes.
        described: the protocol as `dmgal.recipes.run.evaluation.protocol_as_json` describes it.
        text_use: option ``text.use``.
        suffix: end of the file's name in the run folder, see `data_suffix`.
        out: another file for the result.
        is_inexact: True if states were stored as float16.
    """

    run: Run
    protocol: Protocol
    described: Mapping[str, Any]
    text_use: str
    suffix: str
    out: Path | None
    is_inexact: bool

    def accuracies(self, evaluations: Mapping[str, Evaluation]) -> None:
        """Report the accuracies on sampled episodes."""
        protocol, results = self.protocol, as_json(evaluations)
        extent, amount = f"{protocol.episodes} episodes, 95 % intervals over them", f"{protocol.episodes}episodes"
        lines = {name: f"{evaluation.accuracy} %" for name, evaluation in evaluations.items()}
        if protocol.until is not None:
            extent = f"until ± {protocol.until:g}, 95 % intervals over the episodes"
            amount = f"until{protocol.until:g}_at_least_{protocol.episodes}episodes"
            lines = {name: f"{line}  ({results[name]['episodes']} episodes)" for name, line in lines.items()}
        self._tasks(results, lines, extent, amount)

    def exact_accuracies(self, exact: Mapping[str, ExactAccuracy], catalog: VideoCatalog) -> None:
        """Report the expected accuracies over all episodes of the catalog."""
        lines = {name: f"{accuracy.mean:.3f} %" for name, accuracy in exact.items()}
        self._tasks(exact_as_json(exact, catalog), lines, "all episodes, exact", "allepisodes")

    def generalized(self, found: Generalized) -> None:
        """Report the accuracies on base and novel queries and their harmonic mean."""
        protocol, ways, shots = self.protocol, self.described["n_way"], self.described["k_shot"]
        print(
            f"{self._name}: {ways} {protocol.split} classes beside {found.num_base} base classes, "
            f"{shots}-shot, {protocol.episodes} episodes, 95 % intervals over them"
        )
        for name, text in found.lines().items():
            print(f"  {name:<20} {text} %")
        if self.described["base_videos"] == "seen in training":
            print("  The base queries are videos that the run was trained on.")
        start = f"{protocol.split}_{ways}way_{shots}shot_generalized"
        self._write({"generalized": found.as_json()}, start, f"{protocol.episodes}episodes")

    def curve(self, points: Sequence[Point]) -> None:
        """Report the accuracy by the number of shots."""
        protocol, ways = self.protocol, self.described["n_way"]
        print(f"{self._name}: {protocol.split} classes, {ways}-way, {protocol.episodes} episodes")
        print(curve_as_text(points))
        start = f"{protocol.split}_{ways}way_curve_{'_'.join(point.name for point in points)}"
        described = {name: value for name, value in self.described.items() if name != "k_shot"}
        self._write({"protocol": described, "curve": curve_as_json(points)}, start, f"{protocol.episodes}episodes")

    @property
    def _name(self) -> str:
        return printable(str(self.run.folder))

    def _tasks(self, results: Mapping[str, object], lines: Mapping[str, str], extent: str, amount: str) -> None:
        split, ways, shots = self.protocol.split, self.described["n_way"], self.described["k_shot"]
        print(f"{self._name}: {split} classes, {shots}-shot, {extent}")
        if self.described["text"] is not None:
            print(f"  text: {text_line(self.described['text'])}")
        for name, line in lines.items():
            label = f"{ways}-way accuracy" if name == "accuracy" else name.replace("_", " ")
            print(f"  {label:<20} {line}")
        grouped = "_grouped" if "group" in self.described["data"] else ""
        self._write({"results": results}, f"{split}_{ways}way_{shots}shot", amount, grouped)

    def _write(self, content: Mapping[str, object], start: str, amount: str, kind: str = "") -> None:
        """Write a result to the run folder, and to ``out``."""
        protocol, suffix = self.protocol, f"{kind}{self.suffix}"
        result: dict[str, object] = {"protocol": dict(self.described), **content, "environment": environment()}
        if self.is_inexact:
            print(f"  {INEXACT}")
            result["inexact"] = "states were kept as float16"
            suffix = f"_float16{suffix}"
        if self.out is not None:  # first, because the run may be on a disk that is not writable
            write_text(self.out, json_text(result), parents=True)
        text = f"_text_{self.text_use}" if self.text_use != "no" else ""
        name = f"{start}_{protocol.n_query}query_{amount}_seed{protocol.seed}{text}{suffix}"
        path = self.run.write_result(name, result)
        print(f"written: {printable(str(self.out or path))}")

"""Comparison trainings: finished ones are skipped, started ones are resumed."""

from __future__ import annotations

import json
import subprocess

import pytest

from dmgal.bench.comparison import Rate, Training, Workshop

TRAINING = Training("trx", Rate(1e-3, 5e-4), seed=2)


def leave_run(workshop: Workshop, validated: list[int]) -> None:
    """Write the run folder of a 400-step training that was validated at some steps."""
    run = workshop.run(TRAINING)
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("train:\n  steps: 400\n")
    entries = [{"step": 1, "loss": 2.0}] + [{"step": step, "validation_accuracy": 80 - step / 10} for step in validated]
    (run / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


@pytest.mark.parametrize(
    ("validated", "started", "resumed"),
    [([200, 400], False, False), ([200], True, True), (None, True, False)],
    ids=["finished", "begun", "new"],
)
def test_only_what_is_not_finished_is_started(tmp_path, monkeypatch, validated, started, resumed):
    workshop, commands = Workshop(tmp_path), []

    def start(words, **_):
        commands.append(words)
        if validated is None:
            leave_run(workshop, [200, 400])

    monkeypatch.setattr(subprocess, "run", start)
    if validated is not None:
        leave_run(workshop, validated)
    workshop.train([TRAINING])
    assert len(commands) == started
    assert any("--resume" in words for words in commands) == resumed
    assert workshop.validation(TRAINING) == 60.0  # the best, of step 200

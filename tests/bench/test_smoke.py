"""Smoke run of the benchmarks: marks of slow ratios, and the exit code. Stand-ins replace the benchmarks."""

from __future__ import annotations

import json

import pytest

from dmgal.bench import smoke

RATIO = smoke.Ratio("plain / ours", ("ratio",))


@pytest.fixture
def results(tmp_path):
    """Return a folder with the committed ratios of two stand-ins."""
    for name in ("first", "second"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"ratio": {"median": 4.0}}))
    return tmp_path


def stand_in(median: float) -> smoke.Bench:
    """Return a benchmark that reports a ratio."""
    text = json.dumps({"ratio": {"median": median}}, separators=(",", ":"))
    return smoke.Bench(f"-c __import__('pathlib').Path(__import__('sys').argv[1]).write_text('{text}')", (RATIO,))


def test_ratios_below_half_are_marked_and_do_not_fail(results, capsys):
    assert smoke.main({"first": stand_in(1.9), "second": stand_in(2.1)}, results) == 0
    marked = {line.split()[0]: line.endswith(smoke.MARK) for line in capsys.readouterr().out.splitlines()[1:3]}
    assert marked == {"first": True, "second": False}


def test_time_shares_are_inverted_before_the_comparison():
    share = smoke.Bench("", (smoke.Ratio("all / some", ("ratio",), inverse=True),))
    lines = smoke.table({"a": {"ratio": {"median": 0.9}}}, {"a": {"ratio": {"median": 0.4}}}, {"a": share})
    assert lines[1].split()[-5:] == ["1.11", "2.50", *smoke.MARK.split()]


def test_crash_gives_exit_code_1_and_its_error_beside_the_other_ratios(results, capsys):
    crashing = smoke.Bench("-c raise(RuntimeError('broken'))", (RATIO,))
    assert smoke.main({"first": crashing, "second": stand_in(4)}, results) == 1
    printed = capsys.readouterr()
    assert "RuntimeError: broken" in printed.err and "first: exit code 1" in printed.err
    assert "second" in printed.out and "first" not in printed.out


def test_every_ratio_is_in_the_committed_results():
    committed = smoke.read_reports(smoke.RESULTS, list(smoke.BENCHES))
    assert all(ratio.of(committed[name]) > 1 for name, bench in smoke.BENCHES.items() for ratio in bench.ratios)

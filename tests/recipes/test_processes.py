"""Equal losses, weights and validation on any number of processes, also after kills and signals."""

from __future__ import annotations

import random

import pytest
from trainings import assert_same_bits, log, losses, tensors, trained_together, validations

COMMON = ["--train.tasks-per-step", "4"]
CASES = {
    "one": (1, []),
    "two": (2, []),
    "two, task by task": (2, ["--train.tasks-per-pass", "1"]),
    "one, three at a time, with workers": (1, ["--train.tasks-per-pass", "3", "--data.num-workers", "2"]),
}


def jobs(folder, data_flags, cases, *flags):
    return [
        {
            "processes": processes,
            "words": ["method/dmgal_adapter", *data_flags, *COMMON, *flags, *more, "--out", str(folder / name)],
        }
        for name, (processes, more) in cases.items()
    ]


@pytest.fixture(scope="module")
def in_float64(tmp_path_factory, data_flags):
    folder = tmp_path_factory.mktemp("float64")
    flags = ["--train.precision", "float64", "--train.steps", "4", "--train.validate-every", "2"]
    codes, errors = trained_together(*jobs(folder, data_flags, CASES, *flags))
    assert {code for pair in codes for code in pair} == {0}, errors[-3000:]
    return folder


@pytest.mark.parametrize("name", list(CASES)[1:])
def test_steps_in_float64_agree(in_float64, name):
    one, other = in_float64 / "one", in_float64 / name
    assert len(losses(one)) == 4 == len(set(losses(one)))
    assert losses(other) == pytest.approx(losses(one), rel=0, abs=1e-9)
    assert validations(other) == validations(one) and len(validations(one)) == 2
    first, second = tensors(one), tensors(other)
    assert max((first[key].double() - second[key].double()).abs().max().item() for key in first) < 1e-9


@pytest.mark.slow
def test_dropout_is_equal_on_any_number_of_processes(tmp_path, data_flags):
    """TRX drops a tenth of its coded frames. The full backbone is trained with SGD, as in the paper."""
    common = ["--train.precision", "float64", "--train.steps", "2", "--train.tasks-per-step", "2", "--train.clip-norm"]
    common += ["1", "--train.optimizer", "sgd", "--train.momentum", "0.9", "--data.crop-scale", "0.5", "1.0"]
    cases = {"one": (1, []), "two": (2, []), "task by task": (1, ["--train.tasks-per-pass", "1"])}
    cases["other seed"] = (1, ["--train.seed", "1", "--train.steps", "1"])
    jobs_of = [
        {"processes": n, "words": ["method/trx", *data_flags, *common, *more, "--out", str(tmp_path / name)]}
        for name, (n, more) in cases.items()
    ]
    codes, errors = trained_together(*jobs_of)
    assert {code for pair in codes for code in pair} == {0}, errors[-3000:]
    one = losses(tmp_path / "one")
    for name in ("two", "task by task"):
        assert losses(tmp_path / name) == pytest.approx(one, rel=0, abs=1e-9)
    assert losses(tmp_path / "other seed") != pytest.approx(one[:1], rel=0, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "steps", "tolerance"), [("float64", 20, 1e-9), ("float32", 5, 1e-5)])
def test_two_and_four_processes_agree_with_one(tmp_path, data_flags, precision, steps, tolerance):
    cases = {"one": (1, []), "two": (2, []), "four": (4, [])}
    flags = ["--train.precision", precision, "--train.steps", str(steps), "--train.validate-every", "10"]
    codes, errors = trained_together(*jobs(tmp_path, data_flags, cases, *flags))
    assert {code for pair in codes for code in pair} == {0}, errors[-3000:]
    for name in ("two", "four"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), rel=0, abs=tolerance)
        assert validations(tmp_path / name) == validations(tmp_path / "one")


@pytest.mark.slow
def test_two_processes_killed_twice_are_bit_identical(tmp_path, data_flags):
    """Short form of ``test_chaos.py``. A signal to one of two processes saves both within a step."""
    flags = [*data_flags, "--train.tasks-per-step", "2", "--train.steps", "6"]
    flags += ["--train.checkpoint-every", "2", "--train.validate-every", "3"]

    def job(name, **befalls):
        words = ["method/dmgal_adapter", *flags, "--out", str(tmp_path / name), "--resume"]
        where = {"befalls": {"log": str(tmp_path / name / "log.jsonl"), **befalls}} if befalls else {}
        return {"processes": 2, "words": words, **where}

    draw = random.Random(0)
    kills = [
        job("killed", signal="SIGKILL", rank=draw.randrange(2), lines=lines, delay=draw.uniform(0, 0.1))
        for lines in (2, 5)
    ]
    told = job("killed", signal="SIGUSR1", rank=1, lines=2)
    codes, errors = trained_together(job("whole"), told, *kills, job("killed"))
    assert codes[0] == [0, 0] == codes[-1], errors[-3000:]
    assert codes[1] == [75, 75], errors[-3000:]
    assert all(-9 in pair for pair in codes[2:-1]), codes
    assert_same_bits(tmp_path / "whole", tmp_path / "killed")
    assert len(log(tmp_path / "whole")) == 8
    assert not list((tmp_path / "killed").rglob("*.partial"))


@pytest.mark.slow
def test_three_stopped_processes_are_bit_identical(tmp_path, data_flags):
    """With three or more processes, the order of adding gradients matters. DDP can change it after the first step."""
    flags = ["--train.tasks-per-step", "3", "--train.steps", "4", "--train.checkpoint-every", "3"]
    words = ["method/dmgal_adapter", *data_flags, *flags, "--resume", "--out"]
    jobs_of = [{"processes": 3, "words": [*words, str(tmp_path / name)]} for name in ("whole", "stopped", "stopped")]
    jobs_of[1]["befalls"] = {"signal": "SIGUSR1", "rank": 1, "lines": 2, "log": str(tmp_path / "stopped/log.jsonl")}
    codes, errors = trained_together(*jobs_of)
    assert codes == [[0, 0, 0], [75, 75, 75], [0, 0, 0]], errors[-3000:]
    assert_same_bits(tmp_path / "whole", tmp_path / "stopped")

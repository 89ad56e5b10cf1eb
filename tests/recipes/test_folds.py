"""Classes left out in turn, if there are too few for validation classes of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trainings import log, validations

from dmgal.adapters import pretrained
from dmgal.cli import main
from dmgal.errors import DmgalError
from dmgal.recipes.run.config import DataOverrides, EpisodeConfig, Recipe, TrainConfig
from dmgal.recipes.run.data import build_catalog, read_split, split_of
from dmgal.recipes.run.evaluation import evaluation_data
from dmgal.recipes.run.folder import Run
from dmgal.recipes.training import trainer
from dmgal.recipes.training.folds import ChosenStep, Fold, has_too_few_to_validate, leave_classes_out
from dmgal.videos import VideoCatalog

STEPS = ["--train.steps", "4", "--train.validate-every", "2", "--train.checkpoint-every", "1"]
WAYS = ["--ways", "4"]
"""One more than the validation classes of the data."""


@pytest.fixture
def catalog(frame_folders: Path) -> VideoCatalog:
    return VideoCatalog.from_csv(frame_folders / "split.csv", frame_folders)


def recipe(n_way: int, steps: int = 4, patience: int | None = None) -> Recipe:
    return Recipe(episode=EpisodeConfig(n_way=n_way, n_query=1), train=TrainConfig(steps=steps, patience=patience))


def test_only_trainings_with_too_few_validation_classes_leave_out(catalog: VideoCatalog) -> None:
    assert has_too_few_to_validate(recipe(4), catalog)
    assert not has_too_few_to_validate(recipe(3), catalog)
    assert not has_too_few_to_validate(recipe(4, steps=0), catalog)
    assert not has_too_few_to_validate(recipe(4), VideoCatalog.from_folders(catalog.root / "train"))


@pytest.mark.parametrize(("num_classes", "n_way", "sizes", "ways"), [
    (9, 4, [3, 3, 3], (4, 3)), (9, 9, [3, 3, 3], (6, 3)), (7, 5, [2, 2, 3], (4, 2)), (6, 4, [2, 2, 2], (4, 2)),
    (5, 2, [2, 3], (2, 2)), (4, 4, [2, 2], (2, 2)),
])  # fmt: skip
def test_each_class_is_left_out_once(catalog, tmp_path, num_classes, n_way, sizes, ways) -> None:
    splits = split_of(catalog)
    known = [name for name, split in splits.items() if split != "test"]
    few = catalog.with_split({name: splits[name] for name in splits if name not in known[num_classes:]})
    whole, folds = leave_classes_out(recipe(n_way, patience=1), few, tmp_path)
    assert {name for name, split in split_of(whole).items() if split == "train"} == set(known[:num_classes])
    assert split_of(whole).items() >= split_of(catalog.split("test")).items()
    left_out = [fold.catalog.split("val").class_names for fold in folds]
    assert sorted(len(names) for names in left_out) == sizes
    assert sorted(name for names in left_out for name in names) == sorted(known[:num_classes])
    for fold in folds:
        assert sorted(fold.catalog.class_names) == sorted(known[:num_classes])
        assert (fold.recipe.episode.n_way, fold.val_ways) == ways
        assert fold.recipe.train.patience is None


def test_class_and_reversal_are_left_out_together(catalog: VideoCatalog, tmp_path: Path) -> None:
    test = catalog.split("test")
    whole, folds = leave_classes_out(recipe(4), test.with_split(dict.fromkeys(test.class_names, "train")), tmp_path)
    assert len(folds) == len(whole.reversal_pairs) == 2
    assert [len(fold.catalog.split("val").reversal_pairs) for fold in folds] == [1, 1]


def test_impossible_trainings_raise_before_the_first_fold(catalog, tmp_path, monkeypatch) -> None:
    names = catalog.split("train").class_names
    three = catalog.with_split(dict.fromkeys(names[:3], "train"))
    with pytest.raises(DmgalError, match=r"3 base and validation classes\n.*at least 4"):
        leave_classes_out(recipe(3), three, tmp_path)
    with pytest.raises(DmgalError, match="n_way=10 and 9 classes"):
        leave_classes_out(recipe(10), catalog, tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DmgalError, match=r"3 validation classes for tasks of 4 ways, and 2 processes"):
        leave_classes_out(recipe(4), catalog, tmp_path)


@pytest.mark.parametrize(("first", "second", "chosen"), [
    ({0: [0.5] * 9, 2: [0.6] * 9, 4: [0.4] * 9}, {0: [0.5] * 9, 2: [0.5] * 9, 4: [0.6] * 9}, 2),
    ({0: [0.5] * 9, 2: [0.4] * 9}, {0: [0.5] * 9, 2: [0.5] * 9}, 0),
    ({0: [0.5] * 4, 2: [0.0, 1.0, 1.0, 1.0]}, {0: [0.5] * 4, 2: [0.5, 0.0, 1.0, 1.0]}, 0),  # not significant
    ({2: [0.0, 1.0], 4: [1.0, 1.0]}, {2: [0.0, 0.0], 4: [0.0, 0.0]}, 4),
    ({2: [0.0], 4: [1.0], 6: [0.5]}, {2: [0.5], 6: [0.0]}, 2),  # a bad loss at step 4 of the second fold
])  # fmt: skip
def test_step_is_chosen_over_all_folds(tmp_path, catalog, first, second, chosen) -> None:
    for number, accuracies in enumerate((first, second)):
        (tmp_path / str(number)).mkdir()
        run = Run(tmp_path / str(number))
        run.log(step=min(accuracies), task_accuracies=[9.0])  # repeated after a kill
        for step, of_tasks in accuracies.items():
            run.log(step=step, task_accuracies=of_tasks)
    choice = ChosenStep.by([Fold(recipe(2), catalog, 2, tmp_path / str(number)) for number in range(2)])
    assert choice.only_step == chosen
    assert choice.accuracies(chosen).tasks.tolist() == [*first[chosen], *second[chosen]]


@pytest.mark.parametrize(("gains", "chosen"), [((0.2, 0.2, 0.2, 0.2), 2), ((0.8, 0.0, 0.0, 0.0), 0)], ids=str)
def test_a_gain_in_one_class_alone_does_not_replace_the_start(tmp_path, catalog, gains, chosen) -> None:
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        run, better = Run(tmp_path / str(number)), [0.2 + gain for gain in gains[2 * number : 2 * number + 2]]
        run.log(step=0, task_accuracies=[0.2] * 50, class_accuracies=[0.2, 0.2])
        run.log(step=2, task_accuracies=[sum(better) / 2] * 50, class_accuracies=better)
    choice = ChosenStep.by([Fold(recipe(2), catalog, 2, tmp_path / str(number)) for number in range(2)])
    assert choice.only_step == chosen


@pytest.fixture(scope="module")
def left_out_run(tmp_path_factory, data_flags) -> Path:
    out = tmp_path_factory.mktemp("left_out") / "run"
    assert main(["train", "method/smga", *data_flags, *WAYS, *STEPS, "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_training_on_all_classes_ends_at_the_step_of_the_folds(left_out_run, data_flags, capsys, tmp_path) -> None:
    folds = [left_out_run / "folds" / name for name in "123"]
    assert sorted(path.name for path in (left_out_run / "folds").iterdir()) == ["1", "2", "3"]
    for fold in folds:
        assert [step for step, _ in validations(fold)] == [2, 4]
        assert sorted(read_split(fold / "split.csv").values()) == ["train"] * 6 + ["val"] * 3
    mean = {step: sum(dict(validations(fold))[step] for fold in folds) / 3 for step in (2, 4)}
    ((last, accuracy),) = validations(left_out_run)
    assert last == max(mean, key=lambda step: mean[step]) and accuracy == pytest.approx(mean[last])
    assert [entry["step"] for entry in log(left_out_run) if "loss" in entry] == [*range(1, last + 1)]
    assert sorted(read_split(left_out_run / "split.csv").values()) == ["test"] * 4 + ["train"] * 9
    assert Run(left_out_run).recipe().episode.n_way == 4
    assert main(["evaluate", str(left_out_run), "--episodes", "10", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(left_out_run), "--split", "val", "--ways", "2", "--episodes", "10", "--quiet"]) == 2
    assert "no split 'val'" in capsys.readouterr().err
    # the learning rates are those of the folds, not of a shorter training
    rates = [[entry["learning_rate"] for entry in log(run) if "loss" in entry][:last] for run in (left_out_run, *folds)]
    assert all(rate == rates[0] for rate in rates)
    assert main(["train", "method/smga", *data_flags, *WAYS, *STEPS, "--out", str(left_out_run)]) == 2
    assert "already holds a run" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["folds/2", ""])
def test_resumed_run_equals_an_undisturbed_one(folder, left_out_run, data_flags, tmp_path, monkeypatch, capsys) -> None:
    out, step = tmp_path / "run", trainer.Trainer._train_step

    def interrupted(self, *arguments):
        if self.run.folder == out / folder and self.progress.step == 1:
            raise KeyboardInterrupt
        return step(self, *arguments)

    words = ["train", "method/smga", *data_flags, *WAYS, *STEPS, "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_train_step", interrupted)
        assert main(words) == 130
    assert (out / "folds" / "3").exists() == (folder == "")
    assert main(words) == 2  # without --resume
    assert main([*words, "--resume"]) == 0
    for part in ("folds/1", "folds/2", "folds/3", ""):
        assert validations(out / part) == validations(left_out_run / part)
        one, other = (load_file(run / part / "adapter/adapter_model.safetensors") for run in (out, left_out_run))
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_start_is_kept_if_no_step_is_better(data_flags, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    words = ["--adapter.start", "tiny-clip-motion", "--train.learning-rate", "0", "--data.num-frames", "8"]
    words += ["--train.steps", "1"]
    assert main(["train", "method/smga", *data_flags, *WAYS, *words, "--out", str(out)]) == 0
    assert "ends at step 0" in capsys.readouterr().err
    assert [step for step, _ in validations(out)] == [0] and not [entry for entry in log(out) if "loss" in entry]
    saved = load_file(out / "adapter" / "adapter_model.safetensors")
    start = load_file(Path(pretrained("tiny-clip-motion")) / "adapter_model.safetensors")
    assert saved.keys() == start.keys() and all(torch.equal(saved[name], start[name]) for name in saved)


@pytest.mark.slow
def test_four_class_folders_are_enough(frame_folders, data_flags, tmp_path, capsys) -> None:
    for folder in (frame_folders / "test").iterdir():
        shutil.copytree(folder, tmp_path / "videos" / folder.name)
    data = ["--data.root", str(tmp_path / "videos"), "--data.split-file", "None"]
    out = tmp_path / "run"
    assert main(["train", "method/smga", *data_flags, *data, *STEPS, "--out", str(out)]) == 0
    error = capsys.readouterr().err
    assert "4 train, 0 val, 0 test" in error and "each of 4 classes is left out by one of 2 runs" in error
    recipe, catalog = evaluation_data(Run(out), Run(out).recipe(), DataOverrides(), "val", progress=False)
    assert set(split_of(catalog).values()) == {"train"}
    assert build_catalog(recipe.data, False, out / "split.csv").class_splits == catalog.class_splits

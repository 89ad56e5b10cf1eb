"""Recipes are layered: the later wins, and what is not known fails and suggests."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

import dmgal.recipes.run.layers
from dmgal.errors import DmgalError
from dmgal.recipes.run.build import build_head
from dmgal.recipes.run.config import DataConfig, EpisodeConfig, Recipe, TrainConfig, parse
from dmgal.recipes.run.layers import (
    bundled_layers,
    from_mapping,
    merge_layers,
    read_layer,
    split_open_flags,
    to_mapping,
)
from dmgal.recipes.train import Train

CONFIGS = Path(dmgal.recipes.run.layers.__file__).parents[1] / "configs"


def parsed(*words: str) -> Recipe:
    return parse(words, prog="test", description="", wrapper=Train)[0].recipe


def layered(*names: str) -> Recipe:
    """Return the recipe of some layers, without the slow parser of flags."""
    return from_mapping(Recipe, merge_layers(map(read_layer, names)))


def test_flags_override_layers_and_later_layers_override_earlier(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("train: {steps: 1, seed: 1, learning_rate: 1e-3}\nadapter: {peft_type: DMGAL, bottleneck: 4}")
    second.write_text("train: {steps: 2, seed: 2}\nadapter: {signed: false}")
    recipe = parsed(str(first), str(second), "--train.seed", "3", "--adapter.bottleneck", "6", "--shots", "5")
    assert (recipe.train.learning_rate, recipe.train.steps, recipe.train.seed) == (1e-3, 2, 3)
    assert recipe.adapter == {"peft_type": "DMGAL", "bottleneck": 6, "signed": False}
    assert recipe.episode.k_shot == 5


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["0", "-1"], [0, -1]),
        (["[0, -1]"], [0, -1]),
        (["-1"], -1),
        (["0.5", "2."], [0.5, 2.0]),
        ([".5", "-.5", "1e-3", "-2.5E+1"], [0.5, -0.5, 0.001, -25.0]),
    ],
)
def test_open_flag_takes_several_numbers(words, value):
    rest, tree = split_open_flags(["--adapter.blocks", *words, "--shots", "5"], ["adapter"])
    assert rest == ["--shots", "5"] and tree == {"adapter": {"blocks": value}}
    assert split_open_flags(["--adapter.blocks=0", "-h"], ["adapter"]) == (["-h"], {"adapter": {"blocks": 0}})
    assert split_open_flags(["--adapter.blocks", *words, "demo"], ["adapter"]) == (["demo"], tree)


def test_help_shows_every_option_once_and_rare_ones_last(capsys):
    with pytest.raises(SystemExit) as exit_:
        parsed("--help")
    usual, heading, rare = capsys.readouterr().out.partition("advanced:")
    assert exit_.value.code == 0 and heading
    assert "--data.root" in usual and "--train.steps" in usual and "--out" in usual
    assert "--train.frame-memory" in rare and "--data.list-format" in rare and "--out" not in rare
    for section in ("data", "backbone", "text", "episode", "train"):
        for name in get_type_hints(get_type_hints(Recipe)[section]):
            flag = f"--{section}.{name.replace('_', '-')}"
            shown = [len(re.findall(rf"^\S? +{flag}\b(?!-)", part, re.MULTILINE)) for part in (usual, rare)]
            assert sum(shown) == (name != "loss_weights"), flag
    assert parsed("--train.max-bad-losses", "3").train.max_bad_losses == 3


def test_help_escapes_characters_that_the_output_lacks(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("data: {report: donn\u00e9es.csv}", encoding="utf-8")
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    monkeypatch.setattr("sys.stdout", output)
    with pytest.raises(SystemExit):
        parsed(str(tmp_path / "mine.yaml"), "--help")
    output.seek(0)
    assert "donn\\xe9es.csv" in output.read()


def test_section_of_another_class_replaces_earlier_one():
    below = {"head": {"name": "OTAM", "relaxation": 0.5}}
    assert merge_layers([below, {"head": {"name": "BiMHM"}}])["head"] == {"name": "BiMHM"}
    assert merge_layers([below, {"head": {"eps": 0.0}}])["head"] == {"name": "OTAM", "relaxation": 0.5, "eps": 0.0}


def test_earlier_layer_keeps_values_that_later_ones_omit():
    below = {"backbone": {"pooling": "map", "trainable": True}}
    assert merge_layers([below, {"backbone": {"name": "x"}}])["backbone"] == {**below["backbone"], "name": "x"}
    flags = ("--head.center", "both", "--head.name", "OTAM", "--shots=5", "--adapter.peft_type", "DMGAL")
    recipe = parsed("method/dmgal_adapter", *flags)
    assert recipe.head == {"name": "OTAM", "center": "both"} and recipe.episode.k_shot == 5


@pytest.mark.parametrize(
    "flags", [("--head.center", "["), ("--head.center",), ("--adapter.signed", "--quiet"), ("--head", "OTAM")]
)
def test_head_and_adapter_flags_without_value_raise(flags):
    with pytest.raises(DmgalError, match=flags[0]):
        parsed(*flags)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adapter: DMGAL", "a mapping of options"),
        ("head:", "a mapping of options"),
        ("train: {checkpoint_every: 0}", "at least 1"),
        ("train: {step: 3}", r"received: train\.step\n.*\n.*did you mean train\.steps\?"),
        ("trian: {}", "did you mean train"),
        ("train: {steps: many}", r"train\.steps: 'many'\n.*a whole number"),
        ("train: 3", "a mapping"),
        ("train: {loss_weights: {contrast: much}}", r"train\.loss_weights\.contrast: 'much'"),
        ("train: {loss_weights: 3}", "a mapping of options"),
        ("train: {precision: fp64}", "'float64'"),
        ("data: {crop_scale: [1]}", "a list of 2"),
        ("data: {flip: 1}", "true or false"),
        ("- a", "a list"),
        ("a: b: c", "cannot be read"),
    ],
)
def test_invalid_layer_raises(tmp_path, text, message):
    path = tmp_path / "layer.yaml"
    path.write_text(text)
    with pytest.raises(DmgalError, match=message):
        parsed(str(path))


OUT_OF_RANGE = {
    "data": ["num_frames: 1000000000", "num_workers: 1000000", "test_resize: .inf", "test_resize: .nan", "seed: -1"]
    + ["crop_scale: [0, 1]", "crop_scale: [0.5, .inf]", "color_jitter: 2", "num_frames: 0", "num_workers: -1"],
    "episode": ["n_way: 0", "k_shot: 1000000", "n_query: -3"],
    "train": ["steps: 10000000000", "learning_rate: .nan", "learning_rate: -1", "weight_decay: 1e999", "momentum: 1"]
    + ["warmup_steps: -1", "clip_norm: .inf", "ema: 1", "memory_budget: .inf", "two_pass: 0", "tasks_per_step: 0"]
    + ["validation_episodes: 100000000", "loss_weights: {a: .inf}", "patience: 0", "backbone_learning_rate: .inf"],
    "head": ["{name: HyRSM, num_base_classes: 1000000000}", "{name: BiMHM, logit_scale: .nan}"],
    "adapter": ["{peft_type: DMGAL, bottleneck: 1000000000}", "{peft_type: LORA, layers_to_transform: [1, 100000]}"],
}


@pytest.mark.parametrize(("section", "value"), [(name, value) for name in OUT_OF_RANGE for value in OUT_OF_RANGE[name]])
def test_every_number_has_a_range(tmp_path, section, value):
    path = tmp_path / "layer.yaml"
    path.write_text(f"{section}: {value if value.startswith('{') else f'{{{value}}}'}")
    with pytest.raises(DmgalError, match=rf"`{section}\.\w+.*` must be ") as caught:
        parsed(str(path))
    assert caught.value.received and caught.value.expected and caught.value.remedy


def test_numeric_options_of_a_recipe_have_bounds():
    for kind in (DataConfig, EpisodeConfig, TrainConfig):
        for name, hint in get_type_hints(kind, include_extras=True).items():
            is_numeric = hint in (int, float, int | None, float | None, tuple[float, float])
            assert not is_numeric or name == "ema", name


def test_loss_weights_are_merged_by_name(tmp_path):
    layer = tmp_path / "layer.yaml"
    layer.write_text("train: {loss_weights: {contrast: 1e-2, base_classes: 1}}")
    recipe = parsed(str(layer), "--train.loss-weights.base-classes", "0.5", "--train.steps", "3")
    assert recipe.train.loss_weights == {"contrast": 0.01, "base_classes": 0.5} and recipe.train.steps == 3
    with pytest.raises(DmgalError, match=r"--train\.loss-weights"):
        parsed("--train.loss-weights", "0.5")


def test_unknown_layer_suggests_a_known_one():
    with pytest.raises(DmgalError, match="did you mean method/dmgal_adapter"):
        parsed("method/dmgal_adaptor")


def test_recipe_round_trips_through_yaml_types():
    recipe = parsed("method/dmgal_ft", "data/moving_shapes")
    assert from_mapping(Recipe, to_mapping(recipe)) == recipe


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "Nobody"}, "BiMHM"),
        ({"name": "BiMHM", "centre": "video"}, r"head\.centre(.|\n)*did you mean head\.center\?"),
        ({"name": "BiMHM", "zzz": "video"}, r"head\.zzz(.|\n)*Remove"),
        ({"name": "MyHead"}, "DMGAL_PLUGINS"),
        ({"name": "otam"}, "OTAM"),
        ({"name": "TemporalMixer"}, "one of BiMHM, OTAM"),
        ({"name": "FrameDistanceHead"}, "one of BiMHM, OTAM"),
        ({"name": ["OTAM"]}, "one of BiMHM, OTAM"),
        ({"name": "BiMHM", "logit_scale": "foo"}, "head BiMHM"),
    ],
)
def test_unknown_head_or_option_lists_known_ones(options, message):
    with pytest.raises(DmgalError, match=message):
        build_head(options)


def test_per_data_values_apply_in_any_order_of_layers(tmp_path):
    method, data, later = (tmp_path / f"{name}.yaml" for name in ("method", "data", "later"))
    method.write_text(
        "train: {seed: 1, steps: 1}\nper_data: {mine: {train: {seed: 2, steps: 2}}, other: {train: {seed: 3}}}"
    )
    data.write_text("data: {name: mine}")
    later.write_text("train: {steps: 5}")
    for order in itertools.permutations([method, data]):
        recipe = parsed(*map(str, order), str(later))
        assert (recipe.train.seed, recipe.train.steps, recipe.data.name) == (2, 5, "mine")
    assert parsed(str(method)).train.seed == 1
    method.write_text("per_data: {mine: 3}")
    with pytest.raises(DmgalError, match="per_data"):
        parsed(str(method))


def test_benchmark_without_per_data_values_raises(tmp_path):
    method, benchmark, own = (tmp_path / f"{name}.yaml" for name in ("method", "benchmark", "own"))
    method.write_text("train: {seed: 1}\nper_data: {hmdb51: {train: {seed: 2}}, ucf101: {}}")
    benchmark.write_text("data: {name: ssv2_full}")
    own.write_text("data: {name: kitchen}")
    for order in itertools.permutations([method, benchmark]):
        with pytest.raises(DmgalError, match=r"data\.name: ssv2_full\n.*one of hmdb51, ucf101"):
            parsed(*map(str, order))
    seeds = {"hmdb51": 2, "ucf101": 1, "moving_shapes": 1}
    assert {name: parsed(str(method), f"data/{name}").train.seed for name in seeds} == seeds
    assert parsed(str(method), str(own)).train.seed == 1
    assert parsed("method/bi_mhm", str(benchmark)).data.name == "ssv2_full"


def test_per_data_values_are_those_of_the_papers():
    molo = layered("method/molo", "data/kinetics100").train
    assert (molo.learning_rate, molo.loss_weights["base_classes"], molo.loss_weights["long_short"]) == (2e-5, 0.1, 0.05)
    assert layered("data/ssv2_full", "method/hyrsm").train.loss_weights == {"base_classes": 0.6}
    rates = {"ssv2_small": 1e-4, "ssv2_full": 1e-4, "kinetics100": 2.2e-5, "hmdb51": 5e-5, "ucf101": 5e-5}
    for data_set, rate in rates.items():
        for method, expected in (("hyrsm", rate), ("molo", 2e-5 if data_set == "kinetics100" else rate)):
            recipe = layered(f"method/{method}", f"data/{data_set}")
            train = recipe.train
            assert (train.optimizer, train.learning_rate, train.backbone_learning_rate) == ("adam", expected, expected)
            assert recipe.episode.n_query == {"hyrsm": 7, "molo": 6}[method]
            assert recipe.head["center"] == "none"
        for method, tasks in (("trx", 16), ("strm", 16), ("dmgal_ft", 16), ("m2acl", 1)):
            train = layered(f"method/{method}", f"data/{data_set}").train
            assert (train.optimizer, train.tasks_per_step, train.weight_decay) == ("sgd", tasks, 0)
        team = layered("method/team", f"data/{data_set}")
        assert team.train.steps * team.train.tasks_per_step == 10_000
        assert team.head["center"] == "none"
        assert team.head["num_patterns"] == (50 if "ssv2" in data_set else 60)
    assert layered("method/hyrsm", "data/moving_shapes").head["center"] == "video"


def test_per_data_names_are_bundled_data_sets():
    known = {name.removeprefix("data/") for name in bundled_layers() if name.startswith("data/")}
    for name in bundled_layers():
        if name.startswith("method/"):
            layer = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
            assert set(layer.get("per_data", {})) <= known, name


def test_every_pair_of_method_and_data_set_builds_a_head():
    methods = [name for name in bundled_layers() if name.startswith("method/")]
    data = [name for name in bundled_layers() if name.startswith("data/")]
    assert (len(methods), len(data)) == (41, 7)
    heads: list[Mapping[str, object]] = []
    for method, data_set in itertools.product(methods, data):
        recipe = layered(method, data_set)
        assert recipe.data.name == data_set.removeprefix("data/")
        if recipe.head not in heads:
            build_head({**recipe.head}, channels=32, num_frames=8)
            heads.append(recipe.head)
        assert not (recipe.data.flip and "ssv2" in data_set)

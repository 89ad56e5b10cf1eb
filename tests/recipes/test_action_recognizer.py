"""The Python front door: the answers of the commands, whatever a clip is, by the conventions of scikit-learn."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import av
import numpy as np
import pytest

import dmgal.adapters
from dmgal import ActionRecognizer
from dmgal.cli import main
from dmgal.errors import DmgalError
from dmgal.recipes.run.estimator import NotFittedError
from dmgal.videos.decoding.video import open_video
from dmgal.videos.generated import write_video
from dmgal.videos.moving_shapes.clips import MovingShapes

CLASSES = {"down": 19, "round": 20, "up": 18}  # in the order of folders: it changes the last bits of sums
SHOTS = {"down": 1, "round": 1, "up": 2}  # the others calibrate the threshold by views


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, list[Path]]:
    """Three files of each class: ``clips/CLASS/N.mp4``."""
    root, shapes = tmp_path_factory.mktemp("clips"), MovingShapes(seed=5, clips_per_class=3, frames=9, pixels=48)
    paths: dict[str, list[Path]] = {name: [] for name in CLASSES}
    for name, motion in CLASSES.items():
        for clip in range(3):
            path = root / name / f"{clip}.mp4"
            path.parent.mkdir(exist_ok=True)
            write_video(path, shapes.clip(motion, clip))
            paths[name].append(path)
    return paths


@pytest.fixture(scope="module")
def support(clips) -> dict[str, list[Path]]:
    return {name: clips[name][: SHOTS[name]] for name in CLASSES}


@pytest.fixture(scope="module")
def recognizer(support) -> ActionRecognizer:
    """A recognizer of the support. Tests do not change it."""
    return ActionRecognizer.from_backbone().enroll(support)


@pytest.fixture
def new(recognizer) -> ActionRecognizer:
    """A recognizer without classes, which shares the loaded model."""
    return recognizer.__sklearn_clone__()


@pytest.fixture
def recognize(capsys):
    """Return the answers of the command for some clips."""

    def run(*words):
        capsys.readouterr()
        assert main(["recognize", *map(str, words), "--json", "--quiet"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def as_path(path):
    return path


def as_array(path):
    return as_tensor(path).permute(0, 2, 3, 1).numpy()


def as_tensor(path):
    video = open_video(path)
    return video.read(range(video.num_frames))


def as_container(path):
    return av.open(str(path))  # closed when it is collected


KINDS = [as_path, as_array, as_container]


def assert_same(answer, told):
    """Compare an answer with another one, or with that of the command."""
    answer, told = (one if isinstance(one, dict) else asdict(one) for one in (answer, told))
    assert (answer["recognized"], answer["best"]) == (told["recognized"], told["best"])
    for name, score in told["scores"].items():
        assert answer["scores"][name] == pytest.approx(score, abs=1e-6)


@pytest.fixture(scope="module")
def gallery_of_command(support, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("command")
    for name, paths in support.items():
        (root / "actions" / name).mkdir(parents=True)
        for path in paths:
            (root / "actions" / name / path.name).symlink_to(path)
    assert main(["enroll", str(root / "actions"), "--out", str(root / "g.safetensors"), "--quiet"]) == 0
    return root / "g.safetensors"


@pytest.mark.parametrize("kind", KINDS)
def test_answers_equal_those_of_the_commands(kind, clips, support, gallery_of_command, recognize, new):
    told = recognize(gallery_of_command, *(clips[name][2] for name in CLASSES))
    recognizer = new.enroll({name: [*map(kind, paths)] for name, paths in support.items()})
    assert recognizer.gallery.rejection.threshold == pytest.approx(told["rejection"]["threshold"], abs=1e-6)
    for name, one in zip(CLASSES, told["videos"], strict=True):
        assert_same(recognizer.recognize(kind(clips[name][2])), one)


def test_saved_gallery_gives_the_same_answers(recognizer, clips, recognize, tmp_path, capsys):
    path, clip = tmp_path / "saved.safetensors", clips["down"][2]
    recognizer.save(path)
    answer = recognizer.recognize(clip)
    loaded = ActionRecognizer.load(path)
    assert_same(loaded.recognize(clip), answer)
    assert loaded.classes_.tolist() == recognizer.classes_.tolist() == [*CLASSES]
    assert_same(recognize(path, clip)["videos"][0], answer)
    assert main(["recognize", str(path), str(clip), "--quiet"]) == 0
    assert f"{clip}: {answer}\n" in capsys.readouterr().out
    assert str(path.parent) not in path.read_bytes().decode("latin1")


def test_classes_are_added_one_by_one_and_removed(new, recognizer, support, clips):
    grown = new.enroll({"down": support["down"], "round": support["round"], "left": clips["round"][2:]})
    grown.enroll({"up": support["up"][0]}).remove("left").enroll({"up": as_tensor(support["up"][1])})
    assert grown.classes_.tolist() == [*CLASSES] and grown.gallery.shots == (1, 1, 2)
    assert_same(grown.recognize(clips["up"][2]), recognizer.recognize(clips["up"][2]))
    with pytest.raises(DmgalError, match="no such class"):
        grown.remove("left")


def test_folders_are_enrolled(clips, new):
    root = clips["up"][0].parents[1]
    assert new.enroll({"up": root / "up"}).gallery.shots == (3,)
    with pytest.raises(DmgalError, match="enrolled twice"):
        new.enroll(root)
    assert new.__sklearn_clone__().enroll(root).gallery.shots == (3, 3, 3)


def test_unknown_is_the_answer_of_recognize_only(recognizer, clips):
    path = clips["down"][2]
    answer = recognizer.recognize(path)
    strict = copy.copy(recognizer)
    rejection = replace(recognizer.gallery.rejection, threshold=answer.score + 1)
    strict._gallery, strict._prepared = replace(recognizer.gallery, rejection=rejection), None
    unknown = strict.recognize(path)
    assert unknown.recognized is None and unknown.best == answer.best and str(unknown).startswith("(unknown)\n")
    assert f"score: {unknown.score:.2f}, below the threshold" in str(unknown)
    assert strict.set_params(unknown=False).recognize(path).recognized == answer.best
    assert strict.predict([path]) == [answer.best]


def test_fit_predict_and_score(clips, new):
    videos = [clips[name][clip] for clip in (0, 1) for name in ("round", "up")]
    recognizer = new.fit(videos, ["round", "up"] * 2)
    assert recognizer.classes_.tolist() == ["round", "up"]
    probabilities, predicted = recognizer.predict_proba(videos), recognizer.predict(videos)
    assert probabilities.shape == (4, 2) and probabilities.sum(1) == pytest.approx(np.ones(4))
    assert predicted.tolist() == recognizer.classes_[probabilities.argmax(1)].tolist() == ["round", "up"] * 2
    assert recognizer.predict(np.array([str(path) for path in videos])).tolist() == predicted.tolist()
    assert recognizer.score(videos, ["round", "up", "up", "up"]) == 0.75
    assert recognizer.score(videos, ["round", "up", "up", "up"], sample_weight=[1, 1, 0, 0]) == 1


def test_integer_labels_stay_integers_until_they_are_saved(clips, new, tmp_path):
    recognizer = new.fit([clips["up"][0], clips["down"][0]], np.array([10, 9]))
    assert recognizer.classes_.tolist() == [9, 10] and recognizer.predict(clips["up"][:1]).tolist() == [10]
    with pytest.raises(DmgalError, match="no names of classes"):
        recognizer.enroll({"round": clips["round"]})
    recognizer.save(tmp_path / "g.safetensors")
    loaded = ActionRecognizer.load(tmp_path / "g.safetensors")
    assert loaded.predict(clips["up"][:1]).tolist() == ["10"] and loaded.score(clips["up"][:1], [10]) == 1


def test_run_and_its_gallery(save_run, clips, support, tmp_path, recognize):
    run, path = save_run(tmp_path / "mine", "dmgal_adapter"), tmp_path / "g.safetensors"
    recognizer = ActionRecognizer.load(run, shortlist=2).enroll(support)
    recognizer.save(path)
    answer = recognizer.recognize(clips["up"][2])
    assert sum(score.logit is not None for score in answer.scores.values()) == 2
    assert_same(recognize(run, path, clips["up"][2])["videos"][0], answer)
    assert_same(ActionRecognizer.load(path, run=run).recognize(clips["up"][2]), answer)
    whole = ActionRecognizer.load(path, run=run, shortlist=0).recognize(clips["up"][2])
    assert all(score.logit is not None for score in whole.scores.values())
    with pytest.raises(DmgalError, match=r"(?s)without the run mine.*load\(GALLERY, run=RUN\)"):
        ActionRecognizer.load(path)
    with pytest.raises(DmgalError, match="different models"):
        ActionRecognizer.load(path, adapter=None)


def test_frozen_backbone_without_an_adapter_is_loaded_again(clips, support, tmp_path, recognize):
    recognizer = ActionRecognizer.from_backbone("tiny-clip", adapter=None).enroll(support)
    recognizer.save(tmp_path / "g.safetensors")
    assert_same(
        recognize(tmp_path / "g.safetensors", clips["up"][2])["videos"][0], recognizer.recognize(clips["up"][2])
    )


def test_gallery_names_its_model_without_folders(support, clips, tmp_path, monkeypatch):
    folder = shutil.copytree(dmgal.adapters.pretrained("tiny-clip-motion"), tmp_path / "here" / "mine")
    recognizer, path = ActionRecognizer(adapter=folder).enroll(support), tmp_path / "g.safetensors"
    recognizer.save(path)
    with pytest.raises(DmgalError, match=r"(?s)model of this gallery.*'mine'.*load\(GALLERY, "):
        ActionRecognizer.load(path)
    answer = recognizer.recognize(clips["up"][2])
    assert_same(ActionRecognizer.load(path, adapter=folder).recognize(clips["up"][2]), answer)
    monkeypatch.chdir(tmp_path / "here")
    assert_same(ActionRecognizer.load(path).recognize(clips["up"][2]), answer)


REFUSED = {
    "no mapping": (lambda r, c: r.enroll([c]), "clips by class"),
    "no class": (lambda r, c: r.enroll({}), "nothing to enroll"),
    "no clip": (lambda r, c: r.enroll({"new": []}), "no clips of new"),
    "blank name": (lambda r, c: r.enroll({" ": c}), "no names of classes"),
    "name that is a number": (lambda r, c: r.enroll({0.5: c}), "no names of classes"),
    "mixed names": (lambda r, c: r.enroll({1: c, "one": c}), "no names of classes"),
    "enrolled already": (lambda r, c: r.enroll({"new": r.first}), "enrolled twice"),
    "a number as clip": (lambda r, c: r.enroll({"new": 3}), "not a clip"),
    "a frame as clip": (lambda r, c: r.enroll({"new": [as_array(c)[0]]}), "one frame"),
    "missing file to enroll": (lambda r, c: r.enroll({"new": c.with_name("none.mp4")}), "none.mp4"),
    "missing folder": (lambda r, c: r.enroll(c.with_name("none")), "none"),
    "missing file": (lambda r, c: r.recognize(c.with_name("none.mp4")), "no such file"),
    "floats": (lambda r, c: r.recognize(as_array(c) / 255), "no known range"),
    "several to recognize": (lambda r, c: r.recognize([c, c]), "not a clip"),
    "one to predict": (lambda r, c: r.predict(c), "recognize"),
    "one array to predict": (lambda r, c: r.predict(as_array(c)), "recognize"),
    "none to predict": (lambda r, c: r.predict([]), "0 clips"),
    "labels that do not match": (lambda r, c: r.fit([c, c], ["a"]), "2 clips and 1 labels"),
    "labels of a score that do not match": (lambda r, c: r.score([c], ["a", "b"]), "1 clips and 2 labels"),
    "twice": (lambda r, c: r.fit([c, c], ["a", "b"]), "enrolled twice"),
    "unknown parameter": (lambda r, c: r.set_params(way=5), "backbone"),
    "no run": (lambda r, c: ActionRecognizer.load(c.parent), "holds no run"),
    "no gallery": (lambda r, c: ActionRecognizer.load(c), "gallery"),
    "no backbone": (lambda r, c: ActionRecognizer.from_backbone("tiny-clap"), "tiny-clap"),
    "no adapter": (lambda r, c: ActionRecognizer.from_backbone(adapter="tiny-clip-notion"), "tiny-clip-motion"),
}


@pytest.mark.parametrize("call, message", REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_and_changes_nothing(call, message, recognizer, support, clips):
    other = copy.copy(recognizer)
    other.first = support["up"][0]
    with pytest.raises(DmgalError, match=message):
        call(other, clips["round"][2])
    assert other.classes_.tolist() == [*CLASSES]


# ---- scikit-learn's conventions ----


def test_constructor_only_stores_its_arguments(tmp_path):
    recognizer = ActionRecognizer(tmp_path / "no run", views=3)
    params = recognizer.get_params()
    assert vars(recognizer) == params and params["run"] == tmp_path / "no run" and params["backbone"] == "tiny-clip"
    assert repr(recognizer) == f"ActionRecognizer(run={tmp_path / 'no run'!r}, views=3)"
    assert recognizer.set_params(run=None, views=1) is recognizer and recognizer.get_params()["views"] == 1
    for question in ("classes_", "gallery"):
        with pytest.raises(NotFittedError, match="Call enroll or fit"):
            getattr(recognizer, question)
        assert not hasattr(recognizer, question)  # as an attribute that fit sets
    with pytest.raises(NotFittedError):
        recognizer.predict([])


def test_copies_share_the_model_only(recognizer, clips):
    clone = recognizer.__sklearn_clone__()
    assert clone.model is recognizer.model and not hasattr(clone, "classes_")
    assert clone.set_params(adapter=None).model is not recognizer.model
    copied = copy.deepcopy(recognizer)
    assert copied._loaded is None  # loaded again, as in another process
    assert_same(copied.recognize(clips["up"][2]), recognizer.recognize(clips["up"][2]))


def test_a_model_without_finite_states_enrolls_nothing():
    recognizer = ActionRecognizer.from_backbone(adapter=None)
    next(recognizer.model.recognizer.parameters()).data.fill_(float("nan"))
    clip = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    with pytest.raises(DmgalError, match="no numbers for these clips"):
        recognizer.enroll({"wave": [clip]})

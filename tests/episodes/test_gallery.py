"""Galleries give the logits of an episode, and adding or removing clips does not change the others."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import forked
import peft
import pytest
import torch
from gallery_cases import FRAMES, clustered, gallery, task, undivided
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from dmgal.adapters import DmgalConfig, SmgaConfig
from dmgal.backbones import ClassTexts, FrameEncoder, load_backbone
from dmgal.episodes import Episode, FewShotRecognizer
from dmgal.episodes.evaluation.states import PrecomputedStates, precompute_states
from dmgal.episodes.gallery import gallery_file
from dmgal.episodes.gallery.calibration import find_rejection
from dmgal.episodes.gallery.gallery_file import checksum, load_gallery, save_gallery
from dmgal.episodes.gallery.task import GalleryTask
from dmgal.episodes.gallery.texts import added_texts
from dmgal.episodes.heads import BiMHM, DmgalFT
from dmgal.errors import DmgalError


def recognizer(config, head, pooling=None):
    torch.manual_seed(0)
    model = peft.get_peft_model(load_backbone("tiny-clip"), config)
    for name, parameter in model.named_parameters():
        if "dmgal_" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return FewShotRecognizer(FrameEncoder(model, pooling), head).eval()


RECOGNIZERS = {
    "no task layer": lambda: recognizer(SmgaConfig(num_frames=FRAMES), BiMHM(center="video")),
    "cmga": lambda: recognizer(DmgalConfig(num_frames=FRAMES), BiMHM(center="video")),
    "cmga, all patches": lambda: recognizer(DmgalConfig(num_frames=FRAMES), BiMHM(center="video"), "patch_mean"),
    "cmga under a head that prepares": lambda: recognizer(DmgalConfig(num_frames=FRAMES), DmgalFT(96, FRAMES), "map"),
}


def episode():
    generator = torch.Generator().manual_seed(1)
    videos = torch.randint(0, 256, (9, FRAMES, 3, 48, 48), dtype=torch.uint8, generator=generator)
    return Episode(videos[:5], torch.tensor([0, 1, 2, 0, 3]), videos[5:], torch.tensor([2, 1, 0, 3]), tuple("abcd"))


@pytest.mark.parametrize("name", RECOGNIZERS)
@torch.no_grad()
def test_gallery_logits_equal_episode(name):
    model, task = RECOGNIZERS[name](), episode()
    expected = model(task).logits
    one_by_one = PrecomputedStates.cat([precompute_states(model, video.unsqueeze(0)) for video in task.support])
    logits = GalleryTask(model, one_by_one, task.support_labels).logits(precompute_states(model, task.query))
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in RECOGNIZERS if name.startswith("cmga")])
@torch.no_grad()
def test_shortlist_is_the_task_of_the_best_classes_without_attention(name):
    model, task = RECOGNIZERS[name](), episode()
    support, query = (precompute_states(model, videos) for videos in (task.support, task.query))
    logits = GalleryTask(model, support, task.support_labels, shortlist=2).logits(query)
    assert (logits.isfinite().sum(1) == 2).all()
    alone = []  # support videos do not attend to others, so their features are those without attention
    for videos in (task.support, task.query):
        state = model.encoder.encode(videos)
        alone.append(model.head.prepare(model.encoder.relate(state, state)[0]))
    best = model.head.compare(alone[0], task.support_labels, alone[1]).logits.topk(2).indices
    for place, classes in enumerate(best.sort().values):
        kept = torch.isin(task.support_labels, classes)
        labels = torch.searchsorted(classes, task.support_labels[kept])
        small = Episode(task.support[kept], labels, task.query[place : place + 1], labels[:1], ("one", "other"))
        torch.testing.assert_close(logits[place, classes], model(small).logits[0], rtol=1e-5, atol=1e-5)
    whole = GalleryTask(model, support, task.support_labels).logits(query)
    assert torch.equal(GalleryTask(model, support, task.support_labels, shortlist=4).logits(query), whole)


def test_useless_shortlist_raises():
    model = RECOGNIZERS["no task layer"]()
    with pytest.raises(DmgalError, match="without a Cmga"):
        GalleryTask(model, undivided(), torch.tensor([0, 1]), shortlist=2)
    with pytest.raises(DmgalError, match="at least 1"):
        GalleryTask(RECOGNIZERS["cmga"](), undivided(), torch.tensor([0, 1]), shortlist=0)


def kept_states(made):
    """Return the states of clips and views by class and clip name."""
    clips = [(made.class_names[label], clip) for label, clip in zip(made.labels, made.clips, strict=True)]
    of_clips = {key: made.states.select(slice(place, place + 1)) for place, key in enumerate(clips)}
    of_views = {clips[clip]: made.views.select(slice(row, row + 1)) for row, clip in enumerate(made.view_clips)}
    return of_clips, of_views


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key].tensors(), other[key].tensors(), rtol=0, atol=0)


@settings(max_examples=40)
@given(st.data())
def test_adding_and_removing_do_not_change_other_clips(data):
    names = data.draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5, unique=True))
    made = gallery({name: data.draw(st.integers(1, 3)) for name in names})
    for step in range(1, 4):
        before, views_before = kept_states(made)
        if data.draw(st.booleans()) and made.n_way > 1:
            gone = data.draw(st.sampled_from(made.class_names))
            made = made.removed([gone])
            stay = {key: state for key, state in before.items() if key[0] != gone}
            assert_same(kept_states(made)[0], stay)
            assert_same(kept_states(made)[1], {key: v for key, v in views_before.items() if key[0] != gone})
            continue
        more = data.draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=3, unique=True))
        new = gallery({name: data.draw(st.integers(1, 2)) for name in more}, seed=step)
        new = replace(new, clips=tuple(f"{step}/{clip}" for clip in new.clips))
        added, (of_new, views_of_new) = made.added(new), kept_states(new)
        now, views_now = kept_states(added)
        assert_same(now, {**before, **of_new})
        alone = {name for name, shots in zip(added.class_names, added.shots, strict=True) if shots == 1}
        assert_same(views_now, {k: v for k, v in {**views_before, **views_of_new}.items() if k[0] in alone})
        made = added


def test_invalid_gallery_raises():
    with pytest.raises(DmgalError, match="no class"):
        gallery({})
    with pytest.raises(DmgalError, match="same name"):
        gallery({"a": 1, "b": 1}, class_names=("a", "a"))
    with pytest.raises(DmgalError, match="no clip") as caught:
        gallery({"a": 1, "b": 1}, class_names=("a", "b", "lonely"))
    assert "lonely" in str(caught.value)
    with pytest.raises(DmgalError, match="enrolled twice") as caught:
        gallery({"a": 1, "b": 1}, contents=(7, 7))
    assert "a/0 of a and b/0 of b" in str(caught.value)
    with pytest.raises(DmgalError, match="enrolled twice"):
        gallery({"a": 2}).added(gallery({"a": 2}))
    with pytest.raises(DmgalError, match="no such class"):
        gallery({"a": 2}).removed(["b"])
    with pytest.raises(DmgalError, match="Nothing would be left"):
        gallery({"a": 2}).removed(["a"])


def test_other_model_error_names_differences():
    made = gallery({"a": 1})
    with pytest.raises(DmgalError) as caught:
        made.check_model({"backbone": "large", "frames": str(FRAMES)})
    assert caught.value.received == "backbone='large'" and caught.value.expected == "backbone='tiny', as saved"
    with pytest.raises(DmgalError, match="frames='16'"):
        made.added(gallery({"b": 1}, seed=1, made_with={"backbone": "tiny", "frames": "16"}))


def test_file_round_trip(tmp_path):
    made = gallery({"a": 2, "b": 1, "caf\udce9 läuft": 1})
    made = replace(made, rejection=find_rejection(task(made), made.views, made.view_clips, progress=False))
    save_gallery(made, tmp_path / "new" / "g.safetensors")
    read = load_gallery(tmp_path / "new" / "g.safetensors")
    for name in ("class_names", "clips", "contents", "made_with", "rejection"):
        assert getattr(read, name) == getattr(made, name)
    for one, other in zip(kept_states(read), kept_states(made), strict=True):
        assert_same(one, other)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["g.safetensors"]


@pytest.mark.parametrize("offset", [-5, 600, 300])
def test_changed_byte_raises(tmp_path, offset):
    path = tmp_path / "g.safetensors"
    save_gallery(gallery({"a": 3, "b": 3}), path)
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(DmgalError, match=r"damaged|cannot be read"):
        load_gallery(path)


def test_invalid_file_raises(tmp_path, monkeypatch):
    path = tmp_path / "g.safetensors"
    with pytest.raises(DmgalError, match="no such gallery"):
        load_gallery(path)
    save_gallery(gallery({"a": 3}), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DmgalError, match="cannot be read"):
        load_gallery(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(DmgalError, match="not a gallery"):
        load_gallery(path)
    with monkeypatch.context() as patch:
        patch.setattr(gallery_file, "FORMAT", 9)
        save_gallery(gallery({"a": 3}), path)
    with pytest.raises(DmgalError, match=r"written by another version\.\n.*format 9"):
        load_gallery(path)


def test_texts_of_other_prompts_are_not_added():
    texts = ClassTexts(("a",), torch.eye(2)[:1], 1.0, 0.0, "tiny-clip")
    with pytest.raises(DmgalError, match=r"cannot be compared with those of the gallery\.\n.*weight=2\.0"):
        added_texts(texts, replace(texts, class_names=("b",), weight=2.0), is_same_kind=True)


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from dmgal.episodes.gallery.gallery_file import load_gallery, save_gallery
from dmgal.errors import DmgalError
path = Path(sys.argv[1])
gallery = load_gallery(path).removed(["a"])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
before = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
try:
    save_gallery(gallery, path)
except DmgalError as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_failed_write_leaves_old_gallery(tmp_path: Path):
    path = tmp_path / "g.safetensors"
    save_gallery(gallery({"a": 3, "b": 3}), path)
    before = path.read_bytes()
    result = forked.run(["-c", FULL_DISK, str(path)])
    assert result.returncode == 0, result.stderr
    assert "The gallery cannot be written." in result.stdout and "what to do" in result.stdout
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["g.safetensors"]


@pytest.mark.parametrize(
    ("counts", "source", "known"),
    [
        ({"a": 3, "b": 2, "c": 2}, "held-out clips", 7),
        ({"a": 1, "b": 1, "c": 1}, "augmented views", 3),
        ({"a": 2, "b": 1, "c": 1}, "held-out clips and augmented views", 4),
    ],
)
def test_threshold_separates_known_from_unknown(counts, source, known):
    made = clustered(counts)
    found = find_rejection(task(made), made.views, made.view_clips, progress=False)
    assert (found.source, found.known, found.unknown) == (source, known, len(made))
    assert found.known_kept == 1 and found.unknown_accepted == 0
    outside = undivided(frames=10 * torch.eye(6)[5].expand(1, FRAMES, 6))
    inside, outside = (task(made).scores(clips, task(made).logits(clips), found) for clips in (made.states, outside))
    assert (inside >= found.threshold).all() and outside.max() < found.threshold


def test_held_out_clip_is_not_compared_with_itself():
    made = clustered({"a": 2, "b": 2, "c": 2}, spread=0.5)
    found = find_rejection(task(made), made.views, made.view_clips, progress=False)
    scores = task(made).scores(made.states, task(made).logits(made.states), found)  # each is compared with itself
    assert found.threshold < scores.min()


def test_gallery_of_one_class_has_a_threshold():
    made = clustered({"a": 4})
    found = find_rejection(task(made), made.views, made.view_clips, progress=False)
    assert (found.unknown, found.unknown_accepted) == (0, None)
    assert 0.5 < found.known_kept <= 1 and task(made).logits(made.states).shape == (4, 1)


def test_number_of_held_out_clips_is_limited():
    made = clustered({"a": 5, "b": 5, "c": 5})
    found = find_rejection(task(made), made.views, made.view_clips, most=6, progress=False)
    assert (found.known, found.unknown) == (6, 6)


REJECTION = {
    "threshold": 0.0,
    "source": "held-out clips",
    "known": 2,
    "unknown": 2,
    "known_kept": 1.0,
    "unknown_accepted": None,
}
FORGED = {
    "not JSON": lambda content: "{",
    "a list": lambda content: "[1]",
    "no format": lambda content: "{}",
    "deep": lambda content: "[" * 60_000,
    "labels": lambda content: json.dumps({**content, "clips": content["clips"][1:]}),
    "classes": lambda content: json.dumps({**content, "class_names": ["a"]}),
    "numbers as names": lambda content: json.dumps({**content, "class_names": [1, 2]}),
    "contents": lambda content: json.dumps({**content, "contents": ["x"] * len(content["contents"])}),
    "made with": lambda content: json.dumps({**content, "made_with": [1]}),
    "rejection": lambda content: json.dumps({**content, "rejection": {"x": 1}}),
    "shares": lambda content: json.dumps({**content, "rejection": {**REJECTION, "known_kept": "all"}}),
    "source": lambda content: json.dumps({**content, "rejection": {**REJECTION, "source": 1}}),
    "texts": lambda content: json.dumps({**content, "texts": []}),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_a_forged_gallery_with_its_checksum_is_refused(tmp_path, forge):
    path = tmp_path / "g.safetensors"
    save_gallery(gallery({"a": 2, "b": 1}), path)
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    text = forge(json.loads(metadata["gallery"]))
    save_file(tensors, path, {"gallery": text, "checksum": checksum(text, tensors)})
    with pytest.raises(DmgalError, match=r"g\.safetensors") as caught:
        load_gallery(path)
    assert caught.value.expected and caught.value.remedy

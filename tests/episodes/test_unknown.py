"""Scores of unknown actions, their measures, and galleries with negatives."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from gallery_cases import FRAMES, clustered, gallery, task, undivided

from dmgal.episodes.gallery.calibration import KNOWN_KEPT, UNKNOWN_ACCEPTED, find_rejection
from dmgal.episodes.gallery.gallery_file import load_gallery, save_gallery
from dmgal.episodes.gallery.negatives import Negatives
from dmgal.episodes.gallery.recognition import Recognition
from dmgal.episodes.gallery.task import Rejection
from dmgal.episodes.gallery.unknown import (
    accepted_unknown,
    agreement,
    area_under_roc,
    calibration_error,
    class_adjusted,
    class_offsets,
    energy,
    find_temperature,
    known_over_others,
    largest_logit,
    mahalanobis,
    margin,
    nearest_clips,
    probability,
    profile,
    t_norm,
    z_norm,
)
from dmgal.errors import DmgalError

LOGITS = torch.tensor([[3.0, 1.0, 0.0], [0.5, 0.4, 0.3], [-2.0, 4.0, 4.0]])


def test_scores_of_logits():
    torch.testing.assert_close(largest_logit(LOGITS), torch.tensor([3.0, 0.5, 4.0]))
    torch.testing.assert_close(energy(LOGITS), LOGITS.exp().sum(1).log())
    torch.testing.assert_close(margin(LOGITS), torch.tensor([2.0, 0.1, 0.0]))
    torch.testing.assert_close(probability(LOGITS)[0], LOGITS[0].exp()[0] / LOGITS[0].exp().sum())
    torch.testing.assert_close(nearest_clips(LOGITS, 2), torch.tensor([2.0, 0.45, 4.0]))
    torch.testing.assert_close(nearest_clips(LOGITS, 9), LOGITS.mean(1))
    alike, unlike = agreement(LOGITS[:1], LOGITS[:1]), agreement(LOGITS[:1], LOGITS[:1].flip(1))
    assert alike > unlike


def test_mahalanobis_measures_in_units_of_the_spread_within_classes():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2).repeat_interleave(200)
    noise = torch.randn(400, 2, generator=generator) * torch.tensor([3.0, 0.1])
    support = torch.tensor([[0.0, 0.0], [50.0, 0.0]])[labels] + noise
    query = torch.tensor([[3.0, 0.0], [0.0, 1.0]])  # within the spread of a class, and far outside of it
    along, across = mahalanobis(query, support, labels, 0.01)
    assert along > -2 and across < -10
    along, across = mahalanobis(query, support, labels, 1.0)
    assert along < across  # the Euclidean distance


def test_the_extra_class_has_negatives_and_a_constant():
    far = torch.full((3, 5), -100.0)
    torch.testing.assert_close(known_over_others(LOGITS, far, 2.0), energy(LOGITS) - 2.0)
    torch.testing.assert_close(known_over_others(LOGITS, LOGITS, -torch.inf), torch.zeros(3))


def test_offsets_are_what_a_class_deviates_from_all_and_shrink_with_few_clips():
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 2])
    own = torch.tensor([4.0, 4.0, 4.0, 4.0, 4.0, 1.0, torch.nan])  # the clip of class 2 was not held out
    torch.testing.assert_close(class_offsets(own, labels), torch.tensor([1.5 * 5 / 10, -1.5 * 1 / 6, 0.0]))
    assert class_offsets(torch.full((7,), torch.nan), labels).tolist() == [0, 0, 0]


def test_the_best_class_is_compared_with_its_own_clips():
    adjusted = class_adjusted(LOGITS, torch.tensor([2.0, 0.5, -9.0]))
    torch.testing.assert_close(adjusted, torch.tensor([1.0, -1.5, 3.5]))


def test_norms_are_in_units_of_the_cohort():
    cohort = torch.tensor([[0.0, 10.0], [2.0, 30.0]])
    spread = cohort.std(0)
    logits = torch.tensor([[3.0, 20.0], [1.0, 34.0]])
    torch.testing.assert_close(z_norm(logits, cohort), torch.tensor([2.0 / spread[0], 14.0 / spread[1]]))
    torch.testing.assert_close(z_norm(logits * 5 - 1, cohort * 5 - 1), z_norm(logits, cohort))
    torch.testing.assert_close(
        t_norm(logits, logits.flip(1) - 4), (logits.amax(1) - logits.mean(1) + 4) / logits.std(1)
    )


def test_a_profile_resembles_that_of_a_known_class():
    generator = torch.Generator().manual_seed(0)
    means, labels = torch.tensor([[0.0, 5.0, 9.0], [7.0, -3.0, 2.0]]), torch.arange(2).repeat_interleave(20)
    support = means[labels] + torch.randn(40, 3, generator=generator)
    known, between, far = profile(torch.stack([means[1], means.mean(0), means[0] + 50]), support, labels)
    assert known > -0.5 > between > far
    torch.testing.assert_close(profile(support * 4 + 1, support * 4 + 1, labels), profile(support, support, labels))


def test_measures_of_scores():
    known, unknown = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 2.0])
    assert area_under_roc(known, unknown) == pytest.approx((4 + 2.5) / 8)
    assert area_under_roc(known, known) == 0.5
    assert accepted_unknown(torch.arange(101.0), torch.tensor([10.0, 30.0, 50.0, 70.0]), kept=0.8) == 0.75


def test_temperature_recovers_the_scale_of_logits():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 5, generator=generator)
    labels = torch.distributions.Categorical(logits=logits).sample()
    assert find_temperature(3 * logits, labels) == pytest.approx(3, rel=0.2)
    probabilities = logits.softmax(1).max(1).values
    right = logits.argmax(1) == labels
    assert calibration_error(probabilities, right) < 0.03 < calibration_error((3 * logits).softmax(1).amax(1), right)


def test_a_few_clips_without_an_error_do_not_give_certainty():
    assert find_temperature(3 * torch.eye(3), torch.arange(3)) > 0.5


def test_probabilities_use_the_temperature_and_the_answer_does_not():
    one = Recognition(torch.tensor([2.0, 0.0]), score=0.0, threshold=1.0, temperature=2.0)
    torch.testing.assert_close(one.probabilities, torch.tensor([1.0, 0.0]).double().softmax(0))
    assert one.label == 0 and not one.known


def test_a_class_of_similar_clips_has_a_higher_threshold():
    """Around class "a" clips are alike, around "b" they differ: the same logit is unknown for "a" and known for "b"."""
    made = clustered({"a": 5, "b": 5})
    generator = torch.Generator().manual_seed(0)
    states = made.states.query["frames"].clone()
    states[5:] += 8 * torch.randn(states[5:].shape, generator=generator)
    one = task(replace(made, states=undivided(frames=states)))
    found = find_rejection(one, made.views, made.view_clips, progress=False)
    assert found.score == "class-adjusted logit" and found.offsets[0] > 0 > found.offsets[1]
    nothing, logits = undivided(frames=states[:2]), torch.tensor([[-2.0, -9.0], [-9.0, -2.0]])
    of_a, of_b = one.scores(nothing, logits, found)
    assert of_b - of_a == pytest.approx(found.offsets[0] - found.offsets[1], abs=1e-5)


def test_without_held_out_clips_the_largest_logit_is_compared():
    made = clustered({"a": 1, "b": 1})
    found = find_rejection(task(made), made.views, made.view_clips, progress=False)
    assert (found.score, found.offsets) == ("largest logit", ())


def test_held_out_clips_do_not_change_their_own_offset():
    """The threshold comes from scores that a new clip of the class would have."""
    made = clustered({"a": 2, "b": 2}, spread=2.0)
    one = task(made)
    found = find_rejection(one, made.views, made.view_clips, progress=False)
    own, indices = torch.zeros(4), torch.arange(4)
    for clip in range(4):
        own[clip] = one.subset(indices != clip).logits(made.states.select(indices == clip))[0, made.labels[clip]]
    torch.testing.assert_close(torch.tensor(found.offsets), class_offsets(own, made.labels), rtol=1e-5, atol=1e-6)
    scores = []
    for clip in range(4):
        query, others = made.states.select(indices == clip), own.masked_fill(indices == clip, torch.nan)
        logits = one.subset(indices != clip).logits(query)
        scores.append(class_adjusted(logits, class_offsets(others, made.labels)))
    assert found.known_kept == (torch.cat(scores) >= found.threshold).float().mean()


def test_unknown_clips_do_not_change_the_offsets_by_their_class():
    """An unknown action leaves no trace in a gallery, so nor does the class of a clip that stands for one."""
    made = clustered({"a": 5, "b": 3, "c": 2})
    states = made.states.query["frames"].clone()
    states[5:8] += 8 * torch.randn(states[5:8].shape, generator=torch.Generator().manual_seed(0))
    made = replace(made, states=undivided(frames=states))
    one, indices, labels = task(made), torch.arange(10), made.labels
    found = find_rejection(one, made.views, made.view_clips, progress=False)
    own = torch.zeros(10)
    for clip in range(10):
        own[clip] = one.subset(indices != clip).logits(made.states.select(indices == clip))[0, labels[clip]]
    known, unknown = [], []
    for clip in range(10):
        query, rest = made.states.select(indices == clip), labels != labels[clip]
        offsets = class_offsets(own.masked_fill(indices == clip, torch.nan), labels)
        known.append(class_adjusted(one.subset(indices != clip).logits(query), offsets))
        offsets = class_offsets(own.masked_fill(~rest, torch.nan), labels)[labels[rest].unique()]
        unknown.append(class_adjusted(one.subset(rest).logits(query), offsets))
    of_known, of_unknown = torch.cat(known), torch.cat(unknown)
    enough = max((of_known.mean() + of_unknown.mean()) / 2, of_unknown.quantile(1 - UNKNOWN_ACCEPTED))
    assert found.threshold == pytest.approx(float(min(enough, of_known.quantile(1 - KNOWN_KEPT))), abs=1e-5)


def negatives(directions, names=None):
    """One clip for each direction, far from those of other directions."""
    frames = 10 * torch.eye(6)[directions, None].expand(-1, FRAMES, 6)
    names = names or tuple(f"other {direction}" for direction in directions)
    return Negatives(names, torch.arange(len(directions)), tuple(range(len(directions))), undivided(frames=frames))


def test_negatives_reject_what_resembles_them_and_keep_the_logits():
    made = clustered({"a": 3, "b": 3, "c": 3})
    between = undivided(frames=(torch.eye(6)[0] + 1.5 * torch.eye(6)[5]).expand(1, FRAMES, 6))  # half an "a"
    passes = {}
    for others in (None, negatives([5, 4])):
        one = task(made, others)
        found = find_rejection(one, made.views, made.view_clips, progress=False)
        assert found.score == ("class-adjusted logit" if others is None else "log odds to negatives")
        assert (one.scores(made.states, one.logits(made.states), found) >= found.threshold).all()
        score = one.scores(between, one.logits(between), found) - found.threshold
        passes[others is not None] = score / (
            one.scores(made.states, one.logits(made.states), found).mean() - found.threshold
        )
        assert torch.equal(one.logits(made.states), task(made).logits(made.states))
    assert passes[True] < passes[False]


def test_one_class_takes_negatives():
    made = clustered({"a": 3})
    found = find_rejection(task(made, negatives([5])), made.views, made.view_clips, progress=False)
    one = task(made, negatives([5]))
    unknown = undivided(frames=10 * torch.eye(6)[5].expand(1, FRAMES, 6))
    assert one.scores(unknown, one.logits(unknown), found) < found.threshold and found.unknown_accepted is None


def test_overlapping_negatives_are_refused():
    made = gallery({"wave": 2, "bend": 1})
    with pytest.raises(DmgalError, match="Negatives are enrolled") as caught:
        replace(made, negatives=negatives([1], ("Wave",)))
    assert "Wave" in caught.value.received
    with pytest.raises(DmgalError, match="1 clip with the same bytes"):
        replace(made, negatives=replace(negatives([1]), contents=made.contents[:1]))
    with pytest.raises(DmgalError, match="Negatives are enrolled"):
        replace(made, negatives=negatives([1])).added(gallery({"other 1": 1}, seed=1))


def test_negatives_and_thresholds_are_saved(tmp_path):
    rejection = Rejection(
        0.5, "held-out clips", 4, 4, 1.0, 0.0, score="log odds to negatives", temperature=2.0, floor=0.1
    )
    made = replace(gallery({"a": 2, "b": 2}), negatives=negatives([2, 3]), rejection=rejection)
    save_gallery(made, tmp_path / "g.safetensors")
    read = load_gallery(tmp_path / "g.safetensors")
    assert read.rejection == rejection and read.negatives.class_names == ("other 2", "other 3")
    assert read.negatives.contents == (0, 1) and torch.equal(read.negatives.labels, torch.arange(2))
    torch.testing.assert_close(read.negatives.states.tensors(), made.negatives.states.tensors(), rtol=0, atol=0)
    assert read.removed(["a"]).negatives is read.negatives


def test_a_threshold_of_an_earlier_version_compares_the_largest_logit():
    saved = {"threshold": 1.0, "source": "held-out clips", "known": 1, "unknown": 1, "known_kept": 1.0}
    rejection = Rejection(**saved, unknown_accepted=None, shortlist=None)
    assert (rejection.score, rejection.temperature) == ("largest logit", 1.0)
    made = clustered({"a": 2, "b": 2})
    logits = task(made).logits(made.states)
    assert torch.equal(task(made).scores(made.states, logits, rejection), largest_logit(logits))
    for wrong in ({"floor": 1.0}, {"offsets": (1.0,)}, {"score": "class-adjusted logit"}):
        with pytest.raises(ValueError, match=r"floor|offsets"):
            Rejection(**{**asdict(rejection), **wrong})


def test_offsets_are_saved_and_must_fit_the_classes(tmp_path):
    made = clustered({"a": 3, "b": 2})
    found = find_rejection(task(made), made.views, made.view_clips, progress=False)
    for offsets in (found.offsets, found.offsets[:1]):
        rejection = replace(found, offsets=offsets)
        save_gallery(replace(made, rejection=rejection), tmp_path / "g.safetensors")
        if len(offsets) == 2:
            assert load_gallery(tmp_path / "g.safetensors").rejection == rejection
        else:
            with pytest.raises(DmgalError, match="wrong values"):
                load_gallery(tmp_path / "g.safetensors")

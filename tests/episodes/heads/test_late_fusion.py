"""LateFusion against its definition written out with loops, and its choice of weights on tasks made for one part."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from dmgal.episodes.evaluation.states import PrecomputedStates
from dmgal.episodes.gallery.calibration import find_rejection
from dmgal.episodes.gallery.task import GalleryTask
from dmgal.episodes.heads import LateFusion, late_fusion
from dmgal.errors import DmgalError

FRAMES, WIDTHS = 4, (6, 10)


def random_videos(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, FRAMES, sum(WIDTHS), generator=generator, dtype=torch.float64)


def video_distance(one, other, part):
    """Return Bi-MHM over plain cosines, averaged over the frames of both videos, or in part 2, of the same index."""
    unit = [part_of(frames, part) for frames in (one, other)]
    unit = [frames / frames.norm(dim=-1, keepdim=True) for frames in unit]
    distances = 1 - unit[0] @ unit[1].T
    if part == 2:
        return distances.diagonal().mean().item()
    nearest = distances.min(1).values.sum() + distances.min(0).values.sum()
    return nearest.item() / (len(one) + len(other))


def part_of(video, part):
    """Return the first stream as it is (part 0) or centered (1 and 2), or the second stream centered."""
    stream = video.split(WIDTHS, dim=-1)[part == 3]
    return stream - stream.mean(0) if part else stream


def reference_logits(support, labels, query, prior, concentration, tau, trust):
    ways = max(labels) + 1

    def class_distances(video, others, part):
        distances = []
        for c in range(ways):
            shots = [video_distance(video, o, part) for o, label in others if label == c]
            distances.append(sum(shots) / len(shots) if shots else math.nan)
        return distances

    def score(distances, part):
        """Return z of the distances of a video to the classes."""
        between = [
            video_distance(a, b, part)
            for (a, x), (b, y) in itertools.permutations(zip(support, labels, strict=True), 2)
            if x != y
        ]
        mean = sum(between) / len(between)
        spread = max(math.sqrt(sum((d - mean) ** 2 for d in between) / len(between)), 0.05 * mean)
        return [(mean - distance) / spread for distance in distances]

    pairs = list(zip(support, labels, strict=True))
    without = [
        [class_distances(video, pairs[:i] + pairs[i + 1 :], part) for part in range(4)]
        for i, (video, _) in enumerate(pairs)
    ]
    grid = [[k / 4 for k in c] for c in itertools.product(range(5), repeat=4) if sum(c) == 4]
    held = [
        (label, [score(distances[part], part) for part in range(4)])
        for distances, label in zip(without, labels, strict=True)
        if labels.count(label) > 1
    ]
    log_posterior = []
    for weighting in grid:
        loss = 0.0
        for label, scores in held:
            logits = [tau * sum(w * s[c] for w, s in zip(weighting, scores, strict=True)) for c in range(ways)]
            loss += math.log(sum(math.exp(x) for x in logits)) - logits[label]
        distance = sum((w - p) ** 2 for w, p in zip(weighting, prior, strict=True))
        log_posterior.append(-concentration * distance - loss)
    posterior = torch.tensor(log_posterior, dtype=torch.float64).softmax(0)
    weights = posterior @ torch.tensor(grid, dtype=torch.float64) if held else torch.tensor(prior, dtype=torch.float64)
    rows = []
    for video in query:
        row, total = torch.zeros(ways, dtype=torch.float64), 0.0
        for part in range(4):
            distances = class_distances(video, pairs, part)
            nearest_others = [
                min(d for c, d in enumerate(own[part]) if c != label)
                for own, label in zip(without, labels, strict=True)
            ]
            weight = weights[part] * (sum(nearest_others) / len(nearest_others) / min(distances)) ** trust
            row += weight * torch.tensor(score(distances, part), dtype=torch.float64)
            total += weight
        rows.append(tau * row / total)
    return torch.stack(rows)


@pytest.mark.parametrize("labels", [[0, 1, 2, 0, 1, 2], [0, 1, 2], [0, 0, 1, 0, 2], [1, 0, 1, 0]], ids=str)
def test_logits_equal_the_definition(labels):
    prior, options = (0.2, 0.1, 0.2, 0.5), {"concentration": 3.0, "tau": 1.5, "trust": 0.7}
    head = LateFusion(WIDTHS, prior, **options)
    support, query = random_videos(len(labels), 1), random_videos(3, 2)
    logits = head.compare(head.prepare(support), torch.tensor(labels), head.prepare(query)).logits
    expected = reference_logits(support, labels, query, prior, **options)
    assert torch.allclose(logits, expected, rtol=0, atol=1e-9)


def informative(part, shots, seed=0):
    """Return labels, and videos whose classes differ in one part only. In part 2 they differ in the order of frames."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat(shots)
    videos = torch.randn(len(labels), FRAMES, sum(WIDTHS), generator=generator, dtype=torch.float64)
    start, width = (WIDTHS[0], WIDTHS[1]) if part == 3 else (0, WIDTHS[0])
    patterns = torch.randn(3, FRAMES, width, generator=generator, dtype=torch.float64)
    if part == 2:
        patterns = torch.stack([patterns[0].roll(turns, 0) for turns in range(3)])
    patterns = patterns - patterns.mean(1, keepdim=True) if part else patterns.mean(1, keepdim=True)
    videos[..., start : start + width] += 3 * patterns[labels]
    return videos, labels


@pytest.mark.parametrize("part", range(4))
def test_the_part_that_separates_the_support_gets_the_largest_weight(part):
    head = LateFusion(WIDTHS)
    weights = []
    head.task_weights = lambda *task: weights.append(LateFusion.task_weights(head, *task)) or weights[-1]
    videos, labels = informative(part, shots=5)
    support = head.prepare(videos)
    head.compare(support, labels, support)
    assert weights[0].argmax() == part and weights[0].sum().item() == pytest.approx(1)


def test_one_shot_uses_the_prior():
    head = LateFusion(WIDTHS, prior=(1, 0, 0, 0))
    only = LateFusion((WIDTHS[0],), prior=(1, 0, 0))
    support, query, labels = random_videos(3, 1), random_videos(2, 2), torch.arange(3)
    logits = head.compare(head.prepare(support), labels, head.prepare(query)).logits
    alone = only.compare(only.prepare(support[..., : WIDTHS[0]]), labels, only.prepare(query[..., : WIDTHS[0]])).logits
    assert torch.allclose(logits, alone)


def test_still_or_equal_videos_give_finite_logits():
    """Centered frames of still videos are zero, and all their distances are equal."""
    head = LateFusion((sum(WIDTHS),))
    still = random_videos(6, 1)[:, :1].expand(-1, FRAMES, -1)
    for support in (still, still[:1].expand(6, -1, -1)):
        state = head.prepare(support.float())
        assert head.compare(state, torch.tensor([0, 1, 2] * 2), state).logits.isfinite().all()


def test_query_that_copies_a_support_video_has_finite_logits():
    head = LateFusion(WIDTHS)
    state = head.prepare(torch.cat([random_videos(3, 1)] * 2).float())
    assert head.compare(state, torch.arange(6), state).logits.isfinite().all()


def test_a_large_gallery_is_measured_by_a_part_of_it(monkeypatch):
    """Every second of ten clips decides nearly the same weights as all of them."""
    head = LateFusion(WIDTHS)
    videos, labels = informative(1, shots=10)
    state, query = head.prepare(videos), head.prepare(informative(1, shots=2, seed=0)[0])
    whole = head.compare(state, labels, query).logits
    monkeypatch.setattr(late_fusion, "MOST_HELD_OUT", 15)
    part = head.compare(state, labels, query).logits
    assert not torch.equal(whole, part)
    assert (whole - part).abs().max() < 0.25 * whole.abs().max()


@pytest.mark.parametrize("shots", [1, 2, 3])
def test_logits_of_one_class_have_one_unit_for_any_shots(shots):
    """A threshold from held-out clips must fit all of them. The distance of a video to itself is no unit."""
    head = LateFusion(WIDTHS)
    state, query = head.prepare(random_videos(shots, 1)), head.prepare(random_videos(9, 2))
    logits = head.compare(state, torch.zeros(shots, dtype=torch.int64), query).logits
    assert ((logits > 0) & (logits <= 2 * head.tau)).all()


@pytest.mark.parametrize("prior", [(0.5, 0.5), (0.5, 1, -0.5, 0), (1, 1, 1, 1), (float("nan"), 1, 0, 0)], ids=str)
def test_prior_that_does_not_fit_is_refused(prior):
    with pytest.raises(DmgalError, match="4 weights"):
        LateFusion(WIDTHS, prior=prior)


def test_features_of_other_widths_are_refused():
    with pytest.raises(DmgalError, match=r"6 \+ 10"):
        LateFusion(WIDTHS).prepare(torch.zeros(1, 2, 7))


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_most_unknown_clips_are_rejected_by_galleries_of_any_size(classes):
    """Without one of two classes, there is no distance between classes left to compare with."""
    generator = torch.Generator().manual_seed(0)
    head = LateFusion(WIDTHS)
    patterns = 3 * torch.randn(classes + 20, FRAMES, sum(WIDTHS), generator=generator)

    def clips(labels):
        return head.prepare(patterns[labels] + torch.randn(len(labels), *patterns.shape[1:], generator=generator))

    labels = torch.arange(classes).repeat(4)
    states = PrecomputedStates.undivided(clips(labels))
    task = GalleryTask(SimpleNamespace(head=head, compare=head.compare), states, labels)
    rejection = find_rejection(task, states.select(slice(0, 0)), torch.empty(0, dtype=torch.int64), progress=False)
    known_clips, unknown_clips = (
        PrecomputedStates.undivided(clips(part)) for part in (labels, torch.arange(classes, classes + 20))
    )
    known, unknown = (
        task.scores(part, task.logits(part), rejection) >= rejection.threshold for part in (known_clips, unknown_clips)
    )
    assert known.float().mean() > 0.7 and unknown.float().mean() < 0.3


def test_scores_of_two_ways_and_one_shot_are_moderate():
    head = LateFusion(WIDTHS)
    videos = random_videos(2, 1)
    logits = head.compare(head.prepare(videos), torch.arange(2), head.prepare(random_videos(5, 2))).logits
    assert logits.abs().max() < 100

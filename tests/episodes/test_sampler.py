"""Episodes by index: correct counts, disjoint support and query, reproducible, no decoding."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmgal.episodes.sampler import EpisodeIndices, EpisodeSampler, NovelBesideBase, ReversalSampler
from dmgal.errors import DmgalError
from dmgal.videos.decoding.clip import hashed_seed


@st.composite
def tasks(draw):
    """Draw labels with gaps and unequal classes in random order, and a feasible task."""
    k_shot, n_query = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    classes = draw(st.lists(st.integers(0, 50), min_size=2, max_size=8, unique=True))
    labels = [c for c in classes for _ in range(k_shot + n_query + draw(st.integers(0, 5)))]
    return draw(st.permutations(labels)), draw(st.integers(2, len(classes))), k_shot, n_query


@settings(max_examples=60)
@given(tasks(), st.integers(-(2**40), 2**40), st.integers(0, 9))
def test_episode_counts_and_labels(task, seed, number):
    labels, n_way, k_shot, n_query = task
    episode = EpisodeSampler(labels, n_way, k_shot, n_query, 10, seed)[number]
    assert len(set(episode.classes)) == len(episode.classes) == n_way
    videos = episode.support + episode.query
    assert len(set(videos)) == len(videos) == n_way * (k_shot + n_query)
    assert Counter(episode.support_labels) == dict.fromkeys(range(n_way), k_shot)
    assert Counter(episode.query_labels) == dict.fromkeys(range(n_way), n_query)
    for video, label in zip(videos, episode.support_labels + episode.query_labels, strict=True):
        assert labels[video] == episode.classes[label]


def test_episode_depends_on_seed_and_index_only():
    labels = np.repeat(np.arange(10), 20)
    forward = list(EpisodeSampler(labels, 5, 1, 2, 30, seed=3))
    other = EpisodeSampler(labels.tolist(), 5, 1, 2, 30, seed=3)
    assert [other[i] for i in reversed(range(30))] == forward[::-1]
    assert other[7] == other[7] == EpisodeSampler(labels, 5, 1, 2, 1000, seed=3)[7]
    assert len(set(forward)) == 30
    assert not set(forward) & set(EpisodeSampler(labels, 5, 1, 2, 30, seed=4))


def test_every_class_and_video_is_equally_likely_in_every_role():
    sampler = EpisodeSampler(np.repeat(np.arange(4), 5), 2, 1, 2, 4000, seed=0)
    first, support, query = Counter(), Counter(), Counter()
    for episode in sampler:
        first[episode.classes[0]] += 1
        support.update(episode.support)
        query.update(episode.query)
    assert all(abs(first[c] / 4000 - 1 / 4) < 0.03 for c in range(4))
    assert all(abs(support[video] / 4000 - 1 / 10) < 0.02 for video in range(20))
    assert all(abs(query[video] / 4000 - 2 / 10) < 0.03 for video in range(20))


def test_sampler_opens_no_file(monkeypatch):
    def forbidden(*arguments, **options):
        raise AssertionError("a sampler must not open anything")

    for opener in ("av.open", "PIL.Image.open", "builtins.open", "os.listdir", "os.scandir", "os.stat"):
        monkeypatch.setattr(opener, forbidden)
    labels = np.repeat(np.arange(8), 10)
    episodes = list(EpisodeSampler(labels, 5, 2, 3, 20, seed=0))
    tasks_of_pairs = list(ReversalSampler([(0, 1), (2, 3)], labels, 1, 2, 2, 20, seed=0))
    monkeypatch.undo()
    assert len(episodes) == len(tasks_of_pairs) == 20


class UnreadableData:
    """Data set that raises when a video is read."""

    def __init__(self, labels: np.ndarray) -> None:
        self.labels = labels

    def __getitem__(self, video: int) -> None:
        raise AssertionError(f"video {video} was read")


def test_sampler_never_reads_videos():
    data = UnreadableData(np.repeat(np.arange(5), 4))
    assert all(isinstance(e, EpisodeIndices) for e in EpisodeSampler(data.labels, 5, 1, 3, 10, seed=0))
    with pytest.raises(AssertionError):
        data[0]


def test_random_draws_do_not_depend_on_catalog_size(monkeypatch):
    """The number of random draws per episode depends on the task size only."""
    drawn = []
    rand = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *size, **options: drawn.append(size) or rand(*size, **options))
    for videos in (200, 1_000_000):
        drawn.clear()
        EpisodeSampler(np.arange(videos) % 10, 5, 5, 15, 1, seed=0)[0]
        assert drawn == [(5 + 5 * 20,)]


def test_iteration_and_bounds():
    sampler = EpisodeSampler([0, 0, 1, 1], 2, 1, 1, 3, seed=0)
    assert len(sampler) == 3 and len(list(sampler)) == 3
    for outside in (3, -1):
        with pytest.raises(IndexError):
            sampler[outside]


def test_more_ways_than_classes():
    with pytest.raises(DmgalError, match=r"n_way=5 and 3 classes\n.*from 2 to 3 ways\n.*what to do: Change n_way"):
        EpisodeSampler([0, 1, 2] * 9, 5, 1, 1, 10, seed=0)
    with pytest.raises(DmgalError, match="n_way=1"):
        EpisodeSampler([0, 1, 2] * 9, 1, 1, 1, 10, seed=0)


def test_too_few_videos_names_the_classes():
    labels = [0] * 9 + [1] * 3 + [2] * 5
    with pytest.raises(DmgalError, match=r"'jump' with 3, 'run' with 5\n.*at least 6 .*k_shot 5 \+ n_query 1"):
        EpisodeSampler(labels, 2, 5, 1, 10, seed=0, class_names=["sit", "jump", "run"])
    with pytest.raises(DmgalError, match="class 1 with 3"):
        EpisodeSampler(labels, 2, 2, 2, 10, seed=0)


def test_many_short_classes_are_counted_not_listed():
    with pytest.raises(DmgalError, match="and 15 more"):
        EpisodeSampler(range(20), 5, 1, 1, 10, seed=0)


@pytest.mark.parametrize("name", ["k_shot", "n_query", "num_episodes"])
def test_counts_below_one(name):
    arguments = {"k_shot": 1, "n_query": 1, "num_episodes": 1, name: 0}
    with pytest.raises(DmgalError, match=f"{name}=0"):
        EpisodeSampler([0, 1] * 9, 2, seed=0, **arguments)


PAIRS = [(0, 3), (1, 2), (4, 7)]
PAIR_LABELS = np.arange(80) % 8


@pytest.mark.parametrize("num_pairs", [1, 2])
def test_reversal_tasks_hold_whole_pairs(num_pairs):
    sampler = ReversalSampler(PAIRS, PAIR_LABELS, 2, 3, num_pairs, 300, seed=0)
    assert sampler.n_way == 2 * num_pairs
    places = Counter()
    for episode in sampler:
        assert len(episode.classes) == 2 * num_pairs
        assert sum(set(pair) <= set(episode.classes) for pair in PAIRS) == num_pairs
        assert len(episode.support) == 4 * num_pairs and len(episode.query) == 6 * num_pairs
        for video, label in zip(
            episode.support + episode.query, episode.support_labels + episode.query_labels, strict=True
        ):
            assert PAIR_LABELS[video] == episode.classes[label]
        places.update((c, label) for label, c in enumerate(episode.classes))
    assert set(places) == {(c, label) for pair in PAIRS for c in pair for label in range(2 * num_pairs)}


def test_reversal_errors():
    with pytest.raises(DmgalError, match=r"num_pairs=2 and the pairs \(0, 3\)\n.*\n.*column 'reversal'"):
        ReversalSampler([(0, 3)], PAIR_LABELS, 1, 1, 2, 10, seed=0)
    with pytest.raises(DmgalError, match="the pairs none"):
        ReversalSampler([], PAIR_LABELS, 1, 1, 1, 10, seed=0)
    with pytest.raises(DmgalError, match="no class in two"):
        ReversalSampler([(0, 3), (3, 1)], PAIR_LABELS, 1, 1, 1, 10, seed=0)
    with pytest.raises(DmgalError, match="class 9 with 0"):
        ReversalSampler([(0, 9)], PAIR_LABELS, 1, 1, 1, 10, seed=0)


def test_novel_beside_base_errors():
    with pytest.raises(DmgalError, match="3 of 2 novel classes beside 1 base"):
        NovelBesideBase([0], [1, 2], PAIR_LABELS, 3, 1, 1, 10, seed=0)
    with pytest.raises(DmgalError, match="beside 0 base classes"):
        NovelBesideBase([], [1, 2], PAIR_LABELS, 1, 1, 1, 10, seed=0)


def test_hashed_seed_depends_on_all_parts():
    seeds = {hashed_seed(seed, i, what) for seed in range(20) for i in range(200) for what in ("a", "b")}
    assert len(seeds) == 8000
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert hashed_seed(1, 23) != hashed_seed(12, 3)
    # must never change: published episodes and result files depend on it
    assert hashed_seed(0, 0, "episode") == 4405266000926223398

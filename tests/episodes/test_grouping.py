"""Episodes in which support and query never share a group, and groupings that cannot be divided."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmgal.episodes.grouping import Grouping
from dmgal.episodes.sampler import EpisodeSampler, ReversalSampler
from dmgal.errors import DmgalError


@st.composite
def grouped_tasks(draw):
    """Draw a task of classes whose videos show persons, each in any number of videos of any class."""
    k_shot, n_query, n_way = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(2, 4))
    labels, groups = [], []
    for c in range(draw(st.integers(n_way, 5))):
        for person in range(k_shot + n_query + draw(st.integers(0, 3))):
            labels += [c] * (copies := draw(st.integers(1, 3)))
            groups += [f"person {person}"] * copies
    order = draw(st.permutations(range(len(labels))))
    return [labels[i] for i in order], [groups[i] for i in order], n_way, k_shot, n_query


@settings(max_examples=60)
@given(grouped_tasks(), st.integers(0, 2**40), st.integers(0, 9))
def test_support_and_query_share_no_group(task, seed, number):
    labels, groups, n_way, k_shot, n_query = task
    episode = EpisodeSampler(labels, n_way, k_shot, n_query, 10, seed, groups=groups)[number]
    assert not {groups[v] for v in episode.support} & {groups[v] for v in episode.query}
    videos = episode.support + episode.query
    assert len(set(videos)) == len(videos) == n_way * (k_shot + n_query)
    assert Counter(episode.support_labels) == dict.fromkeys(range(n_way), k_shot)
    for video, label in zip(videos, episode.support_labels + episode.query_labels, strict=True):
        assert labels[video] == episode.classes[label]


LABELS, PERSONS = np.repeat(np.arange(10), 9), np.tile(np.arange(9), 10)
"""Ten classes of nine videos, one of each person, as in Weizmann's data."""


def test_grouped_episodes_depend_on_seed_and_index_only():
    ten = EpisodeSampler(LABELS, 5, 5, 1, 10, 3, groups=PERSONS)
    more = EpisodeSampler(LABELS, 5, 5, 1, 500, 3, groups=[f"person {p}" for p in PERSONS])
    assert [more[i] for i in reversed(range(10))] == list(ten)[::-1]


def test_every_person_and_class_is_equally_likely_in_every_role():
    support, query, classes = Counter(), Counter(), Counter()
    for episode in EpisodeSampler(LABELS, 2, 1, 1, 3000, 0, groups=PERSONS):
        support.update(PERSONS[list(episode.support)].tolist())
        query.update(PERSONS[list(episode.query)].tolist())
        classes.update(episode.classes)
    assert all(abs(counts[p] / 6000 - 1 / 9) < 0.02 for counts in (support, query) for p in range(9))
    assert all(abs(classes[c] / 6000 - 1 / 10) < 0.02 for c in range(10))


def test_episodes_without_groups_are_as_before():
    assert EpisodeSampler(LABELS, 5, 1, 1, 9, 0)[4] == EpisodeSampler(LABELS, 5, 1, 1, 9, 0, groups=None)[4]
    assert EpisodeSampler(LABELS, 2, 1, 1, 2, 0)[1].support == (19, 69)  # published results depend on it


def test_reversal_tasks_are_grouped():
    for episode in ReversalSampler([(0, 1), (2, 3)], LABELS, 2, 1, 2, 50, 0, groups=PERSONS):
        assert not set(PERSONS[list(episode.support)]) & set(PERSONS[list(episode.query)])


@pytest.mark.parametrize(
    ("groups", "shots", "queries", "named"),
    [
        ([0] * 9 + [0, 1, 2] * 3, 1, 1, "'walk' with 9 videos of 1 group"),
        ([0] * 8 + [1] + [0, 1, 2] * 3, 2, 2, "'walk' with 9 videos of 2 groups"),
        ([0, 1, 2] * 3 + [0, 1, 2] * 3, 7, 1, "'walk' with 9 videos of 3 groups, 'run' with 9 videos of 3 groups"),
    ],
)
def test_a_class_with_too_few_groups_is_named_at_once(groups, shots, queries, named):
    with pytest.raises(DmgalError, match="different groups") as error:
        EpisodeSampler([0] * 9 + [1] * 9, 2, shots, queries, 10, 0, ["walk", "run"], groups)
    assert named in str(error.value) and f"{shots} support video(s)" in str(error.value)


def test_classes_that_share_their_groups_badly_are_named():
    """Each class alone can be divided, but the large group of one is the small one of the other."""
    labels, groups = [0] * 5 + [1] * 5, [0, 0, 0, 0, 1, 1, 1, 1, 1, 0]
    with pytest.raises(DmgalError, match=r"'walk' with 5 videos of 2 groups, 'run' with 5"):
        EpisodeSampler(labels, 2, 4, 1, 10, 0, ["walk", "run"], groups)


def test_one_class_can_be_divided_only_by_some_of_its_groups():
    assert EpisodeSampler([0] * 6 + [1] * 6, 2, 4, 2, 10, 0, groups=[0] * 4 + [1, 2] + [0] * 4 + [1, 2])[0]
    grouping = Grouping([0], 1, 3, 4, str)
    assert grouping._can_divide(np.array([3, 4])) and grouping._can_divide(np.array([3, 3, 1]))
    assert not grouping._can_divide(np.array([6, 1])) and not grouping._can_divide(np.array([7]))


def test_a_group_is_needed_for_each_video():
    with pytest.raises(DmgalError, match="3 groups of 4 videos"):
        EpisodeSampler([0, 0, 1, 1], 2, 1, 1, 1, 0, groups=[0, 1, 2])

"""Evaluation from stored states equals encoding every episode again, for all heads."""

from __future__ import annotations

import pytest
import torch
from adapter_cases import ADAPTER_CASES
from evaluation_cases import HEADS, LABELS, UNDER_A_CMGA, clips, of_adapter, of_head
from torch import Tensor, nn

import dmgal.episodes.heads as heads
from dmgal.backbones import VideoState
from dmgal.episodes import EpisodeOutput, EpisodeSampler, FewShotRecognizer
from dmgal.episodes.evaluation import accuracy as evaluation_module
from dmgal.episodes.evaluation import encode_videos, evaluate
from dmgal.episodes.evaluation.states import PrecomputedStates, compare_tasks, look_up, pair_table, why_no_pair_scores
from dmgal.errors import DmgalError

RECOGNIZERS = {f"head {name}": lambda name=name: of_head(name) for name in HEADS}
RECOGNIZERS |= {f"adapter {name}": lambda name=name: of_adapter(name) for name in ADAPTER_CASES}
RECOGNIZERS |= {
    f"{adapter} under {head}": lambda adapter=adapter, head=head: of_adapter(adapter, head)
    for adapter in ("DMGAL", "two Cmga")
    for head in UNDER_A_CMGA
}
every_recognizer = pytest.mark.parametrize("name", RECOGNIZERS)


def tasks(k_shot: int, episodes: int = 6, n_query: int = 1) -> EpisodeSampler:
    return EpisodeSampler(LABELS, 3, k_shot, n_query, episodes, seed=4)


@torch.no_grad()
def plain_logits(recognizer: FewShotRecognizer, videos: Tensor, sampler: EpisodeSampler) -> Tensor:
    """Encode the videos of each episode separately and return the logits ``(E, Q, n_way)``."""
    found = []
    for task in sampler:
        support, query = (recognizer.encode(videos[list(places)]) for places in (task.support, task.query))
        found.append(recognizer.compare(support, torch.tensor(task.support_labels), query).logits)
    return torch.stack(found)


def cached_logits(recognizer: FewShotRecognizer, states: PrecomputedStates, sampler: EpisodeSampler) -> Tensor:
    """Compare all tasks at once."""
    episodes = list(sampler)
    support, query = (torch.tensor([getattr(e, side) for e in episodes]) for side in ("support", "query"))
    labels = torch.tensor(episodes[0].support_labels)
    query_states = states.query.select(query.flatten())
    logits = compare_tasks(recognizer, states.support.select(support.flatten()), labels, query_states, len(episodes))
    from_all = compare_tasks(recognizer, states.support, labels, query_states, len(episodes), places=support)
    assert torch.equal(from_all, logits)
    return logits


def assert_same(logits: Tensor, expected: Tensor) -> None:
    assert expected.std() > 1e-4
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * scale)
    best = expected.topk(2, dim=2).values
    clear = best[..., 0] - best[..., 1] > 2e-5 * scale
    assert torch.equal(logits.argmax(2)[clear], expected.argmax(2)[clear]) and clear.float().mean() > 0.9


def test_every_head_is_covered() -> None:
    """Fail if a new head is not listed here."""
    named = {type(of_head(name).head).__name__ for name in HEADS}
    assert named == set(heads.HEADS)


@every_recognizer
@pytest.mark.parametrize("k_shot", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_logits_equal_encoding_every_episode(name: str, k_shot: int) -> None:
    recognizer, videos, sampler = RECOGNIZERS[name](), clips(), tasks(k_shot)
    states = encode_videos(recognizer, list(videos), progress=False)
    expected = plain_logits(recognizer, videos, sampler)
    assert_same(cached_logits(recognizer, states, sampler), expected)
    result = evaluate(recognizer, states, sampler, progress=False)
    right = expected.argmax(2) == torch.tensor(sampler[0].query_labels)
    if (cached_logits(recognizer, states, sampler).argmax(2) == expected.argmax(2)).all():
        assert torch.equal(result.accuracies, right.double().mean(1))
    if why_no_pair_scores(recognizer, k_shot) is None:
        table = pair_table(recognizer, states, progress=False)
        support, query = (torch.tensor([getattr(e, side) for e in sampler]) for side in ("support", "query"))
        assert_same(look_up(table, support, torch.tensor(sampler[0].support_labels), query), expected)


@pytest.mark.parametrize("adapter", ["DMGAL", "Cmga", "two Cmga", "Cmga two before the end"])
def test_query_only_runs_from_the_first_cmga_on(adapter: str, monkeypatch) -> None:
    """After a Cmga in the last block, no block runs in a task, and only the class token of a query is stored."""
    recognizer = of_adapter(adapter)
    states = encode_videos(recognizer, list(clips()), progress=False)
    assert states.query["hidden"].shape[2] == (1 if adapter in ("DMGAL", "Cmga") else 17)
    assert states.query["hidden"].shape[2] == states.query["forward"].shape[2]
    ran = []
    run = type(recognizer.encoder)._run_block
    monkeypatch.setattr(
        type(recognizer.encoder),
        "_run_block",
        lambda self, block, tokens, *rest: ran.append(len(tokens)) or run(self, block, tokens, *rest),
    )
    cached_logits(
        recognizer, states, tasks(1)
    )  # compares twice: with the support alone, and by indices into all videos
    assert len(ran) == 2 * (0 if adapter in ("DMGAL", "Cmga") else 2)
    assert all(images == 6 * 3 * 4 for images in ran)  # episodes * queries * frames, no support


class OwnTaskLayer(nn.Module):
    """Subtract the support's mean, so that a support video differs between tasks."""

    def is_task_layer(self) -> bool:
        return True

    def set_aside(self):
        from contextlib import nullcontext

        return nullcontext()

    def prepare(self, tokens: Tensor, rows: slice) -> VideoState:
        return VideoState(tokens=tokens[:, :, rows])

    def relate(self, support: VideoState, query: VideoState, rows: slice) -> tuple[Tensor, Tensor]:
        mean = support["tokens"].mean(dim=0)
        return support["tokens"] - mean, query["tokens"] - mean


@pytest.mark.parametrize("head", ["BiMHM", "TRX"])
def test_tokens_before_a_foreign_task_layer_are_reused(head: str) -> None:
    recognizer, videos = of_head(head), clips()
    recognizer.encoder.backbone.blocks[-1].add_module("own", OwnTaskLayer())
    states = encode_videos(recognizer, list(videos), progress=False)
    assert list(states.tensors()) == ["tokens"]
    assert_same(cached_logits(recognizer, states, tasks(3)), plain_logits(recognizer, videos, tasks(3)))
    assert why_no_pair_scores(recognizer, 1) is not None


def test_batch_dependent_states_raise() -> None:
    recognizer = of_head("M2ACL")
    for module in recognizer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = module.running_var = None
    with pytest.raises(DmgalError, match="normalizes over the videos of its batch"):
        encode_videos(recognizer, list(clips(6)), progress=False)


class Branching(heads.BiMHM):
    """A head that branches on values, which torch.vmap does not support."""

    def compare(self, support: VideoState, labels: Tensor, query: VideoState) -> EpisodeOutput:
        output = super().compare(support, labels, query)
        return output if output.logits[0, 0] < 1e9 else EpisodeOutput(-output.logits)


def test_branching_head_is_compared_task_by_task() -> None:
    recognizer, videos = of_head("BiMHM"), clips()
    recognizer.head = Branching()
    states = encode_videos(recognizer, list(videos), progress=False)
    one_by_one = torch.cat([cached_logits(recognizer, states, [task]) for task in tasks(3)])
    assert torch.equal(cached_logits(recognizer, states, tasks(3)), one_by_one)


@pytest.mark.parametrize("name", ["BiMHM", "TRX", "HyRSM"])
def test_tasks_at_a_time_do_not_change_accuracies(name: str, monkeypatch) -> None:
    recognizer = of_head(name)
    states = encode_videos(recognizer, list(clips()), progress=False)
    monkeypatch.setattr(evaluation_module, "TABLE_GAIN", 0)  # never use a table
    together = evaluate(recognizer, states, tasks(1, 40, 2), progress=False)
    monkeypatch.setattr(evaluation_module, "TASKS_AT_A_TIME", 1)
    monkeypatch.setattr(evaluation_module, "LOOK_EVERY", 7)
    apart = evaluate(recognizer, states, tasks(1, 40, 2), progress=False)
    assert apart.episodes == together.episodes and torch.equal(apart.accuracies, together.accuracies)
    monkeypatch.setattr(evaluation_module, "TABLE_GAIN", 1e9)  # use a table if possible
    from_table = evaluate(recognizer, states, tasks(1, 40, 2), progress=False)
    assert torch.equal(from_table.accuracies, together.accuracies)


def test_groups_are_looked_up_if_their_shots_allow(monkeypatch) -> None:
    recognizer = of_head("Prototype")
    states = encode_videos(recognizer, list(clips()), progress=False)
    mixed = [*tasks(1, 1, 2), *tasks(5, 60, 1), *tasks(1, 40, 2)]
    tables: list[int] = []
    monkeypatch.setattr(evaluation_module, "look_up", lambda *args: tables.append(len(args[1])) or look_up(*args))
    found = evaluate(recognizer, states, mixed, progress=False).accuracies
    alone = [evaluate(recognizer, states, [task], progress=False).accuracies for task in mixed]
    assert torch.equal(found, torch.cat(alone))
    assert sum(tables) == 1 + 40


def test_answers_record_predictions() -> None:
    recognizer = of_head("BiMHM")
    states = encode_videos(recognizer, list(clips()), progress=False)
    sampler = tasks(1, 10, 2)
    result = evaluate(recognizer, states, sampler, progress=False)
    logits = cached_logits(recognizer, states, sampler)
    row = 0
    for number, task in enumerate(sampler):
        for place, video in enumerate(task.query):
            answers = result.answers
            assert (answers.episode[row], answers.video[row], answers.truth[row]) == (number, video, LABELS[video])
            assert answers.predicted[row] == task.classes[logits[number, place].argmax()]
            row += 1
    assert row == len(result.answers.video) and result.answers.offered.tolist() == [list(t.classes) for t in sampler]


def test_evaluation_stops_at_requested_half_width(monkeypatch) -> None:
    monkeypatch.setattr(evaluation_module, "LOOK_EVERY", 20)
    recognizer = of_head("BiMHM")
    states = encode_videos(recognizer, list(clips()), progress=False)
    sampler = tasks(1, 100_000)
    result = evaluate(recognizer, states, sampler, progress=False, until=3.0, at_least=40)
    count = len(result.accuracies)
    assert count % 20 == 0 and 40 <= count < 100_000 and result.accuracy.half_width <= 3.0
    before = evaluation_module.Estimate.of(result.accuracies[: count - 20])
    assert before.half_width > 3.0 or count == 40
    same = evaluate(recognizer, states, tasks(1, count), progress=False)
    assert same.episodes == result.episodes and torch.equal(same.accuracies, result.accuracies)


def test_why_a_head_has_no_pair_scores() -> None:
    assert "3 shots" in why_no_pair_scores(of_head("Prototype"), 3)
    assert "HyRSM" in why_no_pair_scores(of_head("HyRSM"), 1)
    assert "task layer" in why_no_pair_scores(of_adapter("DMGAL"), 1)
    with pytest.raises(DmgalError, match="HyRSM"):
        pair_table(of_head("HyRSM"), PrecomputedStates.undivided(VideoState()), progress=False)

"""Encoding videos once and comparing them in tasks equals processing whole episodes."""

from __future__ import annotations

import math

import peft
import pytest
import torch

from dmgal.adapters import DmgalConfig, SmgaConfig
from dmgal.backbones import FrameEncoder, VideoState, load_backbone
from dmgal.episodes import Episode, EpisodeSampler, FewShotRecognizer
from dmgal.episodes.evaluation import Estimate, Evaluation, evaluate, paired_difference
from dmgal.episodes.evaluation.accuracy import normal_or_t_quantile
from dmgal.episodes.evaluation.states import PrecomputedStates
from dmgal.episodes.heads import BiMHM, DmgalFT

FRAMES = 4


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
    "cmga in the middle": lambda: recognizer(DmgalConfig(num_frames=FRAMES, cmga_blocks=[1]), BiMHM(center="video")),
    "cmga under a head that prepares": lambda: recognizer(DmgalConfig(num_frames=FRAMES), DmgalFT(96, FRAMES), "map"),
}


@pytest.fixture(params=list(RECOGNIZERS))
def model(request):
    return RECOGNIZERS[request.param]()


def episode(seed):
    generator = torch.Generator().manual_seed(seed)
    videos = torch.randint(0, 256, (8, FRAMES, 3, 48, 48), dtype=torch.uint8, generator=generator)
    labels = torch.tensor([0, 1, 2, 0]), torch.tensor([2, 1, 0, 0])
    return Episode(videos[:4], labels[0], videos[4:], labels[1], ("a", "b", "c"))


@torch.no_grad()
def test_states_of_single_videos_give_the_logits_of_the_whole_episode(model):
    task = episode(0)
    expected = model(task).logits
    support, query = (
        VideoState.cat([model.encode(video[None]) for video in videos]) for videos in (task.support, task.query)
    )
    logits = model.compare(support, task.support_labels, query).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5 * expected.abs().max().item())
    assert expected.shape == (4, 3) and expected.std() > 1e-3


@torch.no_grad()
def test_episodes_in_one_batch_are_independent(model):
    first, second = episode(0), episode(1)
    for together in (model([first, second]), model._answers([first, second])):  # as on a CPU, as on an accelerator
        for task, output in zip((first, second), together, strict=True):
            torch.testing.assert_close(output.logits, model(task).logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_dropout_is_the_same_in_one_batch_and_one_by_one():
    model = RECOGNIZERS["cmga under a head that prepares"]()
    torch.nn.init.ones_(model.head.self_attention.gamma)
    model.head.self_attention.dropout.train()
    tasks = [episode(0), episode(1)]
    torch.manual_seed(0)
    one_by_one = model(tasks)
    torch.manual_seed(0)
    for output, other in zip(model._answers(tasks), one_by_one, strict=True):
        torch.testing.assert_close(output.logits, other.logits, rtol=0, atol=1e-4)
    assert not torch.equal(model(tasks[:1])[0].logits, one_by_one[0].logits)


class TargetRecorder(BiMHM):
    """Head that records the targets it received."""

    def compare(self, support, labels, query, targets=None):
        self.received_targets = targets
        return super().compare(support, labels, query)


def test_head_receives_targets_in_training_only():
    model = recognizer(SmgaConfig(num_frames=FRAMES), TargetRecorder())
    task = episode(0)
    model.train()(task)
    assert torch.equal(model.head.received_targets.query_labels, task.query_labels)
    model.eval()(task)
    assert model.head.received_targets is None


def test_evaluation_counts_right_answers_of_each_episode():
    class Oracle(torch.nn.Module):
        """Head that is correct for even videos and predicts class 0 for odd ones."""

        def compare(self, support, labels, query):
            same = query["label"][:, None] == support["label"][None]
            is_odd = query["video"][:, None] % 2 == 1
            first = torch.arange(len(labels))[None] == 0
            from dmgal.episodes import EpisodeOutput

            return EpisodeOutput(torch.where(is_odd, first, same).float())

    labels = [c for c in range(4) for _ in range(6)]
    states = PrecomputedStates.undivided(VideoState(label=torch.tensor(labels), video=torch.arange(24)))
    sampler = EpisodeSampler(labels, n_way=3, k_shot=1, n_query=2, num_episodes=50, seed=3)
    result = evaluate(Oracle(), states, sampler, progress=False)
    for index, indices in enumerate(sampler):
        right = [v % 2 == 0 or label == 0 for v, label in zip(indices.query, indices.query_labels, strict=True)]
        assert result.accuracies[index] == pytest.approx(sum(right) / 6)


def test_estimate_of_few_values_has_the_interval_of_student():
    values = torch.tensor([1.0, 0.0, 1.0, 1.0])
    estimate = Estimate.of(values)
    assert estimate.mean == 75.0
    sample_deviation = 50
    assert estimate.half_width == pytest.approx(3.1824463053 * sample_deviation / math.sqrt(4))


@pytest.mark.parametrize("value", [0.0, 0.25, 0.6, 1.0])
@pytest.mark.parametrize("count", [2, 5, 100, 10_000])
def test_equal_accuracies_have_an_interval(value, count):
    estimate = Estimate.of_accuracies(torch.full((count,), value, dtype=torch.float64))
    assert estimate.mean == 100 * value
    other_share = estimate.half_width / (100 * max(value, 1 - value))
    assert (1 - other_share) ** count == pytest.approx(0.025)  # so unlikely are equal accuracies by chance


def test_estimate_of_one_value_has_no_finite_interval():
    assert math.isinf(Estimate.of(torch.tensor([1.0])).half_width)


STUDENT = {1: 12.7062047362, 2: 4.3026527297, 3: 3.1824463053, 4: 2.7764451052, 9: 2.2621571628, 30: 2.0422724563}
STUDENT |= {100: 1.9839715185, 999: 1.9623414611}


def test_quantiles_of_few_degrees_of_freedom_are_those_of_the_tables():
    assert {count: normal_or_t_quantile(count) for count in STUDENT} == pytest.approx(STUDENT, abs=1e-8)


def test_quantile_falls_to_the_normal_one():
    quantiles = [normal_or_t_quantile(count) for count in (1, 2, 3, 10, 100, 500, 999, 1000, 9999)]
    assert quantiles == sorted(quantiles, reverse=True) and quantiles[-2:] == [1.96, 1.96]


def test_interval_of_five_normal_values_has_nominal_coverage():
    generator = torch.Generator().manual_seed(0)
    samples = 0.01 * torch.randn(20_000, 5, generator=generator, dtype=torch.float64)
    half_widths = torch.tensor([Estimate.of(sample).half_width for sample in samples], dtype=torch.float64)
    covered = ((100 * samples.mean(1)).abs() <= half_widths).double().mean()
    assert 0.945 < covered < 0.955


def test_interval_has_nominal_coverage():
    generator = torch.Generator().manual_seed(0)
    samples = (torch.rand(2000, 400, generator=generator) < 0.7).float()
    estimates = [Estimate.of(sample) for sample in samples]
    covered = sum(abs(e.mean - 70) <= e.half_width for e in estimates) / len(estimates)
    assert 0.93 < covered < 0.97


def test_paired_differences_are_sharper_and_refuse_other_episodes():
    generator = torch.Generator().manual_seed(0)
    hard = torch.rand(500, generator=generator, dtype=torch.float64)
    first, second = Evaluation(0.2 + 0.5 * hard, "same"), Evaluation(0.5 * hard, "same")
    difference = paired_difference(first, second)
    assert difference.mean == pytest.approx(20) and difference.half_width < 1e-9 < first.accuracy.half_width
    with pytest.raises(ValueError, match="different episodes"):
        paired_difference(first, Evaluation(0.5 * hard, "other"))

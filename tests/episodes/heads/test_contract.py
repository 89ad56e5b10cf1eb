"""Contract of every head; a new head needs one entry in `CASES`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from dmgal.backbones.state import VideoState
from dmgal.episodes.episode import EpisodeOutput, TaskTargets
from dmgal.episodes.heads import (
    HEADS,
    M2ACL,
    OTAM,
    SACT,
    STRM,
    TRX,
    BiMHM,
    DmgalFT,
    FrameAligned,
    HyRSM,
    MoLo,
    Prototype,
)
from dmgal.episodes.recognizer import takes_targets


@dataclass(frozen=True)
class HeadCase:
    """Builder of a head, and the shape of one video's features for it."""

    name: str
    build: Callable[[], nn.Module]
    video: tuple[int, ...]

    def __str__(self) -> str:
        return self.name


FRAMES, MAPS = (4, 16), (4, 16, 3, 5)

CASES = [
    HeadCase("bi_mhm", BiMHM, FRAMES),
    HeadCase("bi_mhm_plain_cosine", partial(BiMHM, center="video", logit_scale=10.0, eps=0.0), FRAMES),
    HeadCase("bi_mhm_both_prototype", partial(BiMHM, "both", 10.0, shots="prototype"), FRAMES),
    HeadCase("otam", OTAM, FRAMES),
    HeadCase("otam_both", partial(OTAM, relaxation=0.5, center="both", logit_scale=10.0, eps=0.0), FRAMES),
    HeadCase("frame_aligned", partial(FrameAligned, center="video", logit_scale=10.0), FRAMES),
    HeadCase("dmgal_ft", partial(DmgalFT, 16, num_frames=4), MAPS),
    HeadCase("dmgal_ft_both", partial(DmgalFT, 16, 4, matcher=BiMHM("both", 10.0, eps=0.0)), MAPS),
    HeadCase("trx", partial(TRX, 16, width=8), FRAMES),
    HeadCase("trx_quadruples", partial(TRX, 16, (1, 4), 8), FRAMES),
    HeadCase("strm", partial(STRM, 16, 4, width=8), MAPS),
    HeadCase("hyrsm", partial(HyRSM, 16, num_base_classes=7), FRAMES),
    HeadCase("hyrsm_without_classes", partial(HyRSM, 16, 2), FRAMES),
    HeadCase("hyrsm_centered", partial(HyRSM, 16, num_base_classes=7, center="video"), FRAMES),
    HeadCase("prototype", Prototype, FRAMES),
    HeadCase("prototype_euclidean", partial(Prototype, "euclidean"), FRAMES),
    HeadCase("prototype_scaled", partial(Prototype, "euclidean", 10.0), FRAMES),
    HeadCase("sact", partial(SACT, 16, num_frames=4, width=8), MAPS),
    HeadCase("sact_released", partial(SACT, 16, num_frames=4, width=8, form="released"), MAPS),
    HeadCase("molo", partial(MoLo, 16, num_base_classes=7), MAPS),
    HeadCase("molo_without_classes", partial(MoLo, 16, num_heads=2), MAPS),
    HeadCase("molo_centered", partial(MoLo, 16, num_base_classes=7, center="video"), MAPS),
    HeadCase("m2acl", partial(M2ACL, 16, width=8), MAPS),
    HeadCase("m2acl_pairs", partial(M2ACL, 16, cardinalities=(2,), width=8), MAPS),
]

every_head = pytest.mark.parametrize("case", CASES, ids=str)


def build_seeded(case: HeadCase) -> nn.Module:
    """Return the head in evaluation mode and float64, with initial weights that do not depend on the test order."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return case.build().eval().double()


def build_perturbed(case: HeadCase) -> nn.Module:
    """Return a seeded head in float64, with all weights moved away from a start at zero."""
    head = build_seeded(case)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2)
    return head


def videos(case: HeadCase, count: int, seed: int) -> Tensor:
    """Return seeded features of some videos, in float64."""
    return torch.randn(count, *case.video, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_equal_up_to_rounding(actual: object, expected: object) -> None:
    """Compare float64 results that are equal in exact arithmetic."""
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def logits(head: nn.Module, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
    return head.compare(head.prepare(support), labels, head.prepare(query)).logits


def compare_with_targets(
    head: nn.Module, support: Tensor, labels: Tensor, query: Tensor, answers: Tensor
) -> EpisodeOutput:
    """Compare as in training, with the losses of a head that has some; base classes are the labels plus 1."""
    targets = {"targets": TaskTargets(answers, labels + 1, answers + 1)} if takes_targets(head) else {}
    return head.compare(prepare_with_frames(head, support), labels, prepare_with_frames(head, query), **targets)


def prepare_with_frames(head: nn.Module, features: Tensor) -> VideoState:
    """Prepare as in training: a head that learns from frames receives some."""
    if "frames" not in inspect.signature(head.prepare).parameters:
        return head.prepare(features)
    frames = torch.randn(*features.shape[:2], 3, 12, 20, generator=torch.Generator().manual_seed(3))
    return head.prepare(features, frames.to(features.dtype))


LABELS = torch.tensor([0, 1, 2, 1, 0, 2])


@every_head
class TestContract:
    def test_preparing_videos_alone_or_together(self, case: HeadCase) -> None:
        head, batch = build_perturbed(case), videos(case, 3, 1)
        together = head.prepare(batch)
        assert isinstance(together, VideoState) and together.num_videos == 3
        alone = VideoState.cat([head.prepare(video[None]) for video in batch])
        assert_equal_up_to_rounding(dict(together), dict(alone))

    def test_dropout_is_the_same_for_videos_alone_or_together(self, case: HeadCase) -> None:
        """Results must not depend on the batch size or the number of processes."""
        head, support, query = build_perturbed(case), videos(case, 6, 1), videos(case, 3, 2)
        for module in head.modules():
            module.train(isinstance(module, nn.Dropout))

        def prepared(batch: Tensor) -> VideoState:
            torch.manual_seed(0)
            return head.prepare(batch)

        together = prepared(query)
        assert_equal_up_to_rounding(dict(VideoState.cat([prepared(video[None]) for video in query])), dict(together))
        answers = []
        for asked in (together, together.select(slice(1, 2))):
            torch.manual_seed(1)
            answers.append(head.compare(prepared(support), LABELS, asked).logits)
        assert_equal_up_to_rounding(answers[1], answers[0][1:2])

    def test_states_can_be_selected(self, case: HeadCase) -> None:
        head, batch = build_perturbed(case), videos(case, 8, 1)
        state, chosen = head.prepare(batch), torch.tensor([5, 0, 2, 7, 3, 1])
        ours = head.compare(state.select(chosen), LABELS, state.select(slice(6, 8))).logits
        assert_equal_up_to_rounding(ours, logits(head, batch[chosen], LABELS, batch[6:8]))

    def test_permuted_classes_permute_logits(self, case: HeadCase) -> None:
        head, support, query = build_perturbed(case), videos(case, 6, 1), videos(case, 4, 2)
        new_label = torch.tensor([2, 0, 1])
        ours = logits(head, support, new_label[LABELS], query)
        assert_equal_up_to_rounding(ours[:, new_label], logits(head, support, LABELS, query))

    def test_permuted_queries_permute_rows(self, case: HeadCase) -> None:
        head, support, query = build_perturbed(case), videos(case, 6, 1), videos(case, 4, 2)
        order = torch.tensor([3, 1, 0, 2])
        assert_equal_up_to_rounding(
            logits(head, support, LABELS, query[order]), logits(head, support, LABELS, query)[order]
        )

    def test_queries_do_not_see_each_other(self, case: HeadCase) -> None:
        head, support, query = build_perturbed(case), videos(case, 6, 1), videos(case, 4, 2)
        assert_equal_up_to_rounding(
            logits(head, support, LABELS, query[2:3]), logits(head, support, LABELS, query)[2:3]
        )

    def test_permuted_shots_change_nothing(self, case: HeadCase) -> None:
        head, support, query = build_perturbed(case), videos(case, 6, 1), videos(case, 4, 2)
        order = torch.tensor([4, 3, 5, 1, 0, 2])
        assert_equal_up_to_rounding(
            logits(head, support[order], LABELS[order], query), logits(head, support, LABELS, query)
        )

    def test_a_video_is_nearest_to_itself(self, case: HeadCase) -> None:
        support = videos(case, 3, 1)
        predicted = logits(build_seeded(case), support, torch.arange(3), support).argmax(dim=1)
        assert predicted.tolist() == [0, 1, 2]

    def test_gradients_reach_every_parameter(self, case: HeadCase) -> None:
        """In float64, a gradient that cancels is below the limit, so rounding does not count as one."""
        head = build_perturbed(case)
        support, query = (videos(case, count, count).requires_grad_() for count in (6, 3))
        output = compare_with_targets(head, support, LABELS, query, torch.arange(3))
        loss = nn.functional.cross_entropy(output.logits, torch.arange(3)) + sum(output.losses.values())
        loss.backward()
        tensors = {**dict(head.named_parameters()), "support": support, "query": query}
        largest = {name: 0.0 if tensor.grad is None else tensor.grad.abs().max() for name, tensor in tensors.items()}
        for name, one in largest.items():
            assert math.isfinite(one) and one > 1e-10 * max(largest.values()), name

    @pytest.mark.parametrize("content", ["random", "identical", "still", "zero"])
    def test_finite_in_bfloat16(self, case: HeadCase, content: str) -> None:
        head, batch = build_perturbed(case).bfloat16(), videos(case, 4, 1)
        if content == "identical":
            batch = batch[:1].expand_as(batch)
        elif content == "still":
            batch = batch[:, :1].expand_as(batch)
        elif content == "zero":
            batch = torch.zeros_like(batch)
        batch = batch.bfloat16().requires_grad_()
        answers = torch.tensor([0, 1])
        output = compare_with_targets(head, batch[:2], answers, batch[2:], answers)
        (output.logits.sum() + sum(output.losses.values())).backward()
        for ours in (output.logits, *output.losses.values()):
            assert ours.dtype == torch.float32 and ours.isfinite().all()
        assert batch.grad.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in head.parameters())

    @pytest.mark.parametrize("n_way", [1, 2, 5, 20])
    @pytest.mark.parametrize("k_shot", [1, 5, 10])
    def test_ways_and_shots(self, case: HeadCase, n_way: int, k_shot: int) -> None:
        labels = torch.arange(n_way).repeat(k_shot)
        with torch.no_grad():
            support, query = videos(case, n_way * k_shot, 1).float(), videos(case, 2, 2).float()
            ours = logits(build_perturbed(case).float(), support, labels, query)
        assert ours.shape == (2, n_way) and ours.dtype == torch.float32 and ours.isfinite().all()

    def test_losses_are_weighted_by_name_and_only_given_with_targets(self, case: HeadCase) -> None:
        head, support, query = build_perturbed(case), videos(case, 6, 1), videos(case, 3, 2)
        weights = getattr(head, "loss_weights", {})
        with_targets = compare_with_targets(head, support, LABELS, query, torch.arange(3))
        assert set(with_targets.losses) <= {"cross_entropy", *weights}
        assert all(loss.shape == () and loss > 0 for loss in with_targets.losses.values())
        without_targets = head.compare(head.prepare(support), LABELS, head.prepare(query))
        assert not without_targets.losses
        assert_equal_up_to_rounding(without_targets.logits, with_targets.logits)

    def test_unequal_shots(self, case: HeadCase) -> None:
        ours = logits(build_perturbed(case), videos(case, 6, 1), torch.tensor([1, 1, 0, 1, 2, 2]), videos(case, 2, 2))
        assert ours.shape == (2, 3) and ours.isfinite().all()


def test_every_registered_head_has_a_case() -> None:
    torch.manual_seed(0)
    assert {type(case.build()) for case in CASES} == set(HEADS.values())
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(name == head.__name__ for name, head in HEADS.items())

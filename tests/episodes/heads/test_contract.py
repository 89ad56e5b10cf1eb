"""What every head must do; a new head joins by one line in `HEADS`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from dmgal.backbones.video_state import VideoState
from dmgal.episodes.episode import EpisodeOutput, TaskTargets
from dmgal.episodes.heads import M2ACL, OTAM, SACT, STRM, TRX, BiMHM, DmgalFT, FrameAligned, HyRSM, MoLo, Prototype
from dmgal.episodes.recognizer import takes_targets


@dataclass(frozen=True)
class HeadCase:
    """How to build a head, and the shape of one video's features for it."""

    name: str
    build: Callable[[], nn.Module]
    video: tuple[int, ...]

    def __str__(self) -> str:
        return self.name


FRAMES, MAPS = (4, 16), (4, 16, 3, 5)

HEADS = [
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

every_head = pytest.mark.parametrize("case", HEADS, ids=str)


def awake(case: HeadCase) -> nn.Module:
    """In evaluation mode, with weights moved away from any start at zero."""
    torch.manual_seed(0)
    head = case.build().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return head


def videos(case: HeadCase, count: int, seed: int) -> Tensor:
    return torch.randn(count, *case.video, generator=torch.Generator().manual_seed(seed))


def logits(head: nn.Module, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
    return head.compare(head.prepare(support), labels, head.prepare(query)).logits


def told_the_targets(head: nn.Module, support: Tensor, labels: Tensor, query: Tensor, answers: Tensor) -> EpisodeOutput:
    """As in training: with the losses of a head that has some. The base classes are the labels plus 1."""
    targets = {"targets": TaskTargets(answers, labels + 1, answers + 1)} if takes_targets(head) else {}
    return head.compare(with_frames(head, support), labels, with_frames(head, query), **targets)


def with_frames(head: nn.Module, features: Tensor) -> VideoState:
    """Prepared as in training: a head that learns from the videos' frames is given some."""
    if "frames" not in inspect.signature(head.prepare).parameters:
        return head.prepare(features)
    frames = torch.randn(*features.shape[:2], 3, 12, 20, generator=torch.Generator().manual_seed(3))
    return head.prepare(features, frames.to(features.dtype))


LABELS = torch.tensor([0, 1, 2, 1, 0, 2])


@every_head
class TestContract:
    def test_preparing_videos_alone_or_together(self, case: HeadCase) -> None:
        head, batch = awake(case), videos(case, 3, 1)
        together = head.prepare(batch)
        assert isinstance(together, VideoState) and together.num_videos == 3
        alone = VideoState.cat([head.prepare(video[None]) for video in batch])
        torch.testing.assert_close(dict(together), dict(alone))

    def test_dropout_is_the_same_for_videos_alone_or_together(self, case: HeadCase) -> None:
        """So that results depend neither on batches nor on how many processes share them."""
        head, support, query = awake(case), videos(case, 6, 1), videos(case, 3, 2)
        for module in head.modules():
            module.train(isinstance(module, nn.Dropout))

        def prepared(batch: Tensor) -> VideoState:
            torch.manual_seed(0)
            return head.prepare(batch)

        together = prepared(query)
        torch.testing.assert_close(dict(VideoState.cat([prepared(video[None]) for video in query])), dict(together))
        answers = []
        for asked in (together, together.select(slice(1, 2))):
            torch.manual_seed(1)
            answers.append(head.compare(prepared(support), LABELS, asked).logits)
        torch.testing.assert_close(answers[1], answers[0][1:2])

    def test_states_can_be_selected(self, case: HeadCase) -> None:
        head, batch = awake(case), videos(case, 8, 1)
        state, chosen = head.prepare(batch), torch.tensor([5, 0, 2, 7, 3, 1])
        ours = head.compare(state.select(chosen), LABELS, state.select(slice(6, 8))).logits
        torch.testing.assert_close(ours, logits(head, batch[chosen], LABELS, batch[6:8]))

    def test_permuted_classes_permute_logits(self, case: HeadCase) -> None:
        head, support, query = awake(case), videos(case, 6, 1), videos(case, 4, 2)
        new_label = torch.tensor([2, 0, 1])
        ours = logits(head, support, new_label[LABELS], query)
        torch.testing.assert_close(ours[:, new_label], logits(head, support, LABELS, query))

    def test_permuted_queries_permute_rows(self, case: HeadCase) -> None:
        head, support, query = awake(case), videos(case, 6, 1), videos(case, 4, 2)
        order = torch.tensor([3, 1, 0, 2])
        torch.testing.assert_close(
            logits(head, support, LABELS, query[order]), logits(head, support, LABELS, query)[order]
        )

    def test_queries_do_not_see_each_other(self, case: HeadCase) -> None:
        head, support, query = awake(case), videos(case, 6, 1), videos(case, 4, 2)
        torch.testing.assert_close(logits(head, support, LABELS, query[2:3]), logits(head, support, LABELS, query)[2:3])

    def test_permuted_shots_change_nothing(self, case: HeadCase) -> None:
        head, support, query = awake(case), videos(case, 6, 1), videos(case, 4, 2)
        order = torch.tensor([4, 3, 5, 1, 0, 2])
        torch.testing.assert_close(
            logits(head, support[order], LABELS[order], query), logits(head, support, LABELS, query)
        )

    def test_a_video_is_nearest_to_itself(self, case: HeadCase) -> None:
        support = videos(case, 3, 1)
        predicted = logits(case.build().eval(), support, torch.arange(3), support).argmax(dim=1)
        assert predicted.tolist() == [0, 1, 2]

    def test_gradients_reach_every_parameter(self, case: HeadCase) -> None:
        """In float64, where what cancels is below the limit: rounding is no gradient."""
        head = awake(case).double()
        support, query = (videos(case, count, count).double().requires_grad_() for count in (6, 3))
        output = told_the_targets(head, support, LABELS, query, torch.arange(3))
        loss = nn.functional.cross_entropy(output.logits, torch.arange(3)) + sum(output.losses.values())
        loss.backward()
        tensors = {**dict(head.named_parameters()), "support": support, "query": query}
        largest = {name: 0.0 if tensor.grad is None else tensor.grad.abs().max() for name, tensor in tensors.items()}
        for name, one in largest.items():
            assert math.isfinite(one) and one > 1e-10 * max(largest.values()), name

    @pytest.mark.parametrize("content", ["random", "identical", "still", "zero"])
    def test_finite_in_bfloat16(self, case: HeadCase, content: str) -> None:
        head, batch = awake(case).bfloat16(), videos(case, 4, 1)
        if content == "identical":
            batch = batch[:1].expand_as(batch)
        elif content == "still":
            batch = batch[:, :1].expand_as(batch)
        elif content == "zero":
            batch = torch.zeros_like(batch)
        batch = batch.bfloat16().requires_grad_()
        answers = torch.tensor([0, 1])
        output = told_the_targets(head, batch[:2], answers, batch[2:], answers)
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
            ours = logits(awake(case), videos(case, n_way * k_shot, 1), labels, videos(case, 2, 2))
        assert ours.shape == (2, n_way) and ours.dtype == torch.float32 and ours.isfinite().all()

    def test_losses_are_weighted_by_name_and_only_given_with_targets(self, case: HeadCase) -> None:
        head, support, query = awake(case), videos(case, 6, 1), videos(case, 3, 2)
        weights = getattr(head, "loss_weights", {})
        told = told_the_targets(head, support, LABELS, query, torch.arange(3))
        assert set(told.losses) <= {"cross_entropy", *weights}
        assert all(loss.shape == () and loss > 0 for loss in told.losses.values())
        untold = head.compare(head.prepare(support), LABELS, head.prepare(query))
        assert not untold.losses
        torch.testing.assert_close(untold.logits, told.logits)

    def test_unequal_shots(self, case: HeadCase) -> None:
        ours = logits(awake(case), videos(case, 6, 1), torch.tensor([1, 1, 0, 1, 2, 2]), videos(case, 2, 2))
        assert ours.shape == (2, 3) and ours.isfinite().all()


def test_the_list_is_not_empty() -> None:
    assert len(HEADS) >= 8 and len({case.name for case in HEADS}) == len(HEADS)

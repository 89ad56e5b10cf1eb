"""What every head must do; a new head joins by one line in `HEADS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from dmgal.backbones.video_state import VideoState
from dmgal.episodes.heads import OTAM, BiMHM, DmgalFT, FrameAligned


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


LABELS = torch.tensor([0, 1, 2, 1, 0, 2])


@every_head
class TestContract:
    def test_preparing_videos_alone_or_together(self, case: HeadCase) -> None:
        head, batch = awake(case), videos(case, 3, 1)
        together = head.prepare(batch)
        assert isinstance(together, VideoState) and together.num_videos == 3
        alone = VideoState.cat([head.prepare(video[None]) for video in batch])
        torch.testing.assert_close(dict(together), dict(alone))

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
        head, support, query = awake(case), videos(case, 6, 1).requires_grad_(), videos(case, 3, 2).requires_grad_()
        output = head.compare(head.prepare(support), LABELS, head.prepare(query))
        loss = nn.functional.cross_entropy(output.logits, torch.arange(3)) + sum(output.losses.values())
        loss.backward()
        for name, tensor in [*head.named_parameters(), ("support", support), ("query", query)]:
            assert tensor.grad is not None and tensor.grad.isfinite().all() and tensor.grad.abs().sum() > 0, name

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
        ours = logits(head, batch[:2], torch.tensor([0, 1]), batch[2:])
        ours.sum().backward()
        assert ours.dtype == torch.float32
        assert ours.isfinite().all() and batch.grad.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in head.parameters())

    @pytest.mark.parametrize("n_way", [1, 2, 5, 20])
    @pytest.mark.parametrize("k_shot", [1, 5, 10])
    def test_ways_and_shots(self, case: HeadCase, n_way: int, k_shot: int) -> None:
        labels = torch.arange(n_way).repeat(k_shot)
        with torch.no_grad():
            ours = logits(awake(case), videos(case, n_way * k_shot, 1), labels, videos(case, 2, 2))
        assert ours.shape == (2, n_way) and ours.dtype == torch.float32 and ours.isfinite().all()

    def test_unequal_shots(self, case: HeadCase) -> None:
        ours = logits(awake(case), videos(case, 6, 1), torch.tensor([1, 1, 0, 1, 2, 2]), videos(case, 2, 2))
        assert ours.shape == (2, 3) and ours.isfinite().all()


def test_the_list_is_not_empty() -> None:
    assert len(HEADS) >= 8 and len({case.name for case in HEADS}) == len(HEADS)

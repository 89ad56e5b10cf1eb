"""Contract of a head: results depend on the videos of a task alone, not on their order, batch or process.

The queries of a task do not affect each other, unless the head has the attribute ``transductive = True``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from ..backbones.state import VideoState
from ..episodes.episode import EpisodeOutput, TaskTargets
from ..episodes.recognizer import Head, takes_targets

LABELS = torch.tensor([0, 1, 2, 1, 0, 2])
"""Labels of the six support videos of most checks."""


class _HeadModule(Head, Protocol):
    """Interface of a head that is a module of torch, as far as the checks use it."""

    def eval(self) -> Self: ...
    def double(self) -> Self: ...
    def float(self) -> Self: ...
    def bfloat16(self) -> Self: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


@dataclass(frozen=True)
class HeadCase:
    """A head.

    Args:
        make_head: returns a new head.
        video: shape of one video's features, ``(T, D)``, or ``(T, C, H, W)`` for a head that reads maps.
    """

    make_head: Callable[[], _HeadModule]
    video: tuple[int, ...]

    def seeded(self) -> _HeadModule:
        """Return a head in evaluation mode and float64, whose initial weights do not depend on earlier calls."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make_head().eval().double()

    def perturbed(self) -> _HeadModule:
        """Return a seeded head with all weights moved away from their initial values."""
        head = self.seeded()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2)
        return head

    def videos(self, count: int, seed: int) -> Tensor:
        """Return random features of some videos, in float64."""
        return torch.randn(count, *self.video, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def task(self) -> tuple[_HeadModule, Tensor, Tensor]:
        """Return a perturbed head, and the features of six support and four query videos."""
        return self.perturbed(), self.videos(6, 1), self.videos(4, 2)


def check_videos_are_prepared_alone_or_together(case: HeadCase) -> None:
    """Check that ``prepare`` handles each video alone and returns a ``VideoState``."""
    head, batch = case.perturbed(), case.videos(3, 1)
    together = head.prepare(batch)
    assert isinstance(together, VideoState) and together.num_videos == 3
    _assert_equal(dict(together), dict(VideoState.cat([head.prepare(video[None]) for video in batch])))


def check_dropout_is_the_same_for_videos_alone_or_together(case: HeadCase) -> None:
    """Check that training does not depend on the batch size or the number of processes."""
    head, support, query = case.task()
    for module in head.modules():
        module.train(isinstance(module, nn.Dropout))

    def prepared(batch: Tensor) -> VideoState:
        torch.manual_seed(0)
        return head.prepare(batch)

    together = prepared(query)
    _assert_equal(dict(VideoState.cat([prepared(video[None]) for video in query])), dict(together))
    logits = []
    one = together if _is_transductive(head) else together.select(slice(1, 2))
    for selected in (together, one):
        torch.manual_seed(1)
        logits.append(head.compare(prepared(support), LABELS, selected).logits)
    _assert_equal(logits[1], logits[0] if one is together else logits[0][1:2])


def check_prepared_states_can_be_selected(case: HeadCase) -> None:
    """Check a task of states that were prepared for other tasks, as in cached evaluation."""
    head, batch, chosen = case.perturbed(), case.videos(8, 1), torch.tensor([5, 0, 2, 7, 3, 1])
    state = head.prepare(batch)
    logits = head.compare(state.select(chosen), LABELS, state.select(slice(6, 8))).logits
    _assert_equal(logits, _logits(head, batch[chosen], LABELS, batch[6:8]))


def check_permuted_classes_permute_logits(case: HeadCase) -> None:
    """Check that the numbering of the classes does not matter."""
    head, support, query = case.task()
    new_label = torch.tensor([2, 0, 1])
    permuted = _logits(head, support, new_label[LABELS], query)
    _assert_equal(permuted[:, new_label], _logits(head, support, LABELS, query))


def check_permuted_shots_change_nothing(case: HeadCase) -> None:
    """Check that the order of the support videos does not matter."""
    head, support, query = case.task()
    order = torch.tensor([4, 3, 5, 1, 0, 2])
    _assert_equal(_logits(head, support[order], LABELS[order], query), _logits(head, support, LABELS, query))


def check_queries_do_not_affect_each_other(case: HeadCase) -> None:
    """Check that queries in another order, or a query alone, have the same logits.

    A query alone may have others if the head is transductive.
    """
    head, support, query = case.task()
    expected = _logits(head, support, LABELS, query)
    for order in ([3, 1, 0, 2],) if _is_transductive(head) else ([3, 1, 0, 2], [2]):
        _assert_equal(_logits(head, support, LABELS, query[order]), expected[order])


def check_a_video_is_nearest_to_itself(case: HeadCase) -> None:
    """Check the predictions of an untrained head for queries that are the support videos."""
    support = case.videos(3, 1)
    predicted = _logits(case.seeded(), support, torch.arange(3), support).argmax(dim=1)
    assert predicted.tolist() == [0, 1, 2]


def check_gradients_reach_every_parameter(case: HeadCase) -> None:
    """Check the gradients of the loss. In float64, one that cancels is below the limit."""
    head = case.perturbed()
    support, query = (case.videos(count, count).requires_grad_() for count in (6, 3))
    output = _compare_with_targets(head, support, LABELS, query, torch.arange(3))
    loss = nn.functional.cross_entropy(output.logits, torch.arange(3)) + sum(output.losses.values())
    loss.backward()
    tensors = {**dict(head.named_parameters()), "support": support, "query": query}
    largest = {name: 0.0 if t.grad is None else t.grad.abs().max().item() for name, t in tensors.items()}
    for name, value in largest.items():
        assert math.isfinite(value) and value > 1e-10 * max(largest.values()), name


def check_bfloat16_gives_finite_float32_results(case: HeadCase) -> None:
    """Check logits, losses and gradients, also for identical videos, still videos and videos of zeros."""
    batch, answers = case.videos(4, 1), torch.tensor([0, 1])
    contents = {
        "random": batch,
        "identical": batch[:1].expand_as(batch),
        "still": batch[:, :1].expand_as(batch),
        "zero": torch.zeros_like(batch),
    }
    for content, features in contents.items():
        head, videos = case.perturbed().bfloat16(), features.bfloat16().requires_grad_()
        output = _compare_with_targets(head, videos[:2], answers, videos[2:], answers)
        (output.logits.sum() + sum(output.losses.values())).backward()
        for result in (output.logits, *output.losses.values()):
            assert result.dtype == torch.float32 and result.isfinite().all(), content
        for tensor in (videos, *head.parameters()):
            assert tensor.grad is not None and tensor.grad.isfinite().all(), content


@torch.no_grad()
def check_all_numbers_of_ways_and_shots(case: HeadCase) -> None:
    """Check 1 to 20 ways with 1 to 10 shots, and classes with unequal numbers of shots."""
    head, query = case.perturbed().float(), case.videos(2, 2).float()
    tasks = [torch.arange(n_way).repeat(k_shot) for n_way in (1, 2, 5, 20) for k_shot in (1, 5, 10)]
    for labels in (*tasks, torch.tensor([1, 1, 0, 1, 2, 2])):
        logits = _logits(head, case.videos(len(labels), 1).float(), labels, query)
        assert logits.shape == (2, int(labels.max()) + 1), labels
        assert logits.dtype == torch.float32 and logits.isfinite().all(), labels


def check_losses_have_weights_and_need_targets(case: HeadCase) -> None:
    """Check that losses are positive scalars with an entry in ``loss_weights``, and that targets change no logits."""
    head, support, query = case.perturbed(), case.videos(6, 1), case.videos(3, 2)
    with_targets = _compare_with_targets(head, support, LABELS, query, torch.arange(3))
    assert set(with_targets.losses) <= {"cross_entropy", *getattr(head, "loss_weights", {})}
    assert all(loss.shape == () and loss > 0 for loss in with_targets.losses.values())
    without_targets = head.compare(head.prepare(support), LABELS, head.prepare(query))
    assert not without_targets.losses
    _assert_equal(without_targets.logits, with_targets.logits)


HEAD_CHECKS: tuple[Callable[[HeadCase], None], ...] = tuple(
    value for name, value in list(globals().items()) if name.startswith("check_")
)
"""All checks of this module, in its order."""


def _is_transductive(head: object) -> bool:
    return bool(getattr(head, "transductive", False))


def _logits(head: Head, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
    return head.compare(head.prepare(support), labels, head.prepare(query)).logits


def _compare_with_targets(head: Head, support: Tensor, labels: Tensor, query: Tensor, answers: Tensor) -> EpisodeOutput:
    """Compare as in training: with losses, if the head has some. Base classes are the labels plus 1."""
    targets: dict[str, object] = (
        {"targets": TaskTargets(answers, labels + 1, answers + 1)} if takes_targets(head) else {}
    )
    return head.compare(_prepare_with_frames(head, support), labels, _prepare_with_frames(head, query), **targets)


def _prepare_with_frames(head: Head, features: Tensor) -> VideoState:
    """Prepare as in training: a head that learns from frames receives some."""
    if "frames" not in inspect.signature(head.prepare).parameters:
        return head.prepare(features)
    frames = torch.randn(*features.shape[:2], 3, 12, 20, generator=torch.Generator().manual_seed(3))
    options: dict[str, object] = {"frames": frames.to(features.dtype)}
    return head.prepare(features, **options)


def _assert_equal(actual: object, expected: object) -> None:
    """Compare float64 results that are equal in exact arithmetic."""
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)

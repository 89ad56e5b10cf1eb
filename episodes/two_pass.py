"""Training in the memory of a few videos: encode all, differentiate the task, then encode again to go further back.

Before the task boundary a video knows nothing of its task, so the gradient of its state is all that it needs of it:

1. encode the videos in chunks and forget how, but for one chunk;
2. compare them and differentiate the task, back to the videos' states;
3. chunk by chunk, encode again and go on backwards from the states.

The gradients are those of training on all videos at once, but for the order of sums. (L. Gao et al., "Scaling Deep
Contrastive Learning Batch Size under Memory Limited Setup", arXiv 2101.06983, do so with the two sides of a retriever.)
What encodes again is torch's checkpoint of a whole chunk; it also restores random states and autocast.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..backbones.video_state import VideoState
from ..errors import DmgalError, first_line
from .episode import Episode, EpisodeOutput
from .little_memory.agreement import least_of_all_processes
from .little_memory.device_memory import free_bytes, is_out_of_memory, memory_of
from .little_memory.frozen_start import FrozenStart
from .little_memory.heap import give_back_free_memory
from .little_memory.kept_results import CostlyResults, Result, dearest, keeping, keeping_products
from .little_memory.random_state import RandomState
from .recognizer import FewShotRecognizer

SHARE = 0.7
"""Of the free memory, where no budget is given."""
_MUTATED = "has been mutated"

TaskLoss = Callable[[EpisodeOutput, Episode], Tensor]


class TwoPass:
    """Adds the gradients of tasks to a recognizer's parameters, with the activations of one chunk of videos in memory.

    Tasks are differentiated one after the other: more of them need no more memory. What is random (dropout) is drawn
    alike for every chunk and task, as `FewShotRecognizer` does for every task.

    Args:
        recognizer: itself, not what DDP makes of it: see `backward`.
        chunk: videos that are encoded at once; None: all that the budget allows; where that is not all of a task's, one
            on a CPU and elsewhere as many as half of it allows, measured with one video.
        memory_budget: bytes for encoding the videos of a task. What chunks leave of it keeps results that are dear to
            compute, so that less is computed again (see `kept_results`). None: `SHARE` of what is free, or, where a
            chunk is given, no more than the rule of `keep_products`.
        keep_products: whether results are kept at all; without a budget, those of matrix products that are narrower
            than what goes in (in a ViT, those of the MLP's second layer): a third of the second encoding is saved for
            about a tenth of the memory of training on all videos at once.
        autocast: makes the mixed-precision region in which videos are encoded and compared.
        notify: is told the measured chunk, and when a chunk was too large.

    Raises:
        DmgalError: a chunk or budget below what is possible.
    """

    def __init__(
        self,
        recognizer: FewShotRecognizer,
        chunk: int | None = None,
        *,
        memory_budget: float | None = None,
        keep_products: bool = True,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        notify: Callable[[str], object] = warnings.warn,
    ) -> None:
        for name, value, least in (("chunk", chunk, 1), ("memory budget", memory_budget, 0)):
            if value is not None and not value >= least:
                raise DmgalError(
                    "Two-pass training cannot go like this.",
                    received=f"a {name} of {value}",
                    expected="at least one video in a chunk, and memory to spend",
                    remedy=f"give another {name}, or none: then it is measured",
                )
        self.recognizer = recognizer
        self.chunk = chunk
        self.memory_budget = memory_budget
        self.keep_products = keep_products
        self._asked = [chunk, memory_budget, keep_products]
        self._sizes: list[int] = []
        self._before: dict[str, Any] | None = None
        self._autocast, self._notify = autocast, notify
        self._start: FrozenStart | None = None
        self._start_found_for: tuple[bool, ...] = ()
        self._kept: frozenset[int] | None = None  # places of kept results, where a budget has chosen them
        self._planned = chunk is not None and memory_budget is None

    def backward(
        self, episodes: Sequence[Episode], loss: TaskLoss, scale: Callable[[Tensor], Tensor] | None = None
    ) -> list[EpisodeOutput]:
        """Adds the gradients of the mean loss of some tasks to each parameter's ``grad``.

        DDP takes no notice, because its ``forward`` is not called: on several processes call `average_gradients` before
        the optimizer's step, once, however often this was called before (gradient accumulation).

        Args:
            episodes: on the recognizer's device.
            loss: of one task, a scalar.
            scale: changes the scalar that is differentiated, e.g. ``GradScaler.scale``.

        Returns:
            What the recognizer says about each task, as ``recognizer(episodes)`` does, without a graph.

        Raises:
            DmgalError: a batch norm is in training mode, nothing is trained, or one video is too much for the memory.
        """
        self._check()
        start = RandomState.now(episodes[0].support.device)
        self.plan(episodes[0])

        def scaled_loss(output: EpisodeOutput, episode: Episode) -> Tensor:
            value = loss(output, episode) / len(episodes)
            return value if scale is None else scale(value)

        outputs = []
        for episode in episodes:
            output, gradients = self._answered(episode, scaled_loss, start)
            gradients.add_to_parameters()
            outputs.append(EpisodeOutput(output.logits.detach(), {k: v.detach() for k, v in output.losses.items()}))
        return outputs

    @property
    def choice(self) -> dict[str, Any] | None:
        """What was chosen by the memory that was free, as JSON holds it; None before. Other choices sum otherwise."""
        if not self._planned:
            return None
        kept = None if self._kept is None else sorted(self._kept)
        return {"chunk": self.chunk, "kept": kept, "of": [*self._asked, *self._sizes]}

    def take_up(self, choice: dict[str, Any] | None) -> None:
        """Will choose as before, for tasks of the same sizes and where the same was asked for: to the same bits."""
        self._before = choice

    def plan(self, episode: Episode) -> None:
        """Spends the budget, by what encoding one video takes: on a chunk, then on results to keep.

        The first `backward` does it; calling it before is for who wants the first step to be like the others.
        """
        if self._planned:
            return
        self._sizes = [_num_videos(episode), *episode.support.shape[1:]]
        if self._before is not None and self._before["of"] == [*self._asked, *self._sizes]:
            self._adopt(self._before)
            self._notify(f"two-pass training: {self.chunk} videos at once, as before")
            return
        start = RandomState.now(episode.support.device)
        video, device, videos = episode.support[:1], start.device, _num_videos(episode)
        self._find_start(episode, start)
        costly = CostlyResults()
        state = memory_of(lambda: self._always_kept(video, start), device).held  # also fills libraries' caches
        peak = memory_of(lambda: self._there_and_back(video, start, costly), device).peak
        start.restore()
        budget = self.memory_budget
        if budget is None:
            trained = sum(parameter.numel() * parameter.element_size() for parameter in self._trained())
            budget = SHARE * (free_bytes(device) - 3 * trained)  # their gradients and AdamW's two moments are to come
        left = budget - videos * state
        if self.chunk is None:
            share = left if videos * peak <= left else 0 if device.type == "cpu" else left / 2
            self.chunk = min(videos, max(1, int(share // max(peak, 1))))
        left -= self.chunk * peak
        again = videos - self.chunk
        results = costly.results if again > 0 else []
        self._kept = dearest(results, max(left, 0) / max(again, 1))
        self._planned = True
        self._adopt(least_of_all_processes(self.choice))
        self._say_plan(videos, peak, budget, results, least="" if left >= 0 else ", although one needs more")

    def _adopt(self, choice: Any) -> None:
        self.chunk, self._planned = choice["chunk"], True
        self._kept = None if choice["kept"] is None else frozenset(choice["kept"])

    def _answered(self, episode: Episode, loss: TaskLoss, start: RandomState) -> tuple[EpisodeOutput, _Gradients]:
        """A whole task or nothing of it, so that one that failed can be done again in another way."""
        while True:
            try:
                return self._differentiated(episode, loss, start)
            except (RuntimeError, MemoryError) as error:
                self._give_way(error, episode)
            gc.collect()  # here, because until the clause above ends the error holds what the attempt allocated
            if start.device.type == "cuda":
                torch.cuda.empty_cache()

    def _differentiated(self, episode: Episode, loss: TaskLoss, start: RandomState) -> tuple[EpisodeOutput, _Gradients]:
        assert self.chunk is not None
        self._find_start(episode, start)
        gradients = _Gradients(self._trained())
        first, *others = torch.cat([episode.support, episode.query]).tensor_split(
            -(-_num_videos(episode) // self.chunk)
        )
        states = [self._encode(chunk, start, again=True) for chunk in others]
        states.insert(0, self._encode(first, start, again=False))  # last, when nothing else needs memory
        boundary = _leaves(states)
        with self._autocast():
            support, query = boundary.split([episode.num_support, episode.num_query])
            targets = episode.targets if self.recognizer.training else None
            output = self.recognizer.compare(support, episode.support_labels, query, targets)
        after = RandomState.now(start.device)
        wanted = {name: leaf for name, leaf in boundary.items() if leaf.requires_grad}
        found = zip(wanted, gradients.add([loss(output, episode)], None, list(wanted.values())), strict=True)
        upstream = VideoState({name: gradient for name, gradient in found if gradient is not None})
        for part in upstream.split([state.num_videos for state in states]):
            give_back_free_memory(start.device)
            state = states.pop(0)  # its graph goes with it
            if part:
                gradients.add([state[name] for name in part], list(part.values()))
        after.restore()
        return output, gradients

    def _encode(self, videos: Tensor, start: RandomState, again: bool) -> VideoState:
        """With the random state that all chunks begin with; ``again``: it is computed anew when gradients come."""
        start.restore()
        give_back_free_memory(start.device)
        with self._autocast():
            if not again:
                return self.recognizer.encode(videos)
            begun = self._start.result(self.recognizer, videos) if self._start else None
            return checkpoint(self._encode_on, videos, begun, use_reentrant=False, **self._keeping())  # type: ignore[no-any-return]

    def _encode_on(self, videos: Tensor, begun: Any) -> VideoState:
        """Encodes videos whose start, where there is one, has been computed."""
        if begun is None or self._start is None:
            return self.recognizer.encode(videos)
        with self._start.known(begun):
            return self.recognizer.encode(videos)

    def _find_start(self, episode: Episode, start: RandomState) -> None:
        """Anew where something else is trained than when it was found."""
        recognizer = self.recognizer
        found_for = (recognizer.training, *(parameter.requires_grad for parameter in recognizer.parameters()))
        if self.keep_products and found_for != self._start_found_for:
            with self._autocast():
                self._start = FrozenStart.of(recognizer, episode.support[:1])
            self._start_found_for = found_for
            start.restore()

    def _keeping(self) -> dict[str, Any]:
        if not self.keep_products:
            return {}
        return {"context_fn": keeping_products if self._kept is None else keeping(self._kept)}

    def _say_plan(self, videos: int, peak: int, budget: float, results: Sequence[Result], least: str) -> None:
        assert self.chunk is not None and self._kept is not None
        kept = sum(result.size for result in results if result.place in self._kept)
        spared = sum(result.operations for result in results if result.place in self._kept)
        whole = sum(result.operations for result in results)
        keeping = f"; of each, {kept / 1e6:,.0f} MB are kept: {spared / max(whole, 1):.0%} less is computed again"
        self._notify(
            f"two-pass training: encoding takes {peak / 1e6:,.0f} MB a video; of {videos} videos a task, "
            f"{min(self.chunk, videos)} at once in {budget / 1e9:,.2f} GB{least}{keeping if self._kept else ''}"
        )

    def _always_kept(self, video: Tensor, start: RandomState) -> tuple[Any, VideoState]:
        start.restore()
        with torch.no_grad(), self._autocast():
            begun = self._start.result(self.recognizer, video) if self._start else None
            return begun, self.recognizer.encode(video)

    def _there_and_back(self, video: Tensor, start: RandomState, costly: CostlyResults) -> None:
        with self._autocast():
            begun = self._start.result(self.recognizer, video) if self._start else None
            start.restore()
            with costly:
                whole = self._encode_on(video, begun)
        state = [tensor for tensor in whole.values() if tensor.requires_grad]
        if state:
            _Gradients(self._trained()).add(state, [torch.ones_like(tensor) for tensor in state])

    def _give_way(self, error: Exception, episode: Episode) -> None:
        """Changes what made a task fail, or raises."""
        if self.keep_products and _MUTATED in str(error):
            self.keep_products, self._start = False, None
            self._notify("two-pass training: this model changes results in place; everything is computed again")
            return
        if not is_out_of_memory(error):
            raise error
        chunk = min(self.chunk or 1, _num_videos(episode))
        if chunk == 1 and self._kept:
            self._kept = frozenset()
            self._notify(f"two-pass training: out of memory, going on with nothing kept ({first_line(error)})")
            return
        if chunk == 1:
            raise DmgalError(
                "The memory does not suffice for a task, even with one video encoded at a time.",
                received=f"{_num_videos(episode)} videos of {tuple(episode.support.shape[1:])}; {first_line(error)}",
                expected="memory for encoding one video and for comparing those of one task",
                remedy="use fewer frames, smaller images, fewer queries, or mixed precision",
            ) from error
        self.chunk = chunk // 2
        self._notify(
            f"two-pass training: out of memory with {chunk} videos at once, going on with {self.chunk} "
            f"({first_line(error)})"
        )

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.recognizer.parameters() if parameter.requires_grad]

    def _check(self) -> None:
        if not self._trained():
            raise DmgalError(
                "There is nothing to train.",
                received="no parameter that requires a gradient",
                expected="an adapter, a trainable backbone or a head that learns",
                remedy="call requires_grad_(True) on what is to be trained",
            )
        # behind a task layer the head sees a task's videos together, as in training on all videos at once
        per_video: list[Any] = [self.recognizer.encoder]
        per_video += [] if self.recognizer.encoder.has_task_layer else [self.recognizer.head]
        modules = {name: module for part in per_video for name, module in part.named_modules()}
        norms = [name for name, module in modules.items() if isinstance(module, _BatchNorm) and _mixes_videos(module)]
        if norms:
            raise DmgalError(
                "Two-pass training is impossible while a batch norm normalizes by the videos of its batch.",
                received=f"{len(norms)} batch norms in training mode, the first is {norms[0]}",
                expected="batch norms with frozen statistics: those of a chunk are not those of the batch",
                remedy="pass --backbone.freeze-batch-norm, call eval() on them, or train without two passes",
            )


class _Gradients:
    """Sums of gradients beside the parameters' own, until it is sure that a task succeeds."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.sums: dict[int, Tensor] = {}

    def add(
        self, outputs: Sequence[Tensor], upstream: Sequence[Tensor] | None, leaves: Sequence[Tensor] = ()
    ) -> list[Tensor | None]:
        """Goes back from outputs with their gradients (None: ones) to the parameters; returns those of ``leaves``."""
        found = torch.autograd.grad(outputs, [*leaves, *self.parameters], upstream, allow_unused=True)
        for place, gradient in enumerate(found[len(leaves) :]):
            if gradient is not None:
                if place not in self.sums:  # memory of its own: what autograd gives may be that of another gradient
                    self.sums[place] = torch.zeros_like(self.parameters[place])
                self.sums[place].add_(gradient)
        return list(found[: len(leaves)])

    def add_to_parameters(self) -> None:
        for place, total in self.sums.items():
            parameter = self.parameters[place]
            parameter.grad = total if parameter.grad is None else parameter.grad.add_(total)


def _leaves(states: Sequence[VideoState]) -> VideoState:
    """All videos' states cut off from how they were computed; those that depend on what is trained want gradients."""
    state = VideoState.cat([VideoState({name: t.detach() for name, t in part.items()}) for part in states])
    return VideoState({name: tensor.requires_grad_(states[0][name].requires_grad) for name, tensor in state.items()})


def _mixes_videos(norm: _BatchNorm) -> bool:
    return norm.training or norm.running_mean is None


def _num_videos(episode: Episode) -> int:
    return episode.num_support + episode.num_query

"""Two-pass training: the gradients of a task in the memory of a few videos.

Before the task boundary a video does not depend on its task. The gradient of its state is thus all it needs from it:

1. Encode the videos in chunks, without a graph for all chunks but one.
2. Compare the videos and backpropagate the task's loss to their states.
3. Chunk by chunk, encode the videos again and continue the backward pass from the states.

The gradients equal those of training on all videos at once, up to the order of sums. (L. Gao et al., "Scaling Deep
Contrastive Learning Batch Size under Memory Limited Setup", arXiv 2101.06983, do the same for the two sides of a
retriever.) The second encoding is torch's checkpoint of a whole chunk, which also restores random states and autocast.
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

from ...backbones.state import VideoState
from ...errors import DmgalError, first_line
from ..episode import Episode, EpisodeOutput
from ..recognizer import FewShotRecognizer
from .distributed import least_of_all_processes
from .memory import free_bytes, give_back_free_memory, is_out_of_memory, memory_of
from .recompute import CostlyResults, FrozenStart, RandomState, Result, keeping, keeping_products, most_expensive

SHARE = 0.7
"""Share of the free memory that is used without a given budget."""
_MUTATION_TEXT = "has been mutated"

TaskLoss = Callable[[EpisodeOutput, Episode], Tensor]


class TwoPass:
    """Backward pass of tasks that holds the activations of one chunk of videos in memory.

    Tasks are processed one after the other, so more tasks do not need more memory. Random numbers (dropout) are the
    same for each chunk and task, as `FewShotRecognizer` draws them for each task.

    Args:
        recognizer: the recognizer itself, not its DDP wrapper, see `backward`.
        chunk: number of videos encoded at once. None: all videos of a task, if the budget allows it. Otherwise one on a
            CPU, and as many as half of the budget allows on other devices. The memory is measured with one video.
        memory_budget: bytes for encoding the videos of a task. The part that chunks do not need is used to save
            expensive results, so that less is recomputed (see `kept_results`). None: `SHARE` of the free memory, or,
            with a given chunk, only what `keep_products` saves.
        keep_products: if False, no results are saved. If True, and without a budget, the results of matrix products
            that are narrower than their input are saved (in a ViT, those of the MLP's second layer). This saves a third
            of the second encoding for about a tenth of the memory of training on all videos at once.
        autocast: creates the mixed-precision context for encoding and comparing videos.
        notify: called with a message about the measured chunk, and if a chunk was too large.

    Raises:
        DmgalError: the chunk or the budget is too small.
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
        for name, value, minimum in (("chunk", chunk, 1), ("memory budget", memory_budget, 0)):
            if value is not None and not value >= minimum:
                raise DmgalError(
                    f"The {name} of two-pass training is too small.",
                    received=f"a {name} of {value}",
                    expected=f"at least {minimum}",
                    remedy=f"Increase the {name}, or omit it to have it measured.",
                )
        self.recognizer = recognizer
        self.chunk = chunk
        self.memory_budget = memory_budget
        self.keep_products = keep_products
        self._options = [chunk, memory_budget, keep_products]
        self._task_sizes: list[int] = []
        self._previous_choice: dict[str, Any] | None = None
        self._autocast, self._notify = autocast, notify
        self._start: FrozenStart | None = None
        self._start_key: tuple[bool, ...] = ()  # training modes for which the start was found
        self._saved_results: frozenset[int] | None = None  # positions of saved results, if a budget has chosen them
        self._planned = chunk is not None and memory_budget is None

    def backward(
        self, episodes: Sequence[Episode], loss: TaskLoss, scale: Callable[[Tensor], Tensor] | None = None
    ) -> list[EpisodeOutput]:
        """Add the gradients of the mean loss of some tasks to each parameter's ``grad``.

        DDP does not average these gradients, because its ``forward`` is not called. On several processes, call
        `average_gradients` once before the optimizer step, even after several calls (gradient accumulation).

        Args:
            episodes: the tasks, on the recognizer's device.
            loss: returns the loss of one task, a scalar.
            scale: transforms the loss before the backward pass, e.g. ``GradScaler.scale``.

        Returns:
            The outputs of ``recognizer(episodes)``, without a graph.

        Raises:
            DmgalError: a batch norm is in training mode, nothing is trained, or one video exceeds the memory.
        """
        self._check()
        start = RandomState.now(episodes[0].support.device)
        self.plan(episodes[0])

        def scaled_loss(output: EpisodeOutput, episode: Episode) -> Tensor:
            value = loss(output, episode) / len(episodes)
            return value if scale is None else scale(value)

        outputs = []
        for episode in episodes:
            output, gradients = self._backward_with_retries(episode, scaled_loss, start)
            gradients.add_to_parameters()
            losses = {name: value.detach() for name, value in output.losses.items()}
            outputs.append(EpisodeOutput(output.logits.detach(), losses))
        return outputs

    @property
    def choice(self) -> dict[str, Any] | None:
        """The choice made from the free memory, as JSON values. None before. Other choices change the order of sums."""
        if not self._planned:
            return None
        saved = None if self._saved_results is None else sorted(self._saved_results)
        return {"chunk": self.chunk, "kept": saved, "of": [*self._options, *self._task_sizes]}

    def take_up(self, choice: dict[str, Any] | None) -> None:
        """Reuse a previous choice for equal task sizes and options, so that results are bit-identical."""
        self._previous_choice = choice

    def plan(self, episode: Episode) -> None:
        """Divide the budget between a chunk and saved results, from the measured memory of encoding one video.

        The first `backward` calls this. Call it earlier if the first step should take as long as the others.
        """
        if self._planned:
            return
        self._task_sizes = [_num_videos(episode), *episode.support.shape[1:]]
        previous = self._previous_choice
        if previous is not None and previous["of"] == [*self._options, *self._task_sizes]:
            self._adopt(previous)
            self._notify(f"Two-pass training: {self.chunk} videos at once, as before.")
            return
        start = RandomState.now(episode.support.device)
        video, device, videos = episode.support[:1], start.device, _num_videos(episode)
        self._update_start(episode, start)
        costly = CostlyResults()
        state = memory_of(lambda: self._encode_without_graph(video, start), device).held  # also fills libraries' caches
        peak = memory_of(lambda: self._encode_and_backward(video, start, costly), device).peak
        start.restore()
        budget = self.memory_budget
        if budget is None:
            trained = sum(parameter.numel() * parameter.element_size() for parameter in self._trained())
            budget = SHARE * (free_bytes(device) - 3 * trained)  # reserves their gradients and AdamW's two moments
        left = budget - videos * state
        if self.chunk is None:
            if videos * peak <= left:
                chunk_bytes: float = left
            elif device.type == "cpu":
                chunk_bytes = 0
            else:
                chunk_bytes = left / 2
            self.chunk = min(videos, max(1, int(chunk_bytes // max(peak, 1))))
        left -= self.chunk * peak
        recomputed_videos = videos - self.chunk
        results = costly.results if recomputed_videos > 0 else []
        self._saved_results = most_expensive(results, max(left, 0) / max(recomputed_videos, 1))
        self._planned = True
        self._adopt(least_of_all_processes(self.choice))
        self._log_plan(videos, peak, budget, results, suffices=left >= 0)

    def _adopt(self, choice: Any) -> None:
        self.chunk, self._planned = choice["chunk"], True
        self._saved_results = None if choice["kept"] is None else frozenset(choice["kept"])

    def _backward_with_retries(
        self, episode: Episode, loss: TaskLoss, start: RandomState
    ) -> tuple[EpisodeOutput, _Gradients]:
        """Compute the gradients of a whole task. If an attempt fails, discard it and repeat the task in another way."""
        while True:
            try:
                return self._backward_task(episode, loss, start)
            except (RuntimeError, MemoryError) as error:
                self._recover_from(error, episode)
            gc.collect()  # outside the clause above, in which the error still holds the memory of the attempt
            if start.device.type == "cuda":
                torch.cuda.empty_cache()

    def _backward_task(self, episode: Episode, loss: TaskLoss, start: RandomState) -> tuple[EpisodeOutput, _Gradients]:
        assert self.chunk is not None
        self._update_start(episode, start)
        gradients = _Gradients(self._trained())
        num_chunks = -(-_num_videos(episode) // self.chunk)
        first, *others = torch.cat([episode.support, episode.query]).tensor_split(num_chunks)
        states = [self._encode(chunk, start, recompute=True) for chunk in others]
        states.insert(0, self._encode(first, start, recompute=False))  # last, because its activations stay in memory
        boundary = _detach_states(states)
        with self._autocast():
            support, query = boundary.split([episode.num_support, episode.num_query])
            targets = episode.targets if self.recognizer.training else None
            output = self.recognizer.compare(support, episode.support_labels, query, targets)
        after = RandomState.now(start.device)
        leaves = {name: leaf for name, leaf in boundary.items() if leaf.requires_grad}
        leaf_gradients = gradients.add([loss(output, episode)], None, list(leaves.values()))
        upstream = VideoState(
            {name: gradient for name, gradient in zip(leaves, leaf_gradients, strict=True) if gradient is not None}
        )
        for part in upstream.split([state.num_videos for state in states]):
            give_back_free_memory(start.device)
            state = states.pop(0)  # frees its graph afterwards
            if part:
                gradients.add([state[name] for name in part], list(part.values()))
        after.restore()
        return output, gradients

    def _encode(self, videos: Tensor, start: RandomState, recompute: bool) -> VideoState:
        """Encode a chunk from the common random state. If ``recompute``, encode it again in the backward pass."""
        start.restore()
        give_back_free_memory(start.device)
        with self._autocast():
            if not recompute:
                return self.recognizer.encode(videos)
            start_result = self._start.result(self.recognizer, videos) if self._start else None
            return checkpoint(  # type: ignore[no-any-return]
                self._encode_from, videos, start_result, use_reentrant=False, **self._checkpoint_options()
            )

    def _encode_from(self, videos: Tensor, start_result: Any) -> VideoState:
        """Encode videos from the result of the frozen start, or from the beginning if there is none."""
        if start_result is None or self._start is None:
            return self.recognizer.encode(videos)
        with self._start.known(start_result):
            return self.recognizer.encode(videos)

    def _update_start(self, episode: Episode, start: RandomState) -> None:
        """Find the frozen start, if other parameters are trained than before."""
        recognizer = self.recognizer
        key = (recognizer.training, *(parameter.requires_grad for parameter in recognizer.parameters()))
        if self.keep_products and key != self._start_key:
            with self._autocast():
                self._start = FrozenStart.of(recognizer, episode.support[:1])
            self._start_key = key
            start.restore()

    def _checkpoint_options(self) -> dict[str, Any]:
        if not self.keep_products:
            return {}
        return {"context_fn": keeping_products if self._saved_results is None else keeping(self._saved_results)}

    def _log_plan(self, videos: int, peak: int, budget: float, results: Sequence[Result], suffices: bool) -> None:
        assert self.chunk is not None and self._saved_results is not None
        message = (
            f"Two-pass training ({peak / 1e6:,.0f} MB to encode a video): of {videos} videos a task, "
            f"{min(self.chunk, videos)} at once in {budget / 1e9:,.2f} GB"
        )
        if not suffices:
            message += ", although one needs more"
        if self._saved_results:
            saved = [result for result in results if result.position in self._saved_results]
            saved_share = sum(result.operations for result in saved) / max(sum(r.operations for r in results), 1)
            size = sum(result.size for result in saved)
            message += f". Saving {size / 1e6:,.0f} MB of results per video, so {saved_share:.0%} less is recomputed"
        self._notify(f"{message}.")

    def _encode_without_graph(self, video: Tensor, start: RandomState) -> tuple[Any, VideoState]:
        """Return what every video holds in memory: the result of the frozen start, and the state."""
        start.restore()
        with torch.no_grad(), self._autocast():
            start_result = self._start.result(self.recognizer, video) if self._start else None
            return start_result, self.recognizer.encode(video)

    def _encode_and_backward(self, video: Tensor, start: RandomState, costly: CostlyResults) -> None:
        with self._autocast():
            start_result = self._start.result(self.recognizer, video) if self._start else None
            start.restore()
            with costly:
                state = self._encode_from(video, start_result)
        outputs = [tensor for tensor in state.values() if tensor.requires_grad]
        if outputs:
            _Gradients(self._trained()).add(outputs, [torch.ones_like(tensor) for tensor in outputs])

    def _recover_from(self, error: Exception, episode: Episode) -> None:
        """Change the options that made a task fail, or raise the error."""
        if self.keep_products and _MUTATION_TEXT in str(error):
            self.keep_products, self._start = False, None
            self._notify("Two-pass training: this model changes results in place, so everything is recomputed.")
            return
        if not is_out_of_memory(error):
            raise error
        chunk = min(self.chunk or 1, _num_videos(episode))
        if chunk == 1 and self._saved_results:
            self._saved_results = frozenset()
            self._notify(f"Two-pass training: out of memory, continuing without saved results ({first_line(error)}).")
            return
        if chunk == 1:
            raise DmgalError(
                "The memory does not suffice for a task, even with one video encoded at a time.",
                received=f"{_num_videos(episode)} videos of {tuple(episode.support.shape[1:])}; {first_line(error)}",
                expected="memory for encoding one video and for comparing the videos of one task",
                remedy="Use fewer frames, smaller images, fewer queries, or mixed precision.",
            ) from error
        self.chunk = chunk // 2
        self._notify(
            f"Two-pass training: out of memory with {chunk} videos at once, continuing with {self.chunk} "
            f"({first_line(error)})."
        )

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.recognizer.parameters() if parameter.requires_grad]

    def _check(self) -> None:
        if not self._trained():
            raise DmgalError(
                "There is nothing to train.",
                received="no parameter that requires a gradient",
                expected="an adapter, a trainable backbone or a trainable head",
                remedy="Call requires_grad_(True) on the parameters to train.",
            )
        per_video: list[Any] = [self.recognizer.encoder]
        if (
            not self.recognizer.encoder.has_task_layer
        ):  # After a task layer, the head gets all videos of a task at once.
            per_video.append(self.recognizer.head)
        modules = {name: module for part in per_video for name, module in part.named_modules()}
        norms = [name for name, module in modules.items() if isinstance(module, _BatchNorm) and _mixes_videos(module)]
        if norms:
            raise DmgalError(
                "Two-pass training does not support batch norms that normalize over the videos of a batch.",
                received=f"{len(norms)} batch norms in training mode, the first is {norms[0]}",
                expected="batch norms with frozen statistics: those of a chunk are not those of the batch",
                remedy="Pass --backbone.freeze-batch-norm, call eval() on them, or train without two passes.",
            )


class _Gradients:
    """Sums of gradients, separate from the parameters' own until a task has succeeded."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.sums: dict[int, Tensor] = {}

    def add(
        self, outputs: Sequence[Tensor], upstream: Sequence[Tensor] | None, leaves: Sequence[Tensor] = ()
    ) -> list[Tensor | None]:
        """Add the parameters' gradients of ``outputs`` and return the gradients of ``leaves``.

        Args:
            outputs: start of the backward pass.
            upstream: gradients of the outputs. None: ones.
            leaves: other tensors to differentiate.
        """
        gradients = torch.autograd.grad(outputs, [*leaves, *self.parameters], upstream, allow_unused=True)
        for index, gradient in enumerate(gradients[len(leaves) :]):
            if gradient is not None:
                if index not in self.sums:  # new memory, because autograd's result may share memory with another one
                    self.sums[index] = torch.zeros_like(self.parameters[index])
                self.sums[index].add_(gradient)
        return list(gradients[: len(leaves)])

    def add_to_parameters(self) -> None:
        """Add the sums to each parameter's ``grad``."""
        for index, total in self.sums.items():
            parameter = self.parameters[index]
            parameter.grad = total if parameter.grad is None else parameter.grad.add_(total)


def _detach_states(states: Sequence[VideoState]) -> VideoState:
    """Concatenate the states without their graphs. Tensors that depend on trained parameters require gradients."""
    state = VideoState.cat([VideoState({name: t.detach() for name, t in part.items()}) for part in states])
    return VideoState({name: tensor.requires_grad_(states[0][name].requires_grad) for name, tensor in state.items()})


def _mixes_videos(norm: _BatchNorm) -> bool:
    return norm.training or norm.running_mean is None


def _num_videos(episode: Episode) -> int:
    return episode.num_support + episode.num_query

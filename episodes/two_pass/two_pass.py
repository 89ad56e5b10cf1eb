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
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ...backbones import BlockInput, VideoState
from ...errors import DmgalError
from ..episode import Episode, EpisodeOutput
from ..recognizer import FewShotRecognizer
from .memory import give_back_free_memory, memory_of
from .plan import Choice, Plan, Planner, VideoCost
from .recompute import CostlyResults, RandomState, count_frozen_blocks

logger = logging.getLogger(__name__)

Autocast = Callable[[], AbstractContextManager[Any]]
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
            expensive results, so that less is recomputed (see `recompute`). None: `SHARE` of the free memory, or,
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
        autocast: Autocast = nullcontext,
        notify: Callable[[str], object] = logger.warning,
    ) -> None:
        self.recognizer = recognizer
        self.planner = Planner(chunk, memory_budget, keep_products, notify)
        self._autocast = autocast
        self._first_pass = FirstPass(recognizer, autocast, keep_products)

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
        rng = RandomState.now(episodes[0].support.device)
        self.plan(episodes[0])

        def scaled_loss(output: EpisodeOutput, episode: Episode) -> Tensor:
            value = loss(output, episode) / len(episodes)
            return value if scale is None else scale(value)

        outputs = []
        for episode in episodes:
            output, gradients = self._backward_with_retries(episode, scaled_loss, rng)
            gradients.add_to_parameters()
            losses = {name: value.detach() for name, value in output.losses.items()}
            outputs.append(EpisodeOutput(output.logits.detach(), losses))
        return outputs

    @property
    def choice(self) -> Choice | None:
        """The choice made from the free memory, as JSON values. None before. Other choices change the order of sums."""
        return self.planner.choice

    def take_up(self, choice: Choice | None) -> None:
        """Reuse a previous choice for equal task sizes and options, so that results are bit-identical."""
        self.planner.take_up(choice)

    def plan(self, episode: Episode) -> Plan:
        """Return the plan, which the first call makes from the measured memory of encoding one video.

        The first `backward` calls this. Call it earlier if the first step should take as long as the others.
        """
        return self.planner.make(episode, lambda: self._first_pass.measure(episode.support[:1]))

    def _backward_with_retries(
        self, episode: Episode, loss: TaskLoss, rng: RandomState
    ) -> tuple[EpisodeOutput, SecondPass]:
        """Compute the gradients of a whole task. If an attempt fails, discard it and repeat the task in another way."""
        plan = self.plan(episode)
        while True:
            try:
                return self._backward_task(episode, loss, rng, plan)
            except (RuntimeError, MemoryError) as error:
                plan = self.planner.change_after(error, episode)
            gc.collect()  # outside the clause above, in which the error still holds the memory of the attempt
            if rng.device.type == "cuda":
                torch.cuda.empty_cache()

    def _backward_task(
        self, episode: Episode, loss: TaskLoss, rng: RandomState, plan: Plan
    ) -> tuple[EpisodeOutput, SecondPass]:
        second_pass = SecondPass(trained_parameters(self.recognizer))
        states = self._first_pass.run(torch.cat([episode.support, episode.query]), rng, plan)
        boundary = _detach_states(states)
        with self._autocast():
            support, query = boundary.split([episode.num_support, episode.num_query])
            targets = episode.targets if self.recognizer.training else None
            output = self.recognizer.compare(support, episode.support_labels, query, targets)
        after = RandomState.now(rng.device)
        leaves = {name: leaf for name, leaf in boundary.items() if leaf.requires_grad}
        gradients = second_pass.differentiate([loss(output, episode)], None, list(leaves.values()))
        upstream = {name: tensor for name, tensor in zip(leaves, gradients, strict=True) if tensor is not None}
        second_pass.run(states, VideoState(upstream))
        after.restore()
        return output, second_pass

    def _check(self) -> None:
        if not trained_parameters(self.recognizer):
            raise DmgalError(
                "There is nothing to train.",
                received="no parameter that requires a gradient",
                expected="an adapter, a trainable backbone or a trainable head",
                remedy="Call requires_grad_(True) on the parameters to train.",
            )
        per_video: list[Any] = [self.recognizer.encoder]
        if not self.recognizer.encoder.has_task_layer:  # after one, the head gets all videos of a task at once
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


class FirstPass:
    """The encoding of videos in chunks, with the activations of one chunk in memory.

    Args:
        recognizer, autocast: see `TwoPass`.
        skip_frozen_blocks: keep the input of the first trained block in memory, so that the blocks before it are not
            run again.
    """

    def __init__(self, recognizer: FewShotRecognizer, autocast: Autocast, skip_frozen_blocks: bool) -> None:
        self.recognizer = recognizer
        self._autocast = autocast
        self._skip_frozen_blocks = skip_frozen_blocks
        self._num_frozen_blocks = 0
        self._counted_for: tuple[bool, ...] = ()  # training modes for which the blocks were counted

    def run(self, videos: Tensor, rng: RandomState, plan: Plan) -> list[VideoState]:
        """Return the states of each chunk. Those of the first chunk have a graph, the others are encoded again."""
        self._count_frozen_blocks(videos[:1])
        first, *others = videos.tensor_split(-(-len(videos) // plan.chunk))
        states = [self._encode(chunk, rng, plan) for chunk in others]
        rng.restore()  # last, because the activations of this chunk stay in memory
        give_back_free_memory(rng.device)
        with self._autocast():
            return [self.recognizer.encode(first), *states]

    def measure(self, video: Tensor) -> VideoCost:
        """Measure the memory of encoding a video ``(1, T, 3, H, W)`` in both passes."""
        rng, costly, trained = RandomState.now(video.device), CostlyResults(), trained_parameters(self.recognizer)
        self._count_frozen_blocks(video)

        def encode_without_graph() -> tuple[BlockInput | None, VideoState]:
            rng.restore()
            with torch.no_grad(), self._autocast():
                return self._start(video), self.recognizer.encode(video)

        def encode_and_differentiate() -> None:
            with self._autocast():
                start = self._start(video)
                rng.restore()
                with costly:
                    state = self.recognizer.encode(video, start)
            outputs = [tensor for tensor in state.values() if tensor.requires_grad]
            if outputs:
                SecondPass(trained).differentiate(outputs, [torch.ones_like(tensor) for tensor in outputs])

        held = memory_of(encode_without_graph, video.device).held  # also fills libraries' caches
        peak = memory_of(encode_and_differentiate, video.device).peak
        rng.restore()
        parameter_bytes = sum(parameter.numel() * parameter.element_size() for parameter in trained)
        return VideoCost(held, peak, costly.results, parameter_bytes)

    def _encode(self, videos: Tensor, rng: RandomState, plan: Plan) -> VideoState:
        """Encode a chunk from the common random state, and again in the backward pass."""
        rng.restore()
        give_back_free_memory(rng.device)
        with self._autocast():
            start = self._start(videos) if plan.save_results else None
            state: VideoState = checkpoint(
                self.recognizer.encode, videos, start, use_reentrant=False, **plan.checkpoint_options()
            )
        return state

    def _start(self, videos: Tensor) -> BlockInput | None:
        """Return the input of the first trained block, or None if it is the first block."""
        if not self._num_frozen_blocks:
            return None
        encoder: Any = self.recognizer.encoder
        with torch.no_grad():
            start: BlockInput = encoder.advance(encoder.start(videos), self._num_frozen_blocks)
        return start

    def _count_frozen_blocks(self, video: Tensor) -> None:
        """Count the blocks before the first trained one, if other parameters are trained than before."""
        recognizer = self.recognizer
        key = (recognizer.training, *(parameter.requires_grad for parameter in recognizer.parameters()))
        if self._skip_frozen_blocks and key != self._counted_for:
            with self._autocast():
                self._num_frozen_blocks = count_frozen_blocks(recognizer.encoder, video)
            self._counted_for = key


class SecondPass:
    """The backward pass of a task, with sums of gradients separate from the parameters' own until it has succeeded."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.sums: dict[int, Tensor] = {}

    def run(self, states: list[VideoState], upstream: VideoState) -> None:
        """Continue the backward pass from the gradients of all videos' states, and remove the chunks from the list."""
        for part in upstream.split([state.num_videos for state in states]):
            state = states.pop(0)  # frees the graph of the previous chunk
            give_back_free_memory(next(iter(state.values())).device)
            if part:
                self.differentiate([state[name] for name in part], list(part.values()))

    def differentiate(
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


def trained_parameters(recognizer: FewShotRecognizer) -> list[nn.Parameter]:
    """Return the parameters that require gradients."""
    return [parameter for parameter in recognizer.parameters() if parameter.requires_grad]


BUCKET = 2**24
"""Number of elements that are sent at once."""


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each ``grad`` by its mean over all processes. With a single process, do nothing.

    A missing gradient counts as zero if another process has one, and stays missing otherwise. Call this once per
    optimizer step on every process, after all gradients are summed and before they are clipped.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        return
    used = torch.tensor([parameter.grad is not None for parameter in trained], device=trained[0].device).int()
    dist.all_reduce(used, dist.ReduceOp.MAX)
    gradients = []
    for parameter, has_gradient in zip(trained, used.tolist(), strict=True):
        if has_gradient and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad is not None:
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for gradient, mean in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield groups of consecutive gradients of one dtype that are large enough to send efficiently."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and (bucket[0].dtype != gradient.dtype or sum(map(Tensor.numel, bucket)) >= BUCKET):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket

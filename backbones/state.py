"""States of videos before any task, the interface of task layers, and the layout of frames in a forward call.

Before the first task layer a tensor depends on one video, after it on one task. A state holds named tensors whose first
dimension is the video. A backbone processes ``(V*T, ...)`` frames independently of their videos, so adapters read the
number of frames per video and of support videos from the layout. A layout is valid only during one call, so that stale
numbers cannot affect a later call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from ..errors import DmgalError

SAVES_EVERYTHING: ContextVar[bool] = ContextVar("saves_everything", default=False)
"""True inside `dmgal.adapters.differentiable_twice`: nothing is recomputed in the backward pass."""


class VideoState(dict[str, Tensor]):
    """Tensors by name, whose entry ``i`` along the first dimension depends on video ``i`` alone.

    A state does not depend on a task. It can be computed once and used in any number of episodes.
    """

    @property
    def num_videos(self) -> int:
        """Number of videos. A state without tensors has none."""
        return next((tensor.shape[0] for tensor in self.values()), 0)

    def select(self, videos: Tensor | slice) -> VideoState:
        """Return the states of some videos, given by index tensor, mask or slice."""
        return VideoState({name: tensor[videos] for name, tensor in self.items()})

    def to(self, *args: Any, **kwargs: Any) -> VideoState:
        """Convert or move all tensors, as ``Tensor.to``."""
        return VideoState({name: tensor.to(*args, **kwargs) for name, tensor in self.items()})

    def split(self, sizes: Sequence[int]) -> list[VideoState]:
        """Split into consecutive groups of videos, e.g. the support and the query of one task."""
        parts = {name: tensor.split(list(sizes)) for name, tensor in self.items()}
        return [VideoState({name: part[i] for name, part in parts.items()}) for i in range(len(sizes))]

    @staticmethod
    def cat(states: Sequence[VideoState]) -> VideoState:
        """Concatenate the videos of several states, which must have the same names."""
        return VideoState({name: torch.cat([state[name] for state in states]) for name in states[0]})


class TaskLayer(Protocol):
    """A layer after a block that relates support and query videos, as the encoder uses it.

    ``rows`` selects the tokens that are used afterwards. After the last block, class-token pooling needs only one row.
    """

    def is_task_layer(self) -> bool:
        """Return True if it currently relates videos. An adapter may be disabled, or of another kind."""

    def set_aside(self) -> AbstractContextManager[None]:
        """Run the block without this layer inside the context: the caller calls ``prepare`` and ``relate`` itself."""

    def prepare(self, tokens: Tensor, rows: slice) -> VideoState:
        """Compute the part that depends on each video alone, from tokens ``(V, T, N, C)``."""

    def relate(self, support: VideoState, query: VideoState, rows: slice) -> tuple[Tensor, Tensor]:
        """Return support tokens ``(S, T, R, C)`` and query tokens ``(Q, T, R, C)`` of one task, for ``R`` rows."""


class DividedTaskLayer(TaskLayer, Protocol):
    """A task layer that transforms a support video independently of the rest of its task.

    The support state of a video is then computed once, and the cost of a task is that of its queries. Other task
    layers do not define these three methods.
    """

    def support_side(self, state: VideoState, rows: slice) -> tuple[Tensor, VideoState]:
        """Return support tokens ``(S, T, R, C)`` and the tensors that queries attend to, from prepared states."""

    def query_side(self, state: VideoState, rows: slice) -> VideoState:
        """Return the entries of prepared states that videos need as queries."""

    def relate_query(
        self, attended: VideoState, query: VideoState, num_tasks: int = 1, places: Tensor | None = None
    ) -> Tensor:
        """Return tokens ``(E*Q, T, R, C)`` of the query videos of ``E = num_tasks`` tasks of equal sizes.

        ``attended`` (``E*S`` videos) is from ``support_side`` and ``query`` (``E*Q`` videos) from ``query_side``, task
        after task. If ``places (E, S)`` are given, ``attended`` contains any videos, and ``places`` are the indices of
        each task's support videos.
        """


def task_layer_after(block: nn.Module) -> TaskLayer | None:
    """Return the active task layer after a block, or None."""
    child: Any
    for child in block.children():
        # hasattr, because isinstance with a protocol took a third of an evaluation's time
        if hasattr(type(child), "is_task_layer") and child.is_task_layer():
            return child
    return None


@contextmanager
def mixed_batch(backbone: Any, adapter_names: Sequence[str], num_frames: int) -> Iterator[None]:
    """Run calls of parts of a PEFT model inside the context with one adapter for each video, as PEFT's mixed batches.

    Args:
        backbone: the PEFT model. Our own adapters read one name for each video, those of PEFT one for each frame.
        adapter_names: a name for each video, ``"__base__"`` for the backbone alone.
        num_frames: frames per video.

    Raises:
        DmgalError: the backbone is not a PEFT model, or its method ignores the names.
    """
    tuner = getattr(backbone, "base_model", None)
    if not hasattr(type(tuner), "_enable_peft_forward_hooks"):
        raise DmgalError(
            "This model cannot mix adapters in a batch.",
            received=f"adapter_names with {type(tuner).__name__ if hasattr(backbone, 'peft_config') else 'no adapter'}",
            expected="a PEFT model with LoRAs or with adapters of dmgal",
            remedy="Encode the videos of each adapter separately, after set_adapter.",
        )
    is_per_video = getattr(type(tuner), "names_are_per_video", False)
    repeats = 1 if is_per_video else num_frames
    names = [name for name in adapter_names for _ in range(repeats)]
    with backbone._enable_peft_forward_hooks(adapter_names=names):
        yield


class Layout:
    """Number of frames and support videos in the current forward call, shared by all adapters of one backbone."""

    def __init__(self) -> None:
        self._calls: list[tuple[int | None, int | None]] = []
        self.carried: dict[str, Tensor] = {}
        """What adapters hand on from block to block, by their names."""

    @property
    def num_support(self) -> int | None:
        """Number of support videos, which come first, or None if unknown."""
        return self._calls[-1][1] if self._calls else None

    @property
    def num_frames(self) -> int | None:
        """Number of frames per video, or None if unknown."""
        return self._calls[-1][0] if self._calls else None

    def enter(self, num_frames: int | None = None, num_support: int | None = None) -> None:
        """Begin a call. A value of None is inherited from the outer call."""
        self._calls.append(self._calls[-1] if self._calls else (None, None))
        self.set_values(num_frames, num_support)

    def set_values(self, num_frames: int | None, num_support: int | None) -> None:
        """Set values of the current call. None leaves a value unchanged."""
        frames, support = self._calls[-1]
        self._calls[-1] = (
            frames if num_frames is None else num_frames,
            support if num_support is None else num_support,
        )

    def leave(self) -> None:
        """End the current call."""
        self._calls.pop()

    @contextmanager
    def of(self, num_frames: int | None = None, num_support: int | None = None) -> Iterator[None]:
        """Set the layout inside the context, as between `enter` and `leave`."""
        self.enter(num_frames, num_support)
        try:
            yield
        finally:
            self.leave()

    def videos(self, tokens: Tensor, default_num_frames: int) -> Tensor:
        """Return the tokens ``(V*T, N, C)`` of all frames as ``(V, T, N, C)``.

        The default applies if the current call did not set a number of frames.
        """
        if not self._calls and torch._C._current_graph_task_id() != -1:
            raise DmgalError(
                "A backward pass recomputes a block, but the number of frames per video is no longer known.",
                received="a library's own gradient checkpointing, which recomputes a block with its hooks",
                expected="hooks outside the recomputed part, or a layout that is set during recomputation",
                remedy="Use FrameEncoder(..., checkpoint_blocks=True) instead of the library's checkpointing.",
            )
        frames = self.num_frames or default_num_frames
        if tokens.shape[0] % frames:  # len() would fix the number of videos of an exported program
            raise DmgalError(
                "The number of frames in a batch is not a multiple of the frames per video.",
                received=f"{len(tokens)} frames, {frames} frames a video",
                expected="a whole number of videos, one after the other",
                remedy="Pass num_frames=... with the call, or a 5-D input (videos, frames, 3, height, width).",
            )
        return rearrange(tokens, "(v t) n c -> v t n c", t=frames)

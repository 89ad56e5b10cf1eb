"""Memory of frames: the frozen tokens of each frame, so that frozen blocks see a frame only once.

Before the first adapter a backbone is frozen and sees single frames. Its result depends on the frame alone, whichever
clip and task the frame is in. Training draws the same frames again and again, so most steps can begin at the first
adapter. A side network changes no token before the last block, so that all blocks are frozen: what it reads of each
block is remembered, and a step for frames that were seen before runs no block at all.

Frames are identified by a hash of their pixels. Random crops and colors make every frame a new one.

Overlapping windows of a live video share frames, too. There nothing is trained, so `recent_frames` covers all blocks of
a backbone without adapters.
"""

from __future__ import annotations

import torch
import xxhash
from einops import rearrange
from torch import Tensor

from ..errors import DmgalError
from .encoder import BlockInput, FrameEncoder
from .probing import evaluating
from .recomputation import adapted_modules, switched_off


class FrameMemory:
    """The input tokens of the first adapted block, or what a side network reads, for frames that were seen before.

    ``reads`` are the blocks whose outputs a side network reads, empty for other adapters. ``block`` is the first that
    runs.

    Frames are computed one by one, in evaluation mode, so the tokens of a frame never depend on what is remembered.

    Args:
        encoder: the encoder, whose adapters stay in their blocks. Set its ``frame_memory`` to use the memory.
        num_bytes: size of the memory, for the tokens alone.
        block: index of the block whose input is remembered. None: the first block that is trained.
        forgets: a full memory forgets the oldest frame. If False, further frames are computed each time.

    Raises:
        DmgalError: something is trained in the first block or before it, other than a side network.
    """

    def __init__(
        self, encoder: FrameEncoder, num_bytes: float, block: int | None = None, forgets: bool = False
    ) -> None:
        self.num_bytes = num_bytes
        self.used_bytes = 0
        self.reads = _blocks_read(encoder) if block is None else ()
        if block is None:
            block = encoder.spec.num_blocks if self.reads else _frozen_blocks(encoder)
        self.block = block
        self._forgets = forgets
        self._encoder = encoder
        self._tokens: dict[bytes, Tensor] = {}

    def __len__(self) -> int:
        """Return the number of remembered frames."""
        return len(self._tokens)

    @torch.no_grad()
    def start(self, videos: Tensor) -> BlockInput:
        """Return the input of the first adapted block for videos ``(V, T, 3, H, W)``, or the outputs that are read."""
        frames = rearrange(videos, "v t c h w -> (v t) c h w")
        setting = f"{frames.dtype} {tuple(frames.shape[1:])} {_autocast_dtype(frames.device.type)}".encode()
        pixels = frames.cpu().contiguous().view(torch.uint8).numpy()
        with evaluating(self._encoder):
            of_frames = [
                self._frame(frame, xxhash.xxh3_128_digest(values) + setting)
                for frame, values in zip(frames, pixels, strict=True)
            ]
        tokens = rearrange(torch.stack(of_frames), "(v t) k n c -> k v t n c", v=len(videos))
        if not self.reads:
            return BlockInput(self.block, tokens[0])
        return BlockInput(0, tokens[0], dict(zip(self.reads, tokens, strict=True)))

    def _frame(self, frame: Tensor, key: bytes) -> Tensor:
        """Return the tokens of a frame ``(3, H, W)``: those of each block that is read, ``(K, N, C)``, or ``K = 1``."""
        if key in self._tokens:
            return self._tokens[key].to(frame.device)
        video = rearrange(frame, "c h w -> 1 1 c h w")
        if self.reads:
            outputs = _outputs(self._encoder, video)
            tokens = torch.cat([outputs[index] for index in self.reads])
        else:
            tokens = _advanced(self._encoder, video, self.block)
        while self._forgets and self._tokens and self.used_bytes + tokens.nbytes > self.num_bytes:
            self.used_bytes -= self._tokens.pop(next(iter(self._tokens))).nbytes
        if self.used_bytes + tokens.nbytes <= self.num_bytes:
            self._tokens[key] = tokens.cpu()
            self.used_bytes += tokens.nbytes
        return tokens


def recent_frames(encoder: FrameEncoder, num_bytes: float, adapted: bool = True) -> FrameMemory | None:
    """Return a memory of recent frames for an encoder that is not trained, or None if frames depend on each other.

    Args:
        encoder: the encoder.
        num_bytes: see `FrameMemory`.
        adapted: False if the adapters are switched off whenever the memory is used.
    """
    block = encoder.first_adapted_block if adapted else encoder.spec.num_blocks
    if not block or encoder.spec.clip_frames is not None:
        return None
    return FrameMemory(encoder, num_bytes, block, forgets=True)


def _blocks_read(encoder: FrameEncoder) -> tuple[int, ...]:
    """Return the blocks with adapters and the last one, if all adapters are side networks and all else is frozen."""
    blocks = encoder._blocks()
    adapted = [index for index, block in enumerate(blocks) if adapted_modules(block)]
    are_side = all(getattr(part, "carries_state", False) for part in adapted_modules(encoder.backbone))
    if not adapted or not are_side or encoder.spec.sides or encoder.spec.clip_frames is not None:
        return ()
    with torch.enable_grad(), evaluating(encoder):
        is_frozen = not any(output.requires_grad for output in _outputs(encoder, _blank(encoder)))
    return tuple(sorted({*adapted, len(blocks) - 1})) if is_frozen else ()


def _outputs(encoder: FrameEncoder, video: Tensor) -> list[Tensor]:
    """Return the output ``(T, N, C)`` of each block for a video ``(1, T, 3, H, W)``, without adapters."""
    with switched_off(encoder.backbone):
        points = [encoder.embed(video)]
        for block in range(1, encoder.spec.num_blocks + 1):
            points.append(encoder.advance(points[-1], block))
    return [point.tokens[0] for point in points[1:]]


def _frozen_blocks(encoder: FrameEncoder) -> int:
    """Return the index of the first adapted block, before which all is frozen."""
    if encoder.spec.clip_frames is not None:
        raise DmgalError(
            "The frames of a video are not encoded alone by this backbone.",
            received="a backbone of videos",
            expected="a backbone of images",
            remedy="Remove train.frame_memory.",
        )
    block = encoder.first_adapted_block
    with torch.enable_grad(), evaluating(encoder):
        if block and not _advanced(encoder, _blank(encoder), block).requires_grad:
            return block
    raise DmgalError(
        "No frozen blocks come before the part of this backbone that is trained.",
        received="a trainable backbone, or an adapter in the first block or before it",
        expected="a frozen backbone, with adapters in later blocks or without adapters",
        remedy="Remove train.frame_memory, or choose later blocks for the adapter.",
    )


def _advanced(encoder: FrameEncoder, video: Tensor, block: int) -> Tensor:
    """Return the input ``(T, N, C)`` of a block for a video ``(1, T, 3, H, W)``."""
    return encoder.advance(encoder.embed(video), block).tokens[0]


def _blank(encoder: FrameEncoder) -> Tensor:
    """Return a black video of one frame, ``(1, 1, 3, H, W)``."""
    return torch.zeros(1, 1, 3, *encoder.image_size, dtype=torch.uint8, device=encoder.mean.device)


def _autocast_dtype(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

"""Memory of frames: the tokens of each frame before the first adapter, so that frozen blocks see a frame only once.

Before the first adapter a backbone is frozen and sees single frames. Its result depends on the frame alone, whichever
clip and task the frame is in. Training draws the same frames again and again, so most steps can begin at the first
adapter. Frames are identified by a hash of their pixels. Random crops and colors make every frame a new one.

Overlapping windows of a live video share frames, too. There nothing is trained, so `recent_frames` covers all blocks of
a backbone without adapters.
"""

from __future__ import annotations

import torch
import xxhash
from einops import pack, rearrange
from torch import Tensor

from ..errors import DmgalError
from .encoder import BlockInput, FrameEncoder
from .probing import evaluating


class FrameMemory:
    """The input tokens of the first adapted block for frames that were seen before.

    Frames are computed one by one, in evaluation mode, so the tokens of a frame never depend on what is remembered.

    Args:
        encoder: the encoder, whose adapters do not change place. Set its ``frame_memory`` to use the memory.
        num_bytes: size of the memory, for the tokens alone.
        block: index of the block whose input is remembered. None: the first block that is trained.
        forgets: a full memory forgets the oldest frame. If False, further frames are computed each time.

    Raises:
        DmgalError: something is trained in the first block or before it.
    """

    def __init__(
        self, encoder: FrameEncoder, num_bytes: float, block: int | None = None, forgets: bool = False
    ) -> None:
        self.num_bytes = num_bytes
        self.used_bytes = 0
        self.block = _frozen_blocks(encoder) if block is None else block
        self._forgets = forgets
        self._encoder = encoder
        self._tokens: dict[bytes, Tensor] = {}

    def __len__(self) -> int:
        """Return the number of remembered frames."""
        return len(self._tokens)

    @torch.no_grad()
    def start(self, videos: Tensor) -> BlockInput:
        """Return the input of the first adapted block for videos ``(V, T, 3, H, W)``."""
        frames = rearrange(videos, "v t c h w -> (v t) c h w")
        setting = f"{frames.dtype} {tuple(frames.shape[1:])} {_autocast_dtype(frames.device.type)}".encode()
        pixels = frames.cpu().contiguous().view(torch.uint8).numpy()
        with evaluating(self._encoder):
            found = [
                self._frame(frame, xxhash.xxh3_128_digest(values) + setting)
                for frame, values in zip(frames, pixels, strict=True)
            ]
        return BlockInput(self.block, rearrange(pack(found, "* n c")[0], "(v t) n c -> v t n c", v=len(videos)))

    def _frame(self, frame: Tensor, key: bytes) -> Tensor:
        """Return the tokens ``(1, N, C)`` of a frame ``(3, H, W)``."""
        if key in self._tokens:
            return self._tokens[key].to(frame.device)
        tokens = _advanced(self._encoder, rearrange(frame, "c h w -> 1 1 c h w"), self.block)
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
    blank = torch.zeros(1, 1, 3, *encoder.image_size, dtype=torch.uint8, device=encoder.mean.device)
    with torch.enable_grad(), evaluating(encoder):
        if block and not _advanced(encoder, blank, block).requires_grad:
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


def _autocast_dtype(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

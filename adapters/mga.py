"""Motion-guided attention at the backbone's full width: S-MGA and C-MGA of DMGAL, and TDSAM of M2ACL.

All three attend by motion, the difference between a frame and its spatially aligned neighbor, to values of appearance:

    S-MGA:  x + gamma * A(m, m) @ dw_space(x)            within a frame (DMGAL, arXiv 2411.11335)
    C-MGA:  q + gamma_1 dw_space(q) + gamma_2 A(m_q, m_s) @ dw_space(s)     from support videos to a query (DMGAL)
    TDSAM:  x + gamma * A(m, m) @ dw_time(x)             within a frame (M2ACL, ICASSP 2024)

They are reproduced from the released code. ``A`` is the mean of the maps of both directions of motion. One product
with it equals the authors' two products and is faster. All read patch maps. In evaluation mode, or with frozen batch
norms, a video's features depend on that video alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ..backbones.state import VideoState
from ..errors import DmgalError
from .common import SharedDropout, check_equal_frames, load_reference_state, sinusoidal_position_code
from .motion import Motion, motion_attention

REFERENCE_NAMES = {
    "conv1": "reduce",
    "bn1": "reduce_norm",
    "conv2": "align",
    "conv3_smallscale2": "coarse",
    "bn3_smallscale2": "coarse_norm",
    "conv3_smallscale4": "fine",
    "bn3_smallscale4": "fine_norm",
    "conv3": "merge",
}
"""Our names of the parts of `MotionFeatures`, by their names in the released code."""


class MotionFeatures(nn.Module):
    """Multi-scale features of the motion to the next and to the previous frame.

    ``b = BN(reduce(x))`` and ``c = align(b)``; forward ``f_t = c_{t+1} - b_t`` (zero at the last frame), backward
    ``g_t = c_{t-1} - b_t`` (zero at the first). Each difference ``d`` becomes
    ``merge((d + up(coarse(pool(d))) + fine(d)) / 3)``, with the same weights for both directions.

    In training mode both directions pass the batch norms as one batch (ours). Evaluation mode is not affected.

    Args:
        channels: width of the patch maps.
        reduction: ``channels // reduction`` channels of motion.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        if not 1 <= reduction <= channels:
            raise DmgalError(
                "The reduction of the motion features is not valid.",
                received=f"channels={channels}, reduction={reduction}",
                expected="a reduction from 1 to the number of channels",
                remedy="Lower the reduction.",
            )
        width = channels // reduction
        self.width = width
        self.reduce = nn.Conv2d(channels, width, 1, bias=False)
        self.reduce_norm = nn.BatchNorm2d(width)
        self.align = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.coarse = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.coarse_norm = nn.BatchNorm2d(width)
        self.fine = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.fine_norm = nn.BatchNorm2d(width)
        self.merge = nn.Conv2d(width, width, 1, bias=False)
        initialize_convolutions(self)

    def forward(self, features: Tensor) -> Tensor:
        """Return forward and backward motion ``(2,V,T,C',H,W)`` of maps ``(V,T,C,H,W)``."""
        frames = check_patch_maps(features)[1]
        reduced = self.reduce_norm(self.reduce(rearrange(features, "v t c h w -> (v t) c h w")))
        aligned = self.align(reduced)
        differences = _differences(
            rearrange(reduced, "(v t) c h w -> v t c h w", t=frames),
            rearrange(aligned, "(v t) c h w -> v t c h w", t=frames),
        )
        merged = self._multi_scale(rearrange(differences, "d v t c h w -> (d v t) c h w"))
        return rearrange(merged, "(d v t) c h w -> d v t c h w", d=2, t=frames)

    def _multi_scale(self, differences: Tensor) -> Tensor:
        """Map differences ``(B,C',H,W)`` to the same shape."""
        size = differences.shape[-2:]
        window = [min(2, side) for side in size]  # a grid of one row cannot be pooled along it
        coarse = self.coarse_norm(self.coarse(functional.avg_pool2d(differences, window)))
        fine = self.fine_norm(self.fine(differences))
        return self.merge((differences + functional.interpolate(coarse, size=size) + fine) / 3)


def check_patch_maps(features: Tensor) -> torch.Size:
    """Return the sizes of patch maps ``(V,T,C,H,W)``. Raise DmgalError for any other number of dimensions."""
    if features.dim() != 5:
        raise DmgalError(
            "Motion attention needs the patch maps of whole videos.",
            received=f"a tensor of shape {tuple(features.shape)}",
            expected="(videos, frames, channels, height, width)",
            remedy="Reshape frame-major maps with features.unflatten(0, (-1, num_frames)).",
        )
    return features.shape


def initialize_convolutions(module: nn.Module) -> None:
    """Initialize every convolution from a normal of std ``sqrt(2 / (k * k * out))``, as in the released code."""
    for convolution in module.modules():
        if isinstance(convolution, nn.Conv2d):
            fan_out = math.prod(convolution.kernel_size) * convolution.out_channels
            nn.init.normal_(convolution.weight, std=math.sqrt(2 / fan_out))


def _differences(frames: Tensor, aligned: Tensor) -> Tensor:
    """Return the next and the previous aligned frame minus each frame, ``(2,V,T,...)``."""
    zero = torch.zeros_like(frames[:, :1])
    to_next = torch.cat((aligned[:, 1:] - frames[:, :-1], zero), dim=1)
    to_previous = torch.cat((zero, aligned[:, :-1] - frames[:, 1:]), dim=1)
    return torch.stack((to_next, to_previous))


_MOTION_NAMES = {theirs: f"motion.{ours}" for theirs, ours in REFERENCE_NAMES.items()}
S_MGA_NAMES = {**_MOTION_NAMES, "conv": "values", "gamma": "gamma"}
C_MGA_NAMES = {
    **_MOTION_NAMES,
    "conv": "values",
    "norm_qk": "token_norm",
    "gamma1": "gamma_values",
    "gamma2": "gamma_cross",
}
"""Our names of the parts of both modules, by their names in the released code. Those of `TDSAM` equal S-MGA's."""


class SelfMotionGuidedAttention(nn.Module):
    """S-MGA: patches of a frame with similar motion share their appearance.

    ``out = x + gamma * (A_f + A_b) / 2 @ dw3x3(x)`` with ``A = softmax(m m^T / sqrt(C'))`` over the patches of a frame,
    ``m`` the motion tokens plus a sinusoidal position code, and gamma starting at 0.

    ``m m^T`` does not depend on the sign of motion. A clip and its time reversal get the same frame features, in
    reverse order.

    Args:
        channels: width ``C`` of the patch maps.
        reduction: ``C' = C // reduction`` channels of motion.
        dropout: rate on the motion tokens in training. All videos of a batch share the mask (ours).
    """

    def __init__(self, channels: int, reduction: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        self.motion = MotionFeatures(channels, reduction)
        self.values = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.dropout = SharedDropout(dropout)
        self.gamma = nn.Parameter(torch.zeros(1))
        initialize_convolutions(self)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(V,T,C,H,W)`` to the same shape."""
        tokens = self.dropout(self.attention_tokens(self.motion(features)))
        tokens = rearrange(tokens, "d v t p c -> d (v t) p c")
        attention = _average_attention(tokens, tokens)
        values = self.values(rearrange(features, "v t c h w -> (v t) c h w"))
        values = rearrange(values, "b c h w -> b c (h w)")
        attended = values @ attention.transpose(1, 2)
        return features + self.gamma * attended.view_as(features)

    def attention_tokens(self, motion: Tensor) -> Tensor:
        """Return the tokens whose products are the attention, ``(2,V,T,P,C')``, of motion ``(2,V,T,C',H,W)``."""
        tokens = rearrange(motion, "d v t c h w -> d v t (h w) c")
        return tokens + sinusoidal_position_code(tokens.shape[3], tokens.shape[4], like=tokens)

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load weights under the names of DMGAL's released code, except the position code, which is computed here."""
        load_reference_state(self, state, S_MGA_NAMES, ignored=("pe.pe",))


class CrossMotionGuidedAttention(nn.Module):
    """C-MGA: each patch of a query frame gathers appearance from support patches with similar motion.

    For a query video and frame t: ``query' = q + gamma_values * dw(q) + gamma_cross * cross``, where ``cross`` attends
    from its motion tokens of frame t to those of frame t of all support videos of the task, with one softmax over all
    of them. A support video gets ``s + gamma_values * dw(s)``. Both gammas start at 0. Motion tokens are layer-normed.

    Everything but ``cross`` depends on one video alone. `prepare` computes it once, `relate` adds the cross attention.

    Args:
        channels: width ``C`` of the patch maps.
        reduction: ``C' = C // reduction`` channels of motion.
    """

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        self.motion = MotionFeatures(channels, reduction)
        self.token_norm = nn.LayerNorm(self.motion.width)
        self.values = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.gamma_values = nn.Parameter(torch.zeros(1))
        self.gamma_cross = nn.Parameter(torch.zeros(1))
        initialize_convolutions(self)

    def forward(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(S,T,C,H,W)`` and ``(Q,T,C,H,W)`` to the same shapes."""
        return self.relate(self.prepare(support), self.prepare(query))

    def prepare(self, features: Tensor) -> VideoState:
        """Compute the per-video state of maps ``(V,T,C,H,W)``.

        It has ``residual`` ``(V,T,C,H,W)``, the features without cross attention; ``motion`` ``(V,2,T,P,C')``, the
        motion tokens forward and backward; ``values`` ``(V,T,P,C)``, the values of the attention to a support video.
        """
        frames = check_patch_maps(features)[1]
        tokens = self.attention_tokens(self.motion(features))
        values = self.values(rearrange(features, "v t c h w -> (v t) c h w"))
        values = rearrange(values, "(v t) c h w -> v t c h w", t=frames)
        return VideoState(
            residual=features + self.gamma_values * values,
            motion=rearrange(tokens, "d v t p c -> v d t p c"),
            values=rearrange(values, "v t c h w -> v t (h w) c"),
        )

    def attention_tokens(self, motion: Tensor) -> Tensor:
        """Return the tokens whose products are the attention, ``(2,V,T,P,C')``, of motion ``(2,V,T,C',H,W)``."""
        return self.token_norm(rearrange(motion, "d v t c h w -> d v t (h w) c"))

    def relate(self, support: VideoState, query: VideoState) -> tuple[Tensor, Tensor]:
        """Return the features of a task's videos, ``(S,T,C,H,W)`` and ``(Q,T,C,H,W)``, from two states of `prepare`."""
        residual = query["residual"]
        # The maps of all frames at once would take T times the memory and are not faster.
        cross = [
            self._attention(support, query, frame) @ _all_patches(support["values"], frame)
            for frame in range(_common_frames(support, query))
        ]
        height, width = residual.shape[-2:]
        maps = rearrange(torch.stack(cross), "t (q h w) c -> q t c h w", h=height, w=width)
        return support["residual"], residual + self.gamma_cross * maps

    @staticmethod
    def pool(state: VideoState) -> VideoState:
        """Return a smaller state for `relate_pooled`, with the residual averaged over patches, ``(V,T,C)``."""
        return VideoState({**state, "residual": state["residual"].mean(dim=(-2, -1))})

    def relate_pooled(self, support: VideoState, query: VideoState) -> tuple[Tensor, Tensor]:
        """Return `relate` averaged over patches, ``(S,T,C)`` and ``(Q,T,C)``, from states of `pool`.

        The mean of ``A @ values`` over patches equals the mean of A's rows times the values. The product with the
        values therefore runs once per query frame instead of once per query patch.
        """
        residual = query["residual"]
        cross = [
            self._attention(support, query, frame).unflatten(0, (residual.shape[0], -1)).mean(dim=1)
            @ _all_patches(support["values"], frame)
            for frame in range(_common_frames(support, query))
        ]
        return support["residual"], residual + self.gamma_cross * torch.stack(cross, dim=1)

    @staticmethod
    def _attention(support: VideoState, query: VideoState, frame: int) -> Tensor:
        """Return the attention of the query patches of one frame to the support patches, ``(Q*P,S*P)``."""
        query_tokens, support_tokens = (
            rearrange(state["motion"][:, :, frame], "v d p c -> d (v p) c") for state in (query, support)
        )
        return _average_attention(query_tokens, support_tokens)

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load weights under the names of DMGAL's released code."""
        load_reference_state(self, state, C_MGA_NAMES)


def _average_attention(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the mean attention map of both directions, ``(...,N,M)``, from ``(2,...,N,C')`` and ``(2,...,M,C')``."""
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)
    forward, backward = scores.softmax(dim=-1)
    return (forward + backward) * 0.5


def _all_patches(values: Tensor, frame: int) -> Tensor:
    """Return the patches of one frame of all videos, ``(S,T,P,C)`` to ``(S*P,C)``."""
    return rearrange(values[:, frame], "s p c -> (s p) c")


def _common_frames(support: VideoState, query: VideoState) -> int:
    support_frames, query_frames = support["motion"].shape[2], query["motion"].shape[2]
    check_equal_frames("C-MGA", support_frames, query_frames)
    return query_frames


class TDSAM(nn.Module):
    """Attention within each frame by which patches with similar motion share their appearance over three frames.

    ``out = x + gamma * (A_f + A_b) / 2 @ values`` with ``A = softmax(m m^T / sqrt(C'))`` over the patches of a frame
    and ``values`` a depth-wise convolution of ``x`` over time with kernel 3. Gamma starts at 0. DMGAL's S-MGA is a
    variant with narrower motion, a position code, and values convolved over space.

    As in S-MGA, a clip and its reversal have the same attention in reverse order. The convolution over time
    distinguishes them.

    Args:
        channels: width ``C`` of the patch maps.
        reduction: ``C' = C // reduction`` channels of motion.
    """

    def __init__(self, channels: int, reduction: int = 2) -> None:
        super().__init__()
        self.motion = MotionFeatures(channels, reduction)
        self.values = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), groups=channels, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(V,T,C,H,W)`` to the same shape. With batch norms in evaluation mode, each video is handled alone."""
        motion = Motion(*self.attention_tokens(self.motion(features)))
        values = self.values(rearrange(features, "v t c h w -> v c t h w"))
        attended = motion_attention(motion, motion, rearrange(values, "v c t h w -> v t (h w) c"))
        return features + self.gamma * rearrange(attended, "v t (h w) c -> v t c h w", h=features.shape[3])

    @staticmethod
    def attention_tokens(motion: Tensor) -> Tensor:
        """Return the tokens whose products are the attention, ``(2,V,T,P,C')``, of motion ``(2,V,T,C',H,W)``."""
        return rearrange(motion, "d v t c h w -> d v t (h w) c")

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load weights under the names of M2ACL's released code."""
        load_reference_state(self, state, S_MGA_NAMES)

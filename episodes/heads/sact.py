"""SA-CT (ACM MM 2023): mixes frames in time, then each query patch attends to its match within a class.

Y. Zhang et al., "On the Importance of Spatial Relations for Few-shot Action Recognition", arXiv 2308.07119.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from ...adapters.common import check_equal_frames, load_reference_state, sinusoidal_position_code
from ...backbones.state import VideoState
from ...errors import DmgalError
from ..episode import EpisodeOutput
from .frame_distance import at_least_float32, check_maps, check_option
from .temporal_mixer import REFERENCE_NAMES as MIXER_NAMES
from .temporal_mixer import TemporalMixer, TMixer
from .tuples import class_attention

Form = Literal["paper", "released"]
ATTENTION_NAMES = {"qk_linear": "to_keys", "norm_qk": "key_norm", "v_linear.weight": "to_values.weight"}
# The released forward never reads norm_v. A bias of the values cancels in their difference.
UNUSED_NAMES = ("norm_v.weight", "norm_v.bias", "v_linear.bias", "pe.pe")


class SpatialCrossAttention(nn.Module):
    """Distance of a query to each class, by reconstructing the query's patches from the patches of the class's shots.

    The patch tokens of query frame t attend to those of frame t of all shots of one class, with one softmax over
    patches and shots. The difference is ``difference_t = v_query - attention @ v_class``. There are two forms:

    - ``"paper"``: a convolutional position code ``x + dw3x3(x)``, separate projections of queries and keys, values
      without code, scores over ``sqrt(width)``. The difference is averaged over frames, then squared.
    - ``"released"`` (code of a related paper, tested against its outputs): first a sinusoidal code times 0.1, one
      projection for queries and keys, scores over ``sqrt(channels)``. The difference is squared, then averaged.

    Queries and keys are layer-normed. In the paper's form, the key norm has no bias; values have no bias in either
    form. These biases cannot change a softmax or a difference, so we omit them.

    Args:
        channels: width ``C`` of the patch maps.
        width: width ``D`` of queries, keys and values.
        form: ``"paper"`` or ``"released"``.
    """

    def __init__(self, channels: int, width: int = 1152, form: Form = "paper") -> None:
        super().__init__()
        check_option(self, "form", form, ("paper", "released"))
        self.form = form
        self.channels, self.width = channels, width
        self.to_keys = nn.Linear(channels, width)
        self.to_values = nn.Linear(channels, width, bias=False)
        self.key_norm = nn.LayerNorm(width, bias=form == "released")
        if form == "paper":
            self.code = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
            self.to_queries = nn.Linear(channels, width)
            self.query_norm = nn.LayerNorm(width)

    def prepare(self, features: Tensor) -> VideoState:
        """Return ``keys`` and ``values`` ``(V,T,P,D)`` of each video, from patch maps ``(V,T,C,H,W)``.

        The paper's form also has ``queries``. The released form uses its keys.
        """
        check_maps(self, features)
        patches = _flatten_patches(features)
        if self.form == "released":
            coded = patches + sinusoidal_position_code(*patches.shape[2:], like=patches)
            return VideoState(keys=self.key_norm(self.to_keys(coded)), values=self.to_values(coded))
        code = self.code(features.flatten(0, 1)).view_as(features)
        coded = patches + _flatten_patches(code)
        queries = self.query_norm(self.to_queries(coded))
        return VideoState(queries=queries, keys=self.key_norm(self.to_keys(coded)), values=self.to_values(patches))

    def distances(self, support: VideoState, labels: Tensor, query: VideoState) -> Tensor:
        """Return distances ``(Q,n_way)`` from prepared states of ``S`` and ``Q`` videos and support labels ``(S,)``."""
        num_frames, num_patches = query["values"].shape[1:3]
        check_equal_frames("SA-CT", support["values"].shape[1], num_frames)
        # One frame at a time, because all frames at once need T times the memory.
        differences = (self._difference(support, labels, query, frame) for frame in range(num_frames))
        if self.form == "paper":
            squares = torch.stack(list(differences)).sum(dim=0).square().sum(dim=(-2, -1))
        else:
            squares = torch.stack([part.square().sum(dim=(-2, -1)) for part in differences]).sum(dim=0)
        return squares.T / (num_frames**2 * num_patches)

    def _difference(self, support: VideoState, labels: Tensor, query: VideoState, frame: int) -> Tensor:
        """Return query values minus their reconstruction from each class in one frame, ``(n_way,Q,P,D)``."""
        queries = query["keys"] if self.form == "released" else query["queries"]
        queries = at_least_float32(queries[:, frame])
        if self.form == "released":
            queries = queries * (self.width / self.channels) ** 0.5  # class_attention divides by sqrt(width)
        keys, values = (at_least_float32(support[name][:, frame]) for name in ("keys", "values"))
        return query["values"][:, frame] - class_attention(queries, keys, values, labels)

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load weights under the names of the released code; ignore those it does not use."""
        _check_released(self.form)
        load_reference_state(self, state, ATTENTION_NAMES, UNUSED_NAMES)


class SACT(nn.Module):
    """Head with TMixer, then spatial cross-attention on its frames, from patch maps to logits ``-distance``.

    The released form has TMixer's first half only, because the frame halving was not released.

    Args:
        channels: width ``C`` of the patch maps.
        num_frames: frames of every video.
        width: width of queries, keys and values; 1152 as in TRX.
        form: ``"paper"`` or ``"released"``, see `SpatialCrossAttention`.
    """

    pair_scores = "one_shot"

    def __init__(self, channels: int, num_frames: int = 8, width: int = 1152, form: Form = "paper") -> None:
        super().__init__()
        self.attention = SpatialCrossAttention(channels, width, form)
        self.mixer = (TMixer if form == "paper" else TemporalMixer)(num_frames, channels)

    def prepare(self, features: Tensor) -> VideoState:
        """Return the state of `SpatialCrossAttention.prepare` for the mixed frames of patch maps ``(V,T,C,H,W)``."""
        check_maps(self, features)
        return self.attention.prepare(self.mixer(features))

    def compare(self, support: VideoState, labels: Tensor, query: VideoState) -> EpisodeOutput:
        """Return float32 logits ``(Q,n_way)`` from prepared states and support labels ``(S,)``."""
        # Distances are small differences of large numbers, so autocast must stay off here.
        with torch.autocast(labels.device.type, enabled=False):
            return EpisodeOutput(logits=-self.attention.distances(support, labels, query))

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load mixer and attention weights from one state dict with the names of the released code."""
        _check_released(self.attention.form)
        names = {theirs: f"mixer.{ours}" for theirs, ours in MIXER_NAMES.items()}
        names |= {theirs: f"attention.{ours}" for theirs, ours in ATTENTION_NAMES.items()}
        load_reference_state(self, state, names, UNUSED_NAMES)


def _flatten_patches(features: Tensor) -> Tensor:
    return rearrange(features, "v t c h w -> v t (h w) c")


def _check_released(form: Form) -> None:
    if form != "released":
        raise DmgalError(
            "Released weights do not fit this form of SA-CT.",
            received=f"form={form!r}",
            expected="form='released', because the paper's own code was not published",
            remedy="Build the head with form='released'.",
        )

"""Choice of the layer whose attention is worth a picture: the one that looks at what moves.

Layers differ. In the motion adapter that ships with dmgal, two look at moving shapes twice as much as at an even share
of the frame, and one looks away from them. Generated clips tell where the motion is, so the choice is measured, the
same for every clip, and needs no training.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from dmgal.recipes.run.gallery import GalleryModel, test_frames
from dmgal.videos.decoding.clip import uniform_frames
from dmgal.videos.moving_shapes.clips import MovingShapes
from dmgal.visualization.layers import ShownLayer, find_layers, last_attention
from dmgal.visualization.maps import received_attention, record

CLIPS, FRAMES, PIXELS = (0, 6, 12, 38, 48), 16, 128
"""Classes of moving shapes to look at, one clip each, and the size of the clips."""


@lru_cache(maxsize=2)
def looking_layer(model: GalleryModel) -> ShownLayer:
    """Return the layer with attention that looks at moving shapes most, or the last layer if none has attention.

    Raises:
        DmgalError: the backbone has no grid of patches.
    """
    layers = find_layers(model.recognizer)
    candidates = [layer for layer in layers.values() if layer.attention != "none"]
    if len(candidates) < 2:
        return layers[last_attention(layers)]
    return max(candidates, key=lambda layer: attention_to_shapes(model, layer.name))


def attention_to_shapes(model: GalleryModel, layer: str) -> float:
    """Return the mean attention that the center of a moving shape receives. 1 is an even share."""
    frames = test_frames(model)
    shapes = MovingShapes(clips_per_class=1, frames=FRAMES, pixels=PIXELS)
    chosen = uniform_frames(FRAMES, frames.num_frames)
    found = []
    for motion in CLIPS:
        clip, poses = shapes.clip(motion, 0), shapes.poses(motion, 0)
        attention = received_attention(
            record(model.recognizer, frames.transform(clip[chosen])[None], layer, relative=False)
        )
        rows, columns = (
            ((place[0, chosen] + 1) / 2 * size).long().clamp(0, size - 1)
            for place, size in zip((poses.y, poses.x), attention.shape[1:], strict=True)
        )
        found.append(attention[torch.arange(len(attention)), rows, columns])
    return torch.cat(found).mean().item()

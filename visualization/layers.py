"""Layers whose motion can be shown, in every kind of encoder and head.

Each layer has a name:

    embedding       patch embeddings, before the first block
    block.N         output of block N, before a task layer after it
    smga.N, cmga.N  motion features of the adapter at block N
    s_mga, c_mga, tdsam     motion features in the head

An encoder with a motion expert of another backbone has two sets of blocks. The names of the second begin with
``expert.``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ..adapters.dmgal import CmgaAdapter, MotionLayer, SmgaAdapter
from ..adapters.mga import TDSAM, CrossMotionGuidedAttention, SelfMotionGuidedAttention
from ..backbones import FrameEncoder, StreamEncoder
from ..backbones.shape import BlockShape
from ..backbones.spec import base_model
from ..episodes import FewShotRecognizer
from ..errors import DmgalError

MotionPart = SelfMotionGuidedAttention | CrossMotionGuidedAttention | TDSAM
Attention = Literal["none", "within", "across"]
Output = Tensor | tuple[Tensor, ...]
"""Output of a module: tokens, or a tuple that begins with them."""
IN_HEADS: dict[type[nn.Module], tuple[str, str, Attention]] = {
    SelfMotionGuidedAttention: ("s_mga", "S-MGA of the head", "within"),
    CrossMotionGuidedAttention: ("c_mga", "C-MGA of the head", "across"),
    TDSAM: ("tdsam", "TDSAM of the head", "within"),
}


class MotionTokens(NamedTuple):
    """Motion to the next and to the previous frame, ``(2, V, T, N, d)``, with prefix tokens before the patches.

    ``motion`` holds the features, ``attended`` the tokens whose products are the attention. They are equal if there is
    no attention.
    """

    motion: Tensor
    attended: Tensor
    num_prefix_tokens: int
    grid: tuple[int, int]


@dataclass(frozen=True)
class ShownLayer:
    """A layer whose motion can be shown.

    Attributes:
        name: see the module.
        title: the layer in words.
        attention: "within" a frame, "across" from a query to support videos, or "none".
        hooked: module whose call is recorded.
        capture: maps arguments, keyword arguments and output of a call to a tensor whose first dimension is the video,
            or the frame if ``per_frame`` is true.
        read: maps all captures, video after video, to their motion.
        class_token_only: only the class token's attention reaches the features.
        is_in_head: the layer is a part of the head.
    """

    name: str
    title: str
    attention: Attention
    hooked: nn.Module
    capture: Callable[[tuple[Tensor, ...], dict[str, object], Output], Tensor]
    read: Callable[[Tensor], MotionTokens]
    per_frame: bool = False
    class_token_only: bool = False
    is_in_head: bool = False


def find_layers(recognizer: FewShotRecognizer) -> dict[str, ShownLayer]:
    """Return all layers that can be shown, by name, from the first to the last.

    Raises:
        DmgalError: the backbone has no grid of patches.
    """
    layers = [*_layers_of_encoders(recognizer.encoder), *_layers_of_head(recognizer.head)]
    return {layer.name: layer for layer in layers}


def choose_layer(recognizer: FewShotRecognizer, name: str | None, across: bool = False) -> ShownLayer:
    """Return a layer by its name, or the default one.

    By default it is the first one with attention within a video, whose motion is the most local. If ``across`` is true,
    it is the last one with attention across videos if there is any. Without attention it is the patch embedding.

    Raises:
        DmgalError: there is no such layer, or no grid of patches.
    """
    layers = find_layers(recognizer)
    if name is None:
        by_kind: dict[Attention, list[ShownLayer]] = {"within": [], "across": [], "none": []}
        for layer in layers.values():
            by_kind[layer.attention].append(layer)
        if across and by_kind["across"]:
            return by_kind["across"][-1]
        return [*by_kind["within"], *by_kind["across"], *by_kind["none"]][0]
    if name not in layers:
        similar = get_close_matches(name, layers, n=1)
        raise DmgalError(
            "This model has no such layer.",
            received=repr(name),
            expected=f"one of {', '.join(layers)}",
            remedy=f"Did you mean {similar[0]}?" if similar else "Choose one of these.",
        )
    return layers[name]


def last_attention(layers: dict[str, ShownLayer]) -> str:
    """Return the name of the last layer with attention over motion, or of the last layer if none has any."""
    with_attention = [name for name, layer in layers.items() if layer.attention != "none"]
    return (with_attention or [*layers])[-1]


def require_attention(layer: ShownLayer, layers: dict[str, ShownLayer]) -> None:
    """Raise a DmgalError if a layer has no attention over motion."""
    if layer.attention != "none":
        return
    others = [name for name, other in layers.items() if other.attention != "none"]
    raise DmgalError(
        "This layer has no attention over motion.",
        received=layer.title,
        expected=f"one of {', '.join(others)}"
        if others
        else "a Smga, Cmga, S-MGA, C-MGA or TDSAM, and this model has none",
        remedy="Choose one of these."
        if others
        else "Use a model with one, such as a run of method/smga, or show the maps of motion, which need no attention.",
    )


def _layers_of_encoders(encoder: object) -> Iterator[ShownLayer]:
    streams = encoder.streams if isinstance(encoder, StreamEncoder) else [encoder]
    for index, one in enumerate(dict.fromkeys(streams)):
        if not isinstance(one, FrameEncoder):
            raise _no_grid(f"an encoder of type {type(one).__name__}")
        yield from _layers_of_encoder(one, "expert." if index else "")


def _layers_of_encoder(encoder: FrameEncoder, prefix: str) -> Iterator[ShownLayer]:
    spec, model = encoder.spec, base_model(encoder.backbone)
    if min(spec.entry.grid) < 2:
        raise _no_grid("a grid of {} x {}".format(*spec.entry.grid))
    blocks = [model.get_submodule(name) for name in spec.block_names()]
    before = ShownLayer(
        f"{prefix}embedding",
        "patch embedding",
        "none",
        blocks[0],
        partial(_captured_input, spec.of_block(0).entry),
        partial(_motion_of_tokens, spec.of_block(0).entry),
        per_frame=True,
    )
    yield before
    for index, block in enumerate(blocks):
        shape = spec.of_block(index).exit
        if min(shape.grid) < 2:
            continue
        capture, read = partial(_captured_output, shape), partial(_motion_of_tokens, shape)
        title = f"output of block {index}"
        yield ShownLayer(f"{prefix}block.{index}", title, "none", block, capture, read, per_frame=True)
        is_last = index == spec.num_blocks - 1 and encoder.pooling is None and spec.pools_prefix
        yield from _layers_of_block(block, prefix, index, is_last)


def _layers_of_block(block: nn.Module, prefix: str, index: int, class_token_only: bool) -> Iterator[ShownLayer]:
    layers = [child for child in block.children() if isinstance(child, MotionLayer)]
    active = [named for layer in layers for named in layer.active()]
    for name, adapter in active:
        if not adapter.shape.reads_motion or min(adapter.shape.grid) < 2:
            continue
        is_cmga = isinstance(adapter, CmgaAdapter)
        kind: Attention = "none" if not adapter.shape.attention else "across" if is_cmga else "within"
        ending = f".{name}" if len(active) > 1 else ""
        yield ShownLayer(
            f"{prefix}{'cmga' if is_cmga else 'smga'}.{index}{ending}",
            f"{'Cmga' if is_cmga else 'Smga'}-Adapter {adapter.placement} block {index}",
            kind,
            adapter.reduce,
            _first_argument,
            partial(_motion_of_adapter, adapter),
            class_token_only=is_cmga and class_token_only,
        )


def _layers_of_head(head: object) -> Iterator[ShownLayer]:
    parts = head.named_modules() if isinstance(head, nn.Module) else ()
    shown_parts = [(path, part) for path, part in parts if type(part) in IN_HEADS]
    for path, part in shown_parts:
        name, title, kind = IN_HEADS[type(part)]
        is_only = sum(type(part) is type(other) for _, other in shown_parts) == 1
        shown = name if is_only else f"{name}.{path}"
        read = partial(_motion_of_head, part)
        yield ShownLayer(shown, title, kind, part.motion, _head_motion, read, is_in_head=True)


def _no_grid(received: str) -> DmgalError:
    return DmgalError(
        "This backbone has no grid of patches to show.",
        received=received,
        expected="an encoder of frames with at least 2 x 2 patches",
        remedy="Use a vision transformer, or a convolutional network with maps.",
    )


# ---- captures of a call ----


def _captured_input(shape: BlockShape, args: tuple[Tensor, ...], kwargs: dict[str, object], output: object) -> Tensor:
    tokens = args[0] if args else next(v for v in kwargs.values() if isinstance(v, Tensor) and v.ndim == shape.num_dims)
    return shape.tokens(tokens)


def _captured_output(shape: BlockShape, args: tuple[object, ...], kwargs: dict[str, object], output: Output) -> Tensor:
    return shape.tokens(output[0] if isinstance(output, tuple) else output)


def _first_argument(args: tuple[Tensor, ...], kwargs: dict[str, object], output: object) -> Tensor:
    return args[0]


def _head_motion(args: tuple[object, ...], kwargs: dict[str, object], output: Output) -> Tensor:
    assert isinstance(output, Tensor)
    return rearrange(output, "d v t c h w -> v d t c h w")


# ---- motion from captures ----


def _motion_of_tokens(shape: BlockShape, tokens: Tensor) -> MotionTokens:
    """Return the plain differences of tokens ``(V, T, N, C)`` to the next and to the previous frame."""
    to_next = tokens[:, 1:] - tokens[:, :-1]
    zero = torch.zeros_like(tokens[:, :1])
    motion = torch.stack([torch.cat([to_next, zero], dim=1), torch.cat([zero, -to_next], dim=1)])
    return MotionTokens(motion, motion, shape.num_prefix_tokens, shape.grid)


def _motion_of_adapter(adapter: SmgaAdapter | CmgaAdapter, hidden: Tensor) -> MotionTokens:
    motion = adapter.motion(hidden)
    attended = adapter.attention_tokens(motion) if adapter.shape.attention else motion
    shape = adapter.shape
    return MotionTokens(torch.stack(motion), torch.stack(attended), shape.num_prefix_tokens, shape.grid)


def _motion_of_head(part: MotionPart, captured: Tensor) -> MotionTokens:
    motion = rearrange(captured, "v d t c h w -> d v t c h w")
    grid = motion.shape[-2], motion.shape[-1]
    return MotionTokens(rearrange(motion, "d v t c h w -> d v t (h w) c"), part.attention_tokens(motion), 0, grid)

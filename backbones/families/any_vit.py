"""Any vision transformer with one stack of equal blocks, also one that people wrote themselves: found by watching it.

The model is run on a batch of two and one of three dummy images. What is found is then tried: stem, blocks and tail,
called one after the other, have to give what the model gave. Where anything is unclear it is refused, with what to
write by hand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ...errors import DmgalError
from ..normalization import IMAGENET, preprocessing, told_or
from ..observation import Call, Run, batch_dimension, corner_images, evaluating, places, watch
from ..spec import BackboneSpec
from ..stacks import Stack, image_size, stacks
from .block_parts import find_parts, is_norm
from .rerun import Rerun, call_model, feature_of

REMEDY = """say what is missing, e.g. dmgal.backbones.describe_backbone(model, blocks="encoder.blocks",
    image_size=(224, 224), run=lambda model, images: model.encode_image(images)),
    or all of it: model.dmgal_spec = dmgal.backbones.BackboneSpec(...)"""


def describe(
    model: nn.Module,
    run: Run = call_model,
    blocks: str | None = None,
    size: tuple[int, int] | None = None,
    given: dict[str, Any] | None = None,
) -> BackboneSpec:
    """The spec of a model; fields of it that are given are taken as they are.

    Args:
        model: in any mode, on any device; it comes back as it was.
        run: how the model is run on images.
        blocks: path of the stack of blocks; None: the one that is called with tokens.
        size: height and width of images; None: as the model's attributes or its position embedding tell.
        given: fields of the spec.

    Raises:
        DmgalError: something was not found; the message lists the stacks of blocks and says what to write by hand.
    """
    candidates = [stack for stack in stacks(model) if blocks in (None, stack.path)]
    size = size or image_size(model)
    if not candidates:
        refuse(model, "no stack of equal blocks" + (f" is named {blocks!r}" if blocks else " was seen"))
    if size is None:
        refuse(model, "nothing tells the size of its images; give image_size=")
    if any(parameter.is_meta for parameter in model.parameters()):
        refuse(model, "its weights are on the meta device, where it cannot be tried")
    with evaluating(model):
        sight = _look(model, run, candidates, size)
        return _assemble(model, run, sight, size, given or {})


def refuse(model: nn.Module, reason: str) -> NoReturn:
    """Says what was seen of a model and how to describe it by hand."""
    seen = ", ".join(map(str, stacks(model))) or "none"
    raise DmgalError(
        "The parts of this backbone were not found.",
        received=f"{type(model).__module__}.{type(model).__qualname__}: {reason}; stacks of equal blocks: {seen}",
        expected="a vision transformer of open_clip, timm or transformers, or any with one stack of equal blocks "
        "that take tokens (B, N, C) or (N, B, C)",
        remedy=REMEDY,
    )


@dataclass(frozen=True)
class _Sight:
    """What was seen while the model worked on two and on three images."""

    stack: Stack
    entered: tuple[Tensor, Tensor]
    """What the first block took of each batch."""
    calls: list[Call]
    """All calls of the second batch, but those deeper inside blocks than the parts of the first."""
    images: Tensor
    output: Any

    @cached_property
    def blocks(self) -> list[Call]:
        return [call for call in self.calls if call.path in self.stack.block_paths]

    @property
    def in_first_block(self) -> list[Call]:
        start = f"{self.stack.block_paths[0]}."
        return [replace(c, path=c.path.removeprefix(start)) for c in self.calls if c.path.startswith(start)]

    @property
    def before_blocks(self) -> list[Call]:
        calls = self.calls[: self.calls.index(self.blocks[0])]
        return [call for call in calls if not call.path.startswith(f"{self.stack.path}.")]

    @property
    def behind_blocks(self) -> list[Call]:
        return self.calls[self.calls.index(self.blocks[-1]) + 1 :]


def _look(model: nn.Module, run: Run, candidates: list[Stack], size: tuple[int, int]) -> _Sight:
    like = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    paths = [path for path, _ in model.named_modules() if path and not _is_deep(path, candidates)]
    seen = []
    for images in corner_images(size, like):
        try:
            seen.append((images, *watch(model, run, images, paths)))
        except Exception as error:  # a model may fail in any way on what it does not take
            reason = " ".join(str(error).split())[:200]
            refuse(model, f"it could not be run on images {tuple(images.shape)}: {type(error).__name__}: {reason}")
    images, calls, output = seen[-1]
    taking_tokens = {call.path for call in calls if call.keeps_shape}
    reached = [stack for stack in candidates if stack.block_paths[0] in taking_tokens]
    if len(reached) != 1:
        several = " and ".join(stack.path for stack in reached)
        refuse(model, f"{several} are all called with tokens" if several else "no stack is called with tokens")
    first = reached[0].block_paths[0]
    entered = [next(call for call in calls if call.path == first).input for _, calls, _ in seen]
    return _Sight(reached[0], (entered[0], entered[1]), calls, images, output)


def _is_deep(path: str, candidates: list[Stack]) -> bool:
    for stack in candidates:
        if path.startswith(f"{stack.path}."):
            key, *parts = path.removeprefix(f"{stack.path}.").split(".")
            return len(parts) > 1 or (len(parts) == 1 and key != stack.keys[0])
    return False


def _assemble(model: nn.Module, run: Run, sight: _Sight, size: tuple[int, int], given: dict[str, Any]) -> BackboneSpec:
    stack = sight.stack
    batch_first, num_prefix_tokens, grid = _layout(model, sight, given)
    _check_blocks(model, sight, given)
    embedding = next((c.path for c in sight.before_blocks if isinstance(c.module, (nn.Conv2d, nn.Linear))), None)
    embedding = given.get("patch_embedding", embedding)
    if embedding is None:
        refuse(model, "no convolution or linear layer embeds its patches; give patch_embedding=")
    parts, attend, rotary = find_parts(sight.in_first_block, sight.blocks[0], batch_first)
    norm = next((c.path for c in sight.behind_blocks if is_norm(c)), None)
    stem = [call.path for call in sight.before_blocks if call.path]
    parts_of_model = Rerun(run, stack, batch_first, size, f"{embedding}.weight", sight.blocks[0], norm, stem)
    told, timm = preprocessing(model), getattr(model, "pretrained_cfg", None) or {}
    mean, std = told_or(IMAGENET, told.get("image_mean") or timm.get("mean"), told.get("image_std") or timm.get("std"))
    spec = BackboneSpec(
        library="custom",
        tower="",
        blocks=stack.path,
        num_blocks=stack.num_blocks,
        block_keys=stack.keys,
        width=sight.entered[0].shape[-1],
        batch_first=batch_first,
        num_prefix_tokens=num_prefix_tokens,
        grid=grid,
        image_size=size,
        mean=mean,
        std=std,
        pools_prefix=False,
        patch_embedding=embedding,
        stem=parts_of_model.stem,
        run_block=parts_of_model.run_block,
        pool=parts_of_model.pool,
        norm=parts_of_model.norm,
        project=parts_of_model.project,
        parts=parts,
        attend=attend,
        rotary=rotary,
    )
    spec = replace(spec, **given)
    if not {"stem", "run_block", "pool", "project"} & given.keys():
        try:
            spec = _tried(model, spec, sight)
        except DmgalError:
            raise
        except Exception as error:  # a model may look at its blocks in any way
            refuse(model, f"its parts cannot be called one after the other: {type(error).__name__}: {error}")
    return spec


def _layout(model: nn.Module, sight: _Sight, given: dict[str, Any]) -> tuple[bool, int, tuple[int, int]]:
    """Whether batches come first, the number of prefix tokens and the grid."""
    dimension = batch_dimension(*sight.entered)
    if dimension is None:
        shapes = " and ".join(str(tuple(tokens.shape)) for tokens in sight.entered)
        refuse(model, f"its blocks take {shapes} of two and three images")
    two, three = (tokens.transpose(0, dimension) for tokens in sight.entered)  # (B, N, C)
    if "grid" in given:
        rows, columns = given["grid"]
        return dimension == 0, two.shape[1] - rows * columns, (rows, columns)
    found = places(two, three)
    if found is None:
        refuse(model, "its tokens are not a few others and then the patches row by row; give grid= if they are")
    return dimension == 0, *found


def _check_blocks(model: nn.Module, sight: _Sight, given: dict[str, Any]) -> None:
    stack, first = sight.stack, sight.blocks[0]
    if [call.path for call in sight.blocks] != stack.block_paths or not all(call.keeps_shape for call in sight.blocks):
        refuse(model, f"the blocks of {stack.path} are not called once each, in order, from tokens to tokens")
    if "run_block" in given:
        return
    if not all(call.is_plain for call in sight.blocks):
        refuse(model, f"the blocks of {stack.path} are told more than the tokens; give run_block=")
    if any(call.other_arguments != first.other_arguments for call in sight.blocks):
        refuse(model, f"the blocks of {stack.path} are not all called alike; give run_block=")


@torch.no_grad()
def _tried(model: nn.Module, spec: BackboneSpec, sight: _Sight) -> BackboneSpec:
    """The parts one after the other have to do what the model did; then, whether its pooling reads the first token."""
    expected = feature_of(sight.output)
    if expected is None:  # a model without a feature of its own: pooling=None is refused when it is asked for
        return spec
    tokens = spec.stem(model, sight.images)
    tokens = tokens if spec.batch_first else tokens.transpose(0, 1)
    for name in spec.block_names():
        tokens = spec.run_block(model, model.get_submodule(name), tokens)
    tokens = tokens if spec.batch_first else tokens.transpose(0, 1)
    if not _close(spec.pool(model, tokens), expected):
        refuse(model, "its blocks called one after the other do not give what it gives; give stem=, run_block=, pool=")
    try:
        pools_prefix = spec.num_prefix_tokens > 0 and _close(spec.pool(model, tokens[:, :1]), expected)
        return replace(spec, pools_prefix=pools_prefix)
    except Exception:  # whatever a model does to patches that are not there
        return spec


def _close(feature: Tensor, expected: Tensor) -> bool:
    return feature.shape == expected.shape and bool((feature - expected).abs().max() <= 1e-3 * expected.abs().max())

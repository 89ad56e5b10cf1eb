"""Specs of any vision transformer with one stack of equal blocks, including hand-written ones, by observation.

The model is run on a batch of two and one of three dummy images. The result is then verified: stem, blocks and final
layers, called in sequence, have to reproduce the model's output. The parts of a block (norms, attention, MLP) are found
from the calls of its children. An unclear model is refused, with an explanation of how to describe it by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DmgalError
from . import staged
from .probing import (
    Call,
    Run,
    Stack,
    batch_dimension,
    corner_images,
    evaluating,
    find_prefix_and_grid,
    image_size,
    is_close,
    is_norm,
    not_found,
    stacks,
    watch,
)
from .replay import Repeat, Rerun, Step, call_model, feature_of, observed_spec
from .shape import BlockShape, BlockSides
from .spec import BackboneSpec, BlockParts

Attend = Callable[[nn.Module, Tensor], Tensor]


def describe(
    model: nn.Module,
    run: Run = call_model,
    blocks: str | None = None,
    size: tuple[int, int] | None = None,
    known: dict[str, object] | None = None,
) -> BackboneSpec:
    """Return the spec of a model.

    Args:
        model: the model, in any mode, on any device. It is left unchanged.
        run: runs the model on images.
        blocks: path of the stack of blocks, or None for the one that is called with tokens.
        size: height and width of images, or None to derive them from attributes or the position embedding.
        known: fields of the spec, used without a check.

    Raises:
        DmgalError: a part was not found. The message lists the stacks of blocks and explains how to describe the model
            by hand.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise not_found(model, "its weights are on the meta device, so it cannot be run")
    with evaluating(model):
        try:
            return _describe_plain(model, run, blocks, size, known or {})
        except DmgalError:
            spec = None if blocks or known else staged.describe(model, run, size)
            if spec is None:
                raise
            return spec


def _describe_plain(
    model: nn.Module, run: Run, blocks: str | None, size: tuple[int, int] | None, known: dict[str, object]
) -> BackboneSpec:
    """Return the spec of a model with one stack of equal blocks."""
    candidates = [stack for stack in stacks(model) if blocks in (None, stack.path)]
    size = size or image_size(model)
    if not candidates:
        raise not_found(model, "no stack of equal blocks" + (f" is named {blocks!r}" if blocks else " was found"))
    if size is None:
        raise not_found(model, "the size of its images is unknown; give image_size=")
    observation = _observe(model, run, candidates, size)
    return _assemble(model, run, observation, size, known)


@dataclass(frozen=True)
class _Observation:
    """Calls recorded while the model ran on two and on three images."""

    stack: Stack
    block_inputs: tuple[Tensor, Tensor]
    """Input of the first block for each batch."""
    calls: list[Call]
    """Calls for the second batch. Inside blocks, only those of the direct children of the first block."""
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
    def after_blocks(self) -> list[Call]:
        return self.calls[self.calls.index(self.blocks[-1]) + 1 :]


def _observe(model: nn.Module, run: Run, candidates: list[Stack], size: tuple[int, int]) -> _Observation:
    like = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    paths = [path for path, _ in model.named_modules() if path and not _is_deep(path, candidates)]
    runs = []
    for images in corner_images(size, like):
        try:
            runs.append((images, *watch(model, run, images, paths)))
        except Exception as error:  # models fail in many ways on unsupported images
            reason = " ".join(str(error).split())[:200]
            reason = f"it could not be run on images {tuple(images.shape)}: {type(error).__name__}: {reason}"
            raise not_found(model, reason) from error
    images, calls, output = runs[-1]
    called_with_tokens = {call.path for call in calls if call.keeps_shape}
    matches = [stack for stack in candidates if stack.block_paths[0] in called_with_tokens]
    if not matches:
        raise not_found(model, "no stack is called with tokens")
    if len(matches) > 1:
        raise not_found(model, f"{' and '.join(stack.path for stack in matches)} are all called with tokens")
    first_path = matches[0].block_paths[0]
    two, three = (next(call for call in calls if call.path == first_path).input for _, calls, _ in runs)
    return _Observation(matches[0], (two, three), calls, images, output)


def _is_deep(path: str, candidates: list[Stack]) -> bool:
    """Return True if a path is inside a block, unless it is a direct child of the first block."""
    for stack in candidates:
        if path.startswith(f"{stack.path}."):
            key, *parts = path.removeprefix(f"{stack.path}.").split(".")
            return len(parts) > 1 or (len(parts) == 1 and key != stack.keys[0])
    return False


def _assemble(
    model: nn.Module, run: Run, observation: _Observation, size: tuple[int, int], known: dict[str, Any]
) -> BackboneSpec:
    stack = observation.stack
    batch_first, num_prefix_tokens, grid = _layout(model, observation, known)
    _check_blocks(model, observation, known)
    embeddings = [c.path for c in observation.before_blocks if isinstance(c.module, (nn.Conv2d, nn.Linear))]
    patches = known.get("patch_embedding", embeddings[0] if embeddings else None)
    if patches is None:
        raise not_found(model, "no convolution or linear layer embeds its patches; give patch_embedding=")
    parts, attend, rotary = _find_parts(observation.in_first_block, observation.blocks[0], batch_first)
    norm = next((call for call in observation.after_blocks if is_norm(call)), None)
    stem = [call.path for call in observation.before_blocks if call.path]
    width = observation.block_inputs[0].shape[-1]
    shape = BlockShape(width, num_prefix_tokens, grid, "b n c" if batch_first else "n b c")
    steps = [Step(Repeat.of(block), BlockSides(shape, shape)) for block in observation.blocks]
    rerun = Rerun(run, steps, size, f"{patches}.weight", norm, stem)
    spec = observed_spec(
        model,
        rerun,
        blocks=stack.path,
        block_keys=stack.keys,
        width=width,
        batch_first=batch_first,
        num_prefix_tokens=num_prefix_tokens,
        grid=grid,
        parts=parts,
        attend=attend,
        rotary=rotary,
    )
    spec = replace(spec, **known)
    if not {"stem", "run_block", "pool", "project"} & known.keys():
        try:
            spec = _verify(model, spec, observation)
        except DmgalError:
            raise
        except Exception as error:  # models may access their blocks in many ways
            reason = f"its parts cannot be called in sequence: {type(error).__name__}: {error}"
            raise not_found(model, reason) from error
    return spec


def _layout(model: nn.Module, observation: _Observation, known: dict[str, Any]) -> tuple[bool, int, tuple[int, int]]:
    """Return whether the batch dimension is first, the number of prefix tokens and the grid."""
    dimension = batch_dimension(*observation.block_inputs)
    if dimension is None:
        shapes = " and ".join(str(tuple(tokens.shape)) for tokens in observation.block_inputs)
        raise not_found(model, f"the inputs of its blocks are {shapes} for two and three images")
    two, three = (tokens.transpose(0, dimension) for tokens in observation.block_inputs)  # (B, N, C)
    if "grid" in known:
        rows, columns = known["grid"]
        return dimension == 0, two.shape[1] - rows * columns, (rows, columns)
    prefix_and_grid = find_prefix_and_grid(two, three)
    if prefix_and_grid is None:
        reason = "its tokens are not prefix tokens and then the patches row by row; give grid= if they are"
        raise not_found(model, reason)
    return dimension == 0, *prefix_and_grid


def _check_blocks(model: nn.Module, observation: _Observation, known: dict[str, object]) -> None:
    stack, blocks = observation.stack, observation.blocks
    if [call.path for call in blocks] != stack.block_paths or not all(call.keeps_shape for call in blocks):
        raise not_found(model, f"the blocks of {stack.path} are not called once each, in order, from tokens to tokens")
    if "run_block" in known:
        return
    if not all(call.is_plain for call in blocks):
        raise not_found(model, f"the blocks of {stack.path} receive more than the tokens; give run_block=")
    if any(call.other_arguments != blocks[0].other_arguments for call in blocks):
        raise not_found(model, f"the blocks of {stack.path} are called with different arguments; give run_block=")


@torch.no_grad()
def _verify(model: nn.Module, spec: BackboneSpec, observation: _Observation) -> BackboneSpec:
    """Check that the parts in sequence reproduce the output, and return the spec with ``pools_prefix`` set."""
    expected = feature_of(observation.output)
    if expected is None:  # the model has no feature of its own, so that pooling=None is refused on use
        return spec
    tokens = spec.stem(model, observation.images)
    tokens = tokens if spec.batch_first else tokens.transpose(0, 1)
    for name in spec.block_names():
        tokens = spec.run_block(model, model.get_submodule(name), tokens)
    tokens = tokens if spec.batch_first else tokens.transpose(0, 1)
    if not is_close(spec.pool(model, tokens), expected, 1e-3):
        raise not_found(model, "its blocks called in sequence do not give what it gives; give stem=, run_block=, pool=")
    try:
        pools_prefix = spec.num_prefix_tokens > 0 and is_close(spec.pool(model, tokens[:, :1]), expected, 1e-3)
        return replace(spec, pools_prefix=pools_prefix)
    except Exception:  # models fail in many ways without patches
        return spec


def _find_parts(inside: list[Call], block: Call, batch_first: bool) -> tuple[BlockParts | None, Attend | None, bool]:
    """Return the names of the parts, the attention function, and whether it accepts only the tokens of a frame.

    The results are the fields ``parts``, ``attend`` and ``rotary`` of the spec.

    Args:
        inside: calls of the block's children in order, by their names.
        block: the call of the block itself.
        batch_first: True if the tokens are ``(B, N, C)``.
    """
    attention_norm = next((c for c in inside if is_norm(c) and c.input is block.input), None)
    attention = _consumer_of(attention_norm, inside)
    if attention_norm is None or attention is None:
        return None, None, False
    after = inside[inside.index(attention) + 1 :]
    mlp_norm = next((c for c in after if is_norm(c) and c.keeps_shape), None)
    mlp = _consumer_of(mlp_norm, after)
    parts = BlockParts(attention_norm.path, attention.path, _path(mlp_norm), _path(mlp))
    others, named = attention.other_arguments
    if isinstance(_unwrapped(attention.module), nn.MultiheadAttention):
        others, named = (), {}  # keys and values equal the queries; this is verified below
    attend = partial(_attend, attention.path, others, named)
    if not is_close(_attend_or_none(attend, block.module, attention.input), attention.result, 1e-2):
        return parts, None, False
    dimension = 1 if batch_first else 0
    if not _mixes(attend, block.module, attention.input, dimension):
        return None, None, False  # the first part is an MLP
    if not _takes_any_tokens(attend, block.module, attention.input, dimension):
        return parts, None, True
    return parts, attend, False


def _consumer_of(source: Call | None, calls: list[Call]) -> Call | None:
    """Return the call that mapped the output of a norm to tokens."""
    if source is None:
        return None
    return next((c for c in calls if c.input is source.output and c.keeps_shape), None)


def _path(call: Call | None) -> str | None:
    return None if call is None else call.path


def _attend(
    name: str, others: tuple[object, ...], named: dict[str, object], block: nn.Module, tokens: Tensor
) -> Tensor:
    attention: Any = getattr(block, name)
    if isinstance(_unwrapped(attention), nn.MultiheadAttention):
        return attention(tokens, tokens, tokens, need_weights=False)[0]
    output = attention(tokens, *others, **named)
    return output[0] if isinstance(output, tuple) else output


def _unwrapped(module: nn.Module) -> nn.Module:
    """Return the backbone's own module, without the wrapper of a LoRA."""
    return getattr(module, "base_layer", module)


@torch.no_grad()
def _attend_or_none(attend: Attend, block: nn.Module, tokens: Tensor) -> Tensor | None:
    try:
        return attend(block, tokens)
    except Exception:  # modules fail in many ways on unsupported tokens
        return None


def _mixes(attend: Attend, block: nn.Module, tokens: Tensor, dimension: int) -> bool:
    """Return True if a change of one token changes the outputs of others."""
    last = tokens.shape[dimension] - 1
    changed = tokens.clone()
    changed.select(dimension, last).neg_()
    before, after = (_attend_or_none(attend, block, x) for x in (tokens, changed))
    if before is None or after is None:
        return False
    return not torch.equal(before.narrow(dimension, 0, last), after.narrow(dimension, 0, last))


def _takes_any_tokens(attend: Attend, block: nn.Module, tokens: Tensor, dimension: int) -> bool:
    """Return True if attention accepts tokens in any order and number, because AIM applies it over frames.

    Attention with positions gives other results for reversed tokens. Attention in fixed windows fails on two tokens.
    """
    reversed_output = _attend_or_none(attend, block, tokens.flip(dimension))
    pair_output = _attend_or_none(attend, block, tokens.narrow(dimension, 0, 2))
    if reversed_output is None or pair_output is None or pair_output.shape[dimension] != 2:
        return False
    return is_close(reversed_output.flip(dimension), attend(block, tokens), 1e-2)

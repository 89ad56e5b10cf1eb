"""Specs of hierarchical and convolutional backbones (Swin, ConvNeXt, ResNet and the like), by observation.

Such a backbone calls blocks one after the other, with layers between some of them that change resolution and width. The
blocks are found as a chain: the result of each, passed through the modules between, is the input of the next. The chain
starts with the children of the outermost containers. If half of them change the shape, or if they are containers
themselves, they are stages rather than blocks, and the blocks inside them are tried instead. In the end the parts in
sequence have to reproduce the model's output.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .preprocessing import Preprocessing
from .probing import (
    Call,
    Run,
    corner_images,
    find_prefix_and_grid,
    image_size_attribute,
    is_close,
    is_norm,
    watch,
)
from .replay import Repeat, Rerun, Step, feature_of, observed_spec
from .shape import MAPS, BlockShape, BlockSides, TokenLayout
from .spec import BackboneSpec

Reroll = Callable[[Tensor, int], Tensor]
_MOST_MODULES_BETWEEN = 3
_MOST_LEVELS = 3


def describe(model: nn.Module, run: Run, size: tuple[int, int] | None) -> BackboneSpec | None:
    """Return the spec of a model whose blocks are a chain with changes of resolution, or None."""
    size = size or image_size_attribute(model) or _timm_size(model) or Preprocessing(model).image_size((224, 224))
    try:
        chain = Chain(model, run, size)
        steps = chain.steps() if chain.blocks else None
    except Exception:  # models fail in many ways on unsupported images
        return None
    if steps is None:
        return None
    rerun, last = chain.rerun(steps), steps[-1].sides.after
    paths = [step.block.path for step in steps]
    stack = common_ancestor(paths)
    spec = observed_spec(
        model,
        rerun,
        blocks=stack,
        block_keys=tuple(path.removeprefix(f"{stack}.") for path in paths),
        sides=tuple(step.sides for step in steps),
        width=last.width,
        batch_first=True,
        num_prefix_tokens=last.num_prefix_tokens,
        grid=last.grid,
    )
    try:
        return _verified(model, spec, rerun, chain)
    except Exception:  # models may access their blocks in many ways
        return None


@torch.no_grad()
def _verified(model: nn.Module, spec: BackboneSpec, rerun: Rerun, chain: Chain) -> BackboneSpec | None:
    """Return the spec if its parts in sequence give the model's output, else None.

    Its pooling is the mean of the patches, without a run of the model, if this is the model's own feature to the bit,
    or if the model has no feature of its own.
    """
    native = spec.entry.native(spec.stem(model, chain.images))
    for name in spec.block_names():
        native = spec.run_block(model, model.get_submodule(name), native)
    tokens, expected = spec.exit.tokens(native), feature_of(chain.output)
    if not is_close(native, chain.blocks[-1].result, 1e-3):
        return None
    if expected is None or torch.equal(rerun.mean(model, tokens), expected):
        return replace(spec, pool=rerun.mean)
    return spec if is_close(spec.pool(model, tokens), expected, 1e-3) else None


def _timm_size(model: object) -> tuple[int, int] | None:
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    return None if size is None else (size[1], size[2])


class Chain:
    """The blocks of a backbone that runs on three images, as calls in order.

    Args:
        model: the backbone, in evaluation mode.
        run: runs it on images.
        size: height and width of the images.
    """

    def __init__(self, model: nn.Module, run: Run, size: tuple[int, int]) -> None:
        like = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
        self.model, self.run, self.size = model, run, size
        self.two, self.images = corner_images(size, like)
        self.calls, self.output = watch(model, run, self.images, _watched(model))
        self._count = Counter(call.path for call in self.calls)
        self._index = {id(call): index for index, call in enumerate(self.calls)}
        self.blocks = self._find_blocks()

    def _find_blocks(self) -> list[Call]:
        blocks = self._longest(self._elements(""))
        for _ in range(_MOST_LEVELS):
            are_stages = 2 * sum(_changes_shape(block) for block in blocks) >= len(blocks)
            stages = [block for block in blocks if are_stages or _is_container(block.module)]
            inner = {block.path: self._elements(block.path) or [block] for block in stages}
            refined = [call for block in blocks for call in inner.get(block.path, [block])]
            is_new = [block.path for block in refined] != [block.path for block in blocks]
            if not is_new or len(self._longest(refined)) < len(refined):
                break
            blocks = refined
        return blocks

    def _elements(self, path: str) -> list[Call]:
        """Return the calls of the children of the outermost containers in a module, in the order of the calls."""
        paths = {f"{path}.{name}".strip(".") for name in _children_of_containers(self.model.get_submodule(path))}
        called_once = (call for call in self.calls if call.path in paths and self._count[call.path] == 1)
        return [call for call in called_once if _maps(call) and _may_be_block(call.module)]

    def _longest(self, elements: Sequence[Call]) -> list[Call]:
        """Return the part of the elements that is a chain and has the most parameters."""
        chains: list[list[Call]] = []
        for call in elements:
            if chains and self.between(chains[-1][-1], call) is not None:
                chains[-1].append(call)
            else:
                chains.append([call])
        return max(chains, key=lambda chain: sum(_num_parameters(call.module) for call in chain), default=[])

    def between(self, first: Call, second: Call) -> tuple[Repeat, ...] | None:
        """Return the modules that map the result of a call to the input of a later one, or None if no such path exists.

        They are an empty tuple if the result itself is the input.
        """
        start, stop = self._index[id(first)], self._index[id(second)]
        after = [call for call in self.calls[start + 1 : stop] if not first.path.startswith(f"{call.path}.")]
        return self._path(first.result, second, after, _MOST_MODULES_BETWEEN)

    def _path(self, tensor: Tensor, goal: Call, calls: list[Call], most: int) -> tuple[Repeat, ...] | None:
        if _same(tensor, goal.input):
            return ()
        if not most:
            return None
        takers = [call for call in calls if _maps(call) and call.is_plain and _same(call.input, tensor)]
        for call in sorted(takers, key=lambda call: call.path.count(".")):  # outer modules first
            rest = self._path(call.result, goal, calls[calls.index(call) + 1 :], most - 1)
            if rest is not None:
                return (Repeat.of(call), *rest)
        return None

    def steps(self) -> list[Step] | None:
        """Return the blocks with their shapes.

        Return None if the order of their patches was not found, or if they are those of a plain vision transformer.
        """
        paths = [block.path for block in self.blocks]
        calls = {call.path: call for call in watch(self.model, self.run, self.two, paths)[0]}
        shapes = Shapes(self.size, _reroll(self.model))
        steps: list[Step] = []
        between = [(), *(self.between(first, second) for first, second in pairwise(self.blocks))]
        for call, path in zip(self.blocks, between, strict=True):
            before = shapes.next(calls[call.path].input, call.input)
            after = shapes.next(calls[call.path].result, call.result)
            if before is None or after is None:
                return None
            steps.append(Step(Repeat.of(call), BlockSides(before, after), path or ()))
        shapes_differ = len({shape for step in steps for shape in step.sides}) > 1
        return steps if shapes_differ or self.blocks[0].input.ndim == 4 else None

    def rerun(self, steps: Sequence[Step]) -> Rerun:
        """Return the functions of the spec."""
        last = self._index[id(self.blocks[-1])]
        first = self._index[id(self.blocks[0])]
        shape = self.blocks[-1].result.shape  # not a norm of pooled features
        norms = (call for call in self.calls[last + 1 :] if is_norm(call) and call.input.shape == shape)
        stem = [call.path for call in self.calls[:first] if not self._is_around_blocks(call.path)]
        return Rerun(self.run, steps, self.size, f"{embedding(self.model)}.weight", next(norms, None), stem)

    def _is_around_blocks(self, path: str) -> bool:
        paths = [block.path for block in self.blocks]
        return any(f"{block}.".startswith(f"{path}.") or path.startswith(f"{block}.") for block in paths)


class Shapes:
    """Shapes of the tensors between blocks, one after the other.

    Args:
        size: height and width of the images.
        reroll: sorts the patches after a block, by its index, into rows and columns. None: they are sorted already.
    """

    def __init__(self, size: tuple[int, int], reroll: Reroll | None = None) -> None:
        self._aspect = size[0] / size[1]
        self._reroll = reroll
        self._shape: BlockShape | None = None
        self._count = 0

    def next(self, two: Tensor, three: Tensor) -> BlockShape | None:
        """Return the shape of a tensor for two and for three corner images, or None if it is not clear."""
        if three.ndim == 4:
            self._shape = self._of_map(two, three)
        else:
            self._shape = self._of_tokens(two, three) if self._reroll is None else self._of_windows(three, self._reroll)
        self._count += 1
        return self._shape

    def _of_windows(self, three: Tensor, reroll: Reroll) -> BlockShape:
        num_patches, block = three.shape[1], max(0, self._count - 1) // 2  # the input has the order of the block before
        order = reroll(torch.arange(num_patches).view(1, num_patches, 1), block)[0, ..., 0]
        return BlockShape(three.shape[2], 0, (len(order), order.shape[1]), order=tuple(order.flatten().tolist()))

    def _of_tokens(self, two: Tensor, three: Tensor) -> BlockShape | None:
        if len(three) != 3:
            return None
        width = three.shape[2]
        if self._shape is not None:  # the corners of later tokens depend on too many pixels
            rows, columns = self._shape.grid
            num_patches = three.shape[1] - self._shape.num_prefix_tokens
            factor = math.isqrt(max(1, rows * columns // max(1, num_patches)))
            grid = -(-rows // factor), -(-columns // factor)
            if self._shape.num_prefix_tokens + grid[0] * grid[1] == three.shape[1]:
                return BlockShape(width, self._shape.num_prefix_tokens, grid)
        prefix_and_grid = find_prefix_and_grid(two, three)
        return None if prefix_and_grid is None else BlockShape(width, *prefix_and_grid)

    def _of_map(self, two: Tensor, three: Tensor) -> BlockShape | None:
        layouts = list(MAPS)
        if self._shape is not None:
            before = self._shape.layout
            layouts.sort(key=lambda layout: layout != before)
        fitting = [layout for layout in layouts if self._fits_aspect(_sides(three, layout))]
        layout = next((layout for layout in fitting if _keeps_corners(two, three, layout)), None)
        if layout is None and len(fitting) == 1 and self._shape is not None:
            layout = fitting[0]
        if layout is None:
            return None
        width = three.shape[1 if layout == "b c h w" else 3]
        return BlockShape(width, 0, _sides(three, layout), layout, _is_channels_last(three))

    def _fits_aspect(self, grid: tuple[int, int]) -> bool:
        """Return True if the rows fit the columns and the images, up to rounding."""
        rows, columns = grid
        return abs(rows - columns * self._aspect) <= max(1.0, self._aspect)


def _reroll(model: object) -> Reroll | None:
    """Return the function of a Hiera of timm or transformers that sorts its patches, or None for any other model."""
    if hasattr(model, "reroll"):
        reroll: Reroll = model.reroll
        return reroll
    encoder: Any = getattr(model, "encoder", None)
    if not hasattr(encoder, "reroll"):
        return None
    stages = [index for index, stage in enumerate(encoder.stages) for _ in stage.layers]
    return lambda tokens, block: encoder.reroll(tokens, stages[block])


def embedding(model: nn.Module) -> str:
    """Return the path of the layer that reads the images: the first convolution of three channels, or any layer."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    readers = [name for name, module in layers if isinstance(module, nn.Conv2d) and module.in_channels == 3]
    return readers[0] if readers else layers[0][0]


def common_ancestor(paths: Sequence[str]) -> str:
    """Return the path of the innermost module that contains all modules, or "" for the model itself."""
    parts = [path.split(".")[:-1] for path in paths]
    common = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    return ".".join(common)


def _watched(model: nn.Module) -> list[str]:
    """Return the paths of all modules with children, and of all near the root."""
    return [
        path
        for path, module in model.named_modules()
        if path and (path.count(".") < 2 or any(True for _ in module.children()))
    ]


def _children_of_containers(module: nn.Module) -> Iterator[str]:
    """Yield the names of the children of the outermost containers whose children have children."""
    containers: list[str] = []
    for path, container in module.named_modules():
        inside = any(not outer or path.startswith(f"{outer}.") for outer in containers)
        if inside or not _is_container(container):
            continue
        names = [name for name, child in container.named_children() if any(True for _ in child.children())]
        if names:
            containers.append(path)
            yield from (f"{path}.{name}".strip(".") for name in names)


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, (nn.ModuleList, nn.Sequential))


def _may_be_block(module: nn.Module) -> bool:
    """Return True for a module with weights, which may get one more child."""
    return _num_parameters(module) > 0 and not isinstance(module, (nn.ModuleDict, nn.ModuleList))


def _maps(call: Call) -> bool:
    """Return True for a call from tokens or a map to tokens or a map."""
    return all(isinstance(tensor, Tensor) and tensor.ndim in (3, 4) for tensor in (call.input, call.result))


def _changes_shape(call: Call) -> bool:
    return call.input.shape != call.result.shape


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other))


def _is_channels_last(tensor: Tensor) -> bool:
    return not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _sides(tensor: Tensor, layout: TokenLayout) -> tuple[int, int]:
    rows, columns = (2, 3) if layout == "b c h w" else (1, 2)
    return tensor.shape[rows], tensor.shape[columns]


def _keeps_corners(two: Tensor, three: Tensor, layout: TokenLayout) -> bool:
    """Return True if a change of a corner pixel of the images changes a map near that corner most."""
    channels = 1 if layout == "b c h w" else 3
    for batch, index, corner in ((two, 1, (0, 0)), (three, 1, (0, 1)), (three, 2, (1, 1))):
        change = (batch[index] - batch[0]).abs().sum(channels - 1)
        rows, columns = change.shape
        row, column = divmod(int(change.argmax()), columns)
        if (2 * row >= rows, 2 * column >= columns) != (bool(corner[0]), bool(corner[1])) and min(change.shape) > 1:
            return False
    return True

"""Stem and final layers of a model that can only be run as a whole.

- ``stem``: the model runs until its first block is called, and the input of the block is returned.
- ``run_block``: the modules between the block before and this one, if there are any, and the block.
- ``pool``: the model runs on blank images, with its blocks replaced by modules that return known tensors.
- ``norm``: the first norm that was called after the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from torch import Tensor, nn

from ..errors import DmgalError
from .preprocessing import normalization_of
from .probing import Call, Run, is_constant
from .shape import MAPS, BlockShape, BlockSides
from .spec import BackboneSpec


def call_model(model: nn.Module, images: Tensor) -> object:
    """Run a model in the default way."""
    return model(images)


def feature_of(output: object) -> Tensor | None:
    """Return the feature ``(B, D)`` in a model's output, a tensor or a transformers output, or None."""
    for value in (output, getattr(output, "image_embeds", None), getattr(output, "pooler_output", None)):
        if isinstance(value, Tensor) and (value.ndim == 2 or (value.ndim == 4 and value.shape[2:] == (1, 1))):
            return value.flatten(1)
    return None


@dataclass(frozen=True)
class Repeat:
    """A call of a module that can be repeated with another first argument."""

    path: str
    others: tuple[Any, ...]
    named: dict[str, Any]
    rest: tuple[Any, ...] | None
    """The outputs after the first, None in place of each that is not constant. None if the output is a tensor."""

    @classmethod
    def of(cls, call: Call) -> Repeat:
        """Return the repetition of a recorded call, whose other arguments are those of the spec if not constant."""
        others, named = call.other_arguments if call.is_plain else ((), {})
        outputs = call.output[1:] if isinstance(call.output, (tuple, list)) else None
        rest = None if outputs is None else tuple(value if is_constant(value) else None for value in outputs)
        return cls(call.path, others, named, rest)

    def __call__(self, module: nn.Module, tensor: Tensor) -> Tensor:
        output = module(tensor, *self.others, **self.named)
        return output if self.rest is None else output[0]

    def known(self, output: Tensor) -> Any:
        """Return what the module would return, with a known first output."""
        return output if self.rest is None else (output, *self.rest)


@dataclass(frozen=True)
class Step:
    """A block, after the modules that are called between it and the block before."""

    block: Repeat
    sides: BlockSides
    between: tuple[Repeat, ...] = ()


class Rerun:
    """The functions of a spec, implemented by running the model.

    Args:
        run: runs the model on images.
        steps: the blocks.
        image_size: height and width of the blank images.
        weight: path of the weight whose dtype and device the blank images have.
        norm: the call of the norm after the blocks, if there is one.
        stem_paths: paths of the modules that are called before the blocks.
    """

    def __init__(
        self,
        run: Run,
        steps: Sequence[Step],
        image_size: tuple[int, int],
        weight: str,
        norm: Call | None,
        stem_paths: Sequence[str] = (),
    ) -> None:
        self.run, self.steps = run, tuple(steps)
        self.norm_path = None if norm is None else norm.path
        self.norms_maps = norm is not None and norm.input.ndim == 4
        self.steps_are_equal = len({(repr(step.sides), repr(replace(step.block, path=""))) for step in steps}) == 1
        self.image_size, self.weight = image_size, weight
        self.stem_paths = (*stem_paths, *(repeat.path for step in steps for repeat in step.between))

    def stem(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return the first block's input tokens ``(B, N, C)`` for images ``(B, 3, h, w)``."""
        first = model.get_submodule(self.steps[0].block.path)
        # before all other hooks, so that adapters do not act on the input of the first block twice
        handle = first.register_forward_pre_hook(_stop, with_kwargs=True, prepend=True)
        try:
            self.run(model, images)
        except _Reached as reached:
            return self.steps[0].sides.before.tokens(reached.tokens)
        finally:
            handle.remove()
        raise DmgalError(
            "The first block of this backbone was not called.",
            received=f"a run of {type(model).__qualname__} without a call of {self.steps[0].block.path}",
            expected="one call of each block",
            remedy="Describe the backbone again by dmgal.backbones.describe_backbone.",
        )

    def run_block(self, model: nn.Module, block: nn.Module, tokens: Tensor) -> Tensor:
        """Run a block on tokens in its own layout and return tokens in that layout."""
        step = self.steps[0] if self.steps_are_equal else self._step_of(model, block)
        for repeat in step.between:
            tokens = repeat(model.get_submodule(repeat.path), tokens)
        return step.block(block, tokens)

    def _step_of(self, model: nn.Module, block: nn.Module) -> Step:
        return next(step for step in self.steps if model.get_submodule(step.block.path) is block)

    def pool(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Return the model's own feature ``(B, D)`` for the last block's tokens ``(B, N, C)``."""
        blank = model.get_parameter(self.weight).new_zeros(1).expand(len(tokens), 3, *self.image_size)
        with self._in_evaluation(model), self._known_outputs(model, tokens):
            feature = feature_of(self.run(model, blank))
        if feature is None:
            raise DmgalError(
                "This backbone has no feature of its own.",
                received=f"{type(model).__qualname__}, whose output holds no feature",
                expected="a tensor (B, D), alone or under the name image_embeds or pooler_output",
                remedy="Choose pooling='patch_mean', or pass pool= to dmgal.backbones.describe_backbone.",
            )
        return feature

    @contextmanager
    def _in_evaluation(self, model: nn.Module) -> Iterator[None]:
        """Keep blank images from updating statistics or drawing random numbers in the modules that still run."""
        modules = [module for path in self.stem_paths for module in model.get_submodule(path).modules()]
        training = [module for module in modules if module.training]
        try:
            for module in training:
                module.training = False
            yield
        finally:
            for module in training:
                module.training = True

    @contextmanager
    def _known_outputs(self, model: nn.Module, tokens: Tensor) -> Iterator[None]:
        """Replace the blocks. The last one returns the tokens ``(B, N, C)``. Those of other shapes return zeros."""
        blocks, last = [model.get_submodule(step.block.path) for step in self.steps], self.steps[-1].sides.after
        try:
            for step, block in zip(self.steps, blocks, strict=True):
                shape = step.sides.after
                output = shape.native(tokens if shape == last else _zeros(shape, tokens))
                _replace(model, step.block.path, _KnownOutput(step.block.known(output), block))
            yield
        finally:
            for step, block in zip(self.steps, blocks, strict=True):
                _replace(model, step.block.path, block)

    def mean(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Return the mean ``(B, C)`` of the normed patches, the feature of many convolutional networks."""
        shape, normed = self.steps[-1].sides.after, self.norm(model, tokens)
        if shape.layout in MAPS:
            return shape.native(normed).mean((2, 3) if shape.layout == "b c h w" else (1, 2))
        return normed[:, shape.num_prefix_tokens :].mean(1)

    def norm(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Apply the final norm to tokens ``(B, N, C)``. Backbones in stages may have none."""
        shape = self.steps[-1].sides.after
        if self.norm_path is None and (shape.layout in MAPS or not self.steps_are_equal):
            return tokens
        if self.norm_path is None:
            raise DmgalError(
                "The patches of this backbone cannot be pooled, because no norm comes after its blocks.",
                received=f"{type(model).__qualname__}, which called no norm after its blocks",
                expected="a LayerNorm, an RMSNorm or a module with a similar name",
                remedy="Choose pooling=None, or pass norm= to dmgal.backbones.describe_backbone.",
            )
        norm = model.get_submodule(self.norm_path)
        return shape.tokens(norm(shape.native(tokens))) if self.norms_maps else norm(tokens)

    def project(self, model: nn.Module, features: Tensor) -> Tensor:
        """Return the features: ``pool`` runs to the model's end, and no projection of patches is known."""
        return features


def observed_spec(model: nn.Module, rerun: Rerun, **fields: Any) -> BackboneSpec:
    """Return the spec of an observed model: what `Rerun` and the model's normalization determine, and other fields."""
    mean, std = normalization_of(model)
    return BackboneSpec(
        library="custom",
        num_blocks=len(rerun.steps),
        image_size=rerun.image_size,
        mean=mean,
        std=std,
        pools_prefix=False,
        patch_embedding=rerun.weight.removesuffix(".weight"),
        stem=rerun.stem,
        run_block=rerun.run_block,
        pool=rerun.pool,
        norm=rerun.norm,
        project=rerun.project,
        **fields,
    )


def _zeros(shape: BlockShape, like: Tensor) -> Tensor:
    num_tokens = shape.num_prefix_tokens + shape.grid[0] * shape.grid[1]
    return like.new_zeros(1).expand(len(like), num_tokens, shape.width)


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


class _Reached(Exception):
    """Signal that ends a run before the first block."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__("the first block was reached")
        self.tokens = tokens


def _stop(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
    raise _Reached(args[0] if args else next(iter(kwargs.values())))


class _KnownOutput(nn.Module):
    """A replacement for a block that returns a known output and has the attributes of the block."""

    def __init__(self, output: object, block: nn.Module) -> None:
        super().__init__()
        self.output = output
        self.block = (block,)  # in a tuple, so that it is not registered as a child

    def forward(self, *args: object, **kwargs: object) -> object:
        """Return the known output, such as ``(V*T, N, C)``, for any input."""
        return self.output

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"][0], name)

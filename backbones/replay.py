"""Stem and final layers of a model that can only be run as a whole.

- ``stem``: the model runs until its first block is called, and the input of the block is returned.
- ``pool``: the model runs on blank images, with its blocks replaced by modules that return known tokens.
- ``norm``: the first norm that was called after the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from torch import Tensor, nn

from ..errors import DmgalError
from .probing import Call, Run, Stack


def call_model(model: nn.Module, images: Tensor) -> Any:
    """Run a model in the default way."""
    return model(images)


def feature_of(output: Any) -> Tensor | None:
    """Return the feature ``(B, D)`` in a model's output, a tensor or a transformers output, or None."""
    for value in (output, getattr(output, "image_embeds", None), getattr(output, "pooler_output", None)):
        if isinstance(value, Tensor) and value.ndim == 2:
            return value
    return None


class Rerun:
    """The functions of a spec, implemented by running the model.

    Args:
        run: runs the model on images.
        stack: the blocks.
        batch_first: True if the input of blocks is ``(B, N, C)``.
        image_size: height and width of the blank images.
        weight: path of the weight whose dtype and device the blank images have.
        block: a recorded call of a block.
        norm: path of the norm after the blocks, if there is one.
        stem_paths: paths of the modules that are called before the blocks.
    """

    def __init__(
        self,
        run: Run,
        stack: Stack,
        batch_first: bool,
        image_size: tuple[int, int],
        weight: str,
        block: Call,
        norm: str | None,
        stem_paths: Sequence[str] = (),
    ) -> None:
        self.run, self.stack, self.batch_first, self.norm_path = run, stack, batch_first, norm
        self.image_size, self.weight, self.stem_paths = image_size, weight, tuple(stem_paths)
        self.others, self.named = block.other_arguments if block.is_plain else ((), {})
        self.num_outputs = len(block.output) if isinstance(block.output, tuple) else None

    def stem(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return the first block's input tokens ``(B, N, C)`` for images ``(B, 3, h, w)``."""
        first = model.get_submodule(self.stack.block_paths[0])
        # before all other hooks, so that adapters do not act on the input of the first block twice
        handle = first.register_forward_pre_hook(_stop, with_kwargs=True, prepend=True)
        try:
            self.run(model, images)
        except _Reached as reached:
            return reached.tokens if self.batch_first else reached.tokens.transpose(0, 1)
        finally:
            handle.remove()
        raise DmgalError(
            "The first block of this backbone was not called.",
            received=f"a run of {type(model).__qualname__} without a call of {self.stack.block_paths[0]}",
            expected="one call of each block",
            remedy="Describe the backbone again by dmgal.backbones.describe_backbone.",
        )

    def run_block(self, model: nn.Module, block: nn.Module, tokens: Tensor) -> Tensor:
        """Run a block on tokens in its own layout and return tokens in that layout."""
        output = block(tokens, *self.others, **self.named)
        return output if self.num_outputs is None else output[0]

    def pool(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Return the model's own feature ``(B, D)`` for the last block's tokens ``(B, N, C)``."""
        blank = model.get_parameter(self.weight).new_zeros(1).expand(len(tokens), 3, *self.image_size)
        stack: Any = model.get_submodule(self.stack.path)
        blocks = list(stack)
        tokens = tokens if self.batch_first else tokens.transpose(0, 1)
        output = tokens if self.num_outputs is None else (tokens, *[None] * (self.num_outputs - 1))
        training_stem = [module for path in self.stem_paths if (module := model.get_submodule(path)).training]
        try:
            for module in training_stem:  # blank images must not update statistics or draw random numbers
                module.training = False
            for index, block in enumerate(blocks):
                stack[index] = _KnownOutput(output, block)
            feature = feature_of(self.run(model, blank))
        finally:
            for module in training_stem:
                module.training = True
            for index, block in enumerate(blocks):
                stack[index] = block
        if feature is None:
            raise DmgalError(
                "This backbone has no feature of its own.",
                received=f"{type(model).__qualname__}, whose output holds no feature",
                expected="a tensor (B, D), alone or under the name image_embeds or pooler_output",
                remedy="Choose pooling='patch_mean', or pass pool= to dmgal.backbones.describe_backbone.",
            )
        return feature

    def norm(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Apply the final norm to tokens ``(B, N, C)``."""
        if self.norm_path is None:
            raise DmgalError(
                "The patches of this backbone cannot be pooled, because no norm stands behind its blocks.",
                received=f"{type(model).__qualname__}, which called no norm after {self.stack.path}",
                expected="a LayerNorm, an RMSNorm or a module with a similar name",
                remedy="Choose pooling=None, or pass norm= to dmgal.backbones.describe_backbone.",
            )
        return model.get_submodule(self.norm_path)(tokens)

    def project(self, model: nn.Module, features: Tensor) -> Tensor:
        """Return the features: ``pool`` runs to the model's end, and no projection of patches is known."""
        return features


class _Reached(Exception):
    """Signal that ends a run before the first block."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__("the first block was reached")
        self.tokens = tokens


def _stop(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
    raise _Reached(args[0] if args else next(iter(kwargs.values())))


class _KnownOutput(nn.Module):
    """A replacement for a block that returns a known output and has the attributes of the block."""

    def __init__(self, output: Any, block: nn.Module) -> None:
        super().__init__()
        self.output = output
        self.block = (block,)  # in a tuple, so that it is not registered as a child

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.output

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"][0], name)

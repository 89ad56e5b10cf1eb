"""The parts of a block of any make, from the calls that were seen in it: norm, attention, norm, MLP."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..observation import Call
from ..spec import BlockParts

Attend = Callable[[nn.Module, Tensor], Tensor]


def is_norm(call: Call) -> bool:
    """Whether a norm over channels was called: LayerNorm, RMSNorm or what is named like them, no batch norm."""
    module = call.module
    named_so = "norm" in type(module).__name__.lower() and not isinstance(module, nn.modules.batchnorm._NormBase)
    return named_so and isinstance(call.input, Tensor) and getattr(call.output, "shape", None) == call.input.shape


def find_parts(inside: list[Call], block: Call, batch_first: bool) -> tuple[BlockParts | None, Attend | None, bool]:
    """Names of the parts, how to attend, and whether the attention takes no tokens but a frame's (see the spec).

    Args:
        inside: calls of the block's children in order, by their names.
        block: the call of the block itself.
        batch_first: whether tokens come as ``(B, N, C)``.
    """
    attention_norm = next((c for c in inside if is_norm(c) and c.input is block.input), None)
    attention = _fed_by(attention_norm, inside)
    if attention_norm is None or attention is None:
        return None, None, False
    behind = inside[inside.index(attention) + 1 :]
    mlp_norm = next((c for c in behind if is_norm(c) and c.keeps_shape), None)
    mlp = _fed_by(mlp_norm, behind)
    parts = BlockParts(attention_norm.path, attention.path, _path(mlp_norm), _path(mlp))
    others, named = attention.other_arguments
    if isinstance(_own(attention.module), nn.MultiheadAttention):
        others, named = (), {}  # keys and values, which are the queries again; this is tried below
    attend = partial(_attend, attention.path, others, named)
    if not _close(_tried(attend, block.module, attention.input), attention.result):
        return parts, None, False
    dimension = 1 if batch_first else 0
    if not _mixes(attend, block.module, attention.input, dimension):
        return None, None, False  # an MLP stands first
    if not _takes_any_tokens(attend, block.module, attention.input, dimension):
        return parts, None, True
    return parts, attend, False


def _fed_by(source: Call | None, calls: list[Call]) -> Call | None:
    """The module that made tokens of what a norm returned."""
    if source is None:
        return None
    return next((c for c in calls if c.input is source.output and c.keeps_shape), None)


def _path(call: Call | None) -> str | None:
    return None if call is None else call.path


def _attend(name: str, others: tuple[Any, ...], named: dict[str, Any], block: nn.Module, tokens: Tensor) -> Tensor:
    attention: Any = getattr(block, name)
    if isinstance(_own(attention), nn.MultiheadAttention):
        return attention(tokens, tokens, tokens, need_weights=False)[0]
    output = attention(tokens, *others, **named)
    return output[0] if isinstance(output, tuple) else output


def _own(module: nn.Module) -> nn.Module:
    """The backbone's own module, where a LoRA has wrapped it."""
    return getattr(module, "base_layer", module)


@torch.no_grad()
def _tried(attend: Attend, block: nn.Module, tokens: Tensor) -> Tensor | None:
    try:
        return attend(block, tokens)
    except Exception:  # whatever a module does not take
        return None


def _mixes(attend: Attend, block: nn.Module, tokens: Tensor, dimension: int) -> bool:
    """Whether one token changes what becomes of the others."""
    last = tokens.shape[dimension] - 1
    changed = tokens.clone()
    changed.select(dimension, last).neg_()
    before, after = (_tried(attend, block, x) for x in (tokens, changed))
    if before is None or after is None:
        return False
    return not torch.equal(before.narrow(dimension, 0, last), after.narrow(dimension, 0, last))


def _takes_any_tokens(attend: Attend, block: nn.Module, tokens: Tensor, dimension: int) -> bool:
    """Whether attention takes tokens in any order and number, as AIM wants to run it over frames.

    One that is told positions gives other results for reversed tokens; one of fixed windows fails on two tokens.
    """
    backwards = _tried(attend, block, tokens.flip(dimension))
    pair = _tried(attend, block, tokens.narrow(dimension, 0, 2))
    if backwards is None or pair is None or pair.shape[dimension] != 2:
        return False
    return _close(backwards.flip(dimension), attend(block, tokens))


def _close(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and one.shape == other.shape and bool((one - other).abs().max() <= 1e-2 * other.abs().max())

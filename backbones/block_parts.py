"""Search for the parts of a block of any model from its recorded calls: norm, attention, norm, MLP."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .probing import Call
from .spec import BlockParts

Attend = Callable[[nn.Module, Tensor], Tensor]


def is_norm(call: Call) -> bool:
    """Return True for the call of a norm over channels: LayerNorm, RMSNorm or similar names, but no batch norm."""
    module = call.module
    has_norm_name = "norm" in type(module).__name__.lower() and not isinstance(module, nn.modules.batchnorm._NormBase)
    return has_norm_name and isinstance(call.input, Tensor) and getattr(call.output, "shape", None) == call.input.shape


def find_parts(inside: list[Call], block: Call, batch_first: bool) -> tuple[BlockParts | None, Attend | None, bool]:
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
    if not _close(_attend_or_none(attend, block.module, attention.input), attention.result):
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


def _attend(name: str, others: tuple[Any, ...], named: dict[str, Any], block: nn.Module, tokens: Tensor) -> Tensor:
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
    return _close(reversed_output.flip(dimension), attend(block, tokens))


def _close(output: Tensor | None, expected: Tensor) -> bool:
    if output is None or output.shape != expected.shape:
        return False
    return bool((output - expected).abs().max() <= 1e-2 * expected.abs().max())

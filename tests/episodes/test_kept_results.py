"""What is kept for the way back is what is dearest to compute per byte, and is not computed again."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from dmgal.episodes.little_memory.kept_results import CostlyResults, Result, dearest, keeping

WIDE, BACK = torch.randn(64, 16), torch.randn(16, 64)


def encode(tokens):
    hidden = F.gelu(tokens @ WIDE.T)  # (rows, 64)
    return tokens + torch.sin(hidden @ BACK.T)  # (rows, 16)


def listed(work):
    with CostlyResults() as costly:
        work()
    return costly.results


def test_operations_and_bytes_are_listed():
    tokens = torch.randn(10, 16)
    assert listed(lambda: encode(tokens)) == [
        Result(0, 2 * 10 * 16 * 64, 10 * 64 * 4),
        Result(1, 2 * 10 * 64 * 16, 10 * 16 * 4),
    ]


def test_attention_on_a_cpu_counts():
    query, key = torch.randn(2, 3, 5, 8, requires_grad=True), torch.randn(2, 3, 7, 8)
    (result,) = listed(lambda: F.scaled_dot_product_attention(query, key, key))
    assert result.operations == 2 * 2 * (2 * 3) * 5 * 7 * 8
    assert result.size == 4 * (2 * 3 * 5 * 8 + 2 * 3 * 5)  # with its logarithms of sums


def test_the_dearest_per_byte_come_first():
    results = [Result(0, 10, 10), Result(1, 40, 10), Result(2, 20, 10)]
    for memory, places in ((0, set()), (9, set()), (10, {1}), (29, {1, 2}), (30, {0, 1, 2})):
        assert dearest(results, memory) == places


def test_what_is_kept_is_not_computed_again():
    tokens = torch.randn(10, 16, requires_grad=True)
    (expected,) = torch.autograd.grad(encode(tokens).sum(), tokens)
    for places, products in (((), 2), ((1,), 1), ((0, 1), 0)):
        result = checkpoint(encode, tokens, use_reentrant=False, context_fn=keeping(places))
        found = []
        backward = listed(lambda result=result, found=found: found.extend(torch.autograd.grad(result.sum(), tokens)))
        assert len(backward) == products + 2  # two go back
        torch.testing.assert_close(found[0], expected, rtol=0, atol=0)

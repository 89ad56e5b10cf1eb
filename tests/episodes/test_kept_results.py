"""Results saved for backward are the most expensive ones per byte, and are not recomputed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from dmgal.episodes.two_pass.recompute import CostlyResults, Result, keeping, most_expensive

WIDEN, NARROW = torch.randn(64, 16), torch.randn(16, 64)


def encode(tokens):
    hidden = F.gelu(tokens @ WIDEN.T)  # (rows, 64)
    return tokens + torch.sin(hidden @ NARROW.T)  # (rows, 16)


def record(work):
    with CostlyResults() as costly:
        work()
    return costly.results


def test_operations_and_bytes_are_recorded():
    tokens = torch.randn(10, 16)
    assert record(lambda: encode(tokens)) == [
        Result(0, 2 * 10 * 16 * 64, 10 * 64 * 4),
        Result(1, 2 * 10 * 64 * 16, 10 * 16 * 4),
    ]


def test_cpu_attention_is_recorded():
    query, key = torch.randn(2, 3, 5, 8, requires_grad=True), torch.randn(2, 3, 7, 8)
    (result,) = record(lambda: F.scaled_dot_product_attention(query, key, key))
    assert result.operations == 2 * 2 * (2 * 3) * 5 * 7 * 8
    assert result.size == 4 * (2 * 3 * 5 * 8 + 2 * 3 * 5)  # with the log-sum-exp values


def test_most_expensive_per_byte_come_first():
    results = [Result(0, 10, 10), Result(1, 40, 10), Result(2, 20, 10)]
    for memory, positions in ((0, set()), (9, set()), (10, {1}), (29, {1, 2}), (30, {0, 1, 2})):
        assert most_expensive(results, memory) == positions


def test_saved_results_are_not_recomputed():
    tokens = torch.randn(10, 16, requires_grad=True)
    (expected,) = torch.autograd.grad(encode(tokens).sum(), tokens)
    for positions, products in (((), 2), ((1,), 1), ((0, 1), 0)):
        result = checkpoint(encode, tokens, use_reentrant=False, context_fn=keeping(positions))
        gradients = []
        backward = record(
            lambda result=result, gradients=gradients: gradients.extend(torch.autograd.grad(result.sum(), tokens))
        )
        assert len(backward) == products + 2  # two products of the backward pass
        torch.testing.assert_close(gradients[0], expected, rtol=0, atol=0)

"""TRX: the released numbers, what cardinalities do, and that the order of frames counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dmgal.episodes.heads import TRX
from dmgal.errors import DmgalError

LABELS = torch.tensor([0, 1, 1, 0])


def videos(count: int, seed: int, frames: int = 5) -> Tensor:
    return torch.randn(count, frames, 12, generator=torch.Generator().manual_seed(seed))


def logits(head: TRX, support: Tensor, query: Tensor) -> Tensor:
    return head.compare(head.prepare(support), LABELS, head.prepare(query)).logits


@pytest.mark.parametrize("cardinality", [2, 3])
@pytest.mark.parametrize("prefix", ["", "transformers.0."])
def test_golden(read_golden, assert_relatively_close, cardinality: int, prefix: str) -> None:
    tensors, weights, _ = read_golden(f"trx_cardinality{cardinality}")
    width, channels = weights["k_linear.weight"].shape
    head = TRX(channels // cardinality, (cardinality,), width).eval()
    head.load_reference_state_dict({prefix + name: tensor for name, tensor in weights.items()})
    output = head.compare(head.prepare(tensors["support"]), tensors["labels"], head.prepare(tensors["query"]))
    assert_relatively_close(output.logits, tensors["logits"])
    assert not output.losses


def test_several_cardinalities_are_averaged(read_golden, assert_relatively_close) -> None:
    parts = [read_golden(f"trx_cardinality{cardinality}") for cardinality in (2, 3)]
    head = TRX(32, (2, 3), 24).eval()
    both = {f"transformers.{i}.{name}": t for i, (_, weights, _) in enumerate(parts) for name, t in weights.items()}
    head.load_reference_state_dict(both)
    support, query, labels = (parts[0][0][name] for name in ("support", "query", "labels"))
    alone = []
    for cardinality, (_, weights, _) in zip((2, 3), parts, strict=True):
        single = TRX(32, (cardinality,), 24).eval()
        single.load_reference_state_dict(weights)
        alone.append(single.compare(single.prepare(support), labels, single.prepare(query)).logits)
    ours = head.compare(head.prepare(support), labels, head.prepare(query)).logits
    assert_relatively_close(ours, (alone[0] + alone[1]) / 2)


def test_widths_are_those_of_the_paper() -> None:
    head = TRX(2048)
    assert head.cardinalities == (2, 3)
    sizes = [tuple(projection.keys.weight.shape) for projection in head.projections]
    assert sizes == [(1152, 2 * 2048), (1152, 3 * 2048)]


@pytest.mark.parametrize("cardinalities", [(2,), (1,)])
def test_order_of_frames_changes_logits(cardinalities: tuple[int, ...]) -> None:
    """The order within a tuple counts. With single frames, only the position code does."""
    torch.manual_seed(0)
    head, support, query = TRX(12, cardinalities, 8).eval(), videos(4, 1), videos(2, 2)
    assert not torch.allclose(logits(head, support, query.flip(1)), logits(head, support, query), rtol=1e-4)


def test_support_and_query_may_differ_in_frames() -> None:
    head = TRX(12, width=8).eval()
    assert logits(head, videos(4, 1, frames=6), videos(2, 2, frames=4)).shape == (2, 2)


def test_logits_are_float32_and_the_same_under_autocast() -> None:
    torch.manual_seed(0)
    head = TRX(12, width=8).eval()
    support, query = head.prepare(videos(4, 1)), head.prepare(videos(2, 2))
    expected = head.compare(support, LABELS, query).logits
    with torch.autocast("cpu", torch.bfloat16):
        ours = head.compare(support, LABELS, query).logits
        assert logits(head, videos(4, 1), videos(2, 2)).dtype == torch.float32
    assert torch.equal(ours, expected)


@pytest.mark.parametrize(
    ("shape", "message"), [((2, 2, 12), "2 frames for tuples of 3"), ((2, 4, 12, 7, 7), "pooling")]
)
def test_invalid_features_raise(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(DmgalError, match=message):
        TRX(12, width=8).prepare(torch.zeros(shape))


def test_weights_of_other_cardinalities_raise(read_golden) -> None:
    _, weights, _ = read_golden("trx_cardinality3")
    with pytest.raises(DmgalError, match="other shapes"):
        TRX(32, (2,), 24).load_reference_state_dict(weights)
    with pytest.raises(DmgalError, match=r"missing .*projections\.0"):
        TRX(32, (2, 3), 24).load_reference_state_dict({f"transformers.1.{name}": t for name, t in weights.items()})

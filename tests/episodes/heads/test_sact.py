"""SA-CT: the released numbers, the paper's form written out, and what its values and positions see."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dmgal.episodes.heads import SACT
from dmgal.episodes.heads.sact import SpatialCrossAttention
from dmgal.errors import DmgalError

LABELS = torch.tensor([1, 0, 1])  # unequal shots


def maps(videos: int, frames: int = 4, grid: tuple[int, int] = (2, 3), seed: int = 0) -> Tensor:
    return torch.randn(videos, frames, 8, *grid, generator=torch.Generator().manual_seed(seed))


def distances(module: SpatialCrossAttention, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
    return module.distances(module.prepare(support), labels, module.prepare(query))


def written_out(module: SpatialCrossAttention, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
    """The equations for one query, class and frame at a time."""
    support, query = module.prepare(support), module.prepare(query)
    released = module.form == "released"
    queries = query["keys" if released else "queries"]
    scale = (module.channels if released else module.width) ** 0.5
    num_query, frames, patches = query["values"].shape[:3]
    result = torch.zeros(num_query, int(labels.max()) + 1)
    for q in range(num_query):
        for c in range(result.shape[1]):
            differences = []
            for t in range(frames):
                keys, values = (support[name][labels == c, t].flatten(0, 1) for name in ("keys", "values"))
                attention = (queries[q, t] @ keys.T / scale).softmax(dim=-1)
                differences.append(query["values"][q, t] - attention @ values)  # (P,D)
            if released:
                result[q, c] = torch.stack(differences).square().sum() / (frames**2 * patches)
            else:
                result[q, c] = torch.stack(differences).mean(dim=0).square().sum(dim=-1).mean()
    return result


def test_golden(read_golden, assert_relatively_close) -> None:
    tensors, weights, _ = read_golden("sact_spatial_cross_attention")
    width, channels = weights["qk_linear.weight"].shape
    module = SpatialCrossAttention(channels, width, form="released")
    module.load_reference_state_dict(weights)
    support, query = (tensors[name].unflatten(3, (4, 4)) for name in ("support", "query"))
    assert_relatively_close(-distances(module, support, tensors["labels"], query), tensors["logits"])


def test_both_released_parts_load(read_golden, assert_relatively_close) -> None:
    _, mixing, info = read_golden("sact_tmixer_frame_mixing")
    tensors, attending, _ = read_golden("sact_spatial_cross_attention")
    head = SACT(32, info["frames"], width=24, form="released")
    head.load_reference_state_dict({**mixing, **attending})
    support, query = (tensors[name].unflatten(3, (4, 4)) for name in ("support", "query"))
    expected = -distances(head.attention, head.mixer(support), tensors["labels"], head.mixer(query))
    ours = head.compare(head.prepare(support), tensors["labels"], head.prepare(query)).logits
    assert_relatively_close(ours, expected)
    torch.testing.assert_close(head.mixer.frames_in.weight, mixing["fc_t1.weight"])


@pytest.mark.parametrize("form", ["paper", "released"])
def test_logits_equal_a_loop_over_queries_classes_and_frames(form, assert_relatively_close) -> None:
    torch.manual_seed(0)
    module = SpatialCrossAttention(8, 5, form)
    support, query = maps(3), maps(2, seed=1)
    expected = written_out(module, support, LABELS, query)
    assert_relatively_close(distances(module, support, LABELS, query), expected)


def test_values_of_the_paper_form_have_no_position_code() -> None:
    torch.manual_seed(0)
    still = maps(1, grid=(1, 1)).expand(-1, -1, -1, 2, 3)  # all patches alike: only a code tells them apart
    for form, alike in (("paper", True), ("released", False)):
        values = SpatialCrossAttention(8, 5, form).prepare(still)["values"]
        assert torch.allclose(values, values[:, :, :1].expand_as(values), atol=1e-6) == alike


def test_moved_patches_are_matched() -> None:
    """A class whose shot is the query with its patches elsewhere is near: no code, so position is not compared."""
    torch.manual_seed(0)
    module = SpatialCrossAttention(8, 32)
    with torch.no_grad():
        module.code.weight.zero_()
        module.code.bias.zero_()
        module.to_queries.load_state_dict(module.to_keys.state_dict())
        module.query_norm.weight.fill_(30.0)  # a sharp attention
    query = maps(1)
    support = torch.cat((query.flip(4), maps(1, seed=1)))
    near, far = distances(module, support, torch.tensor([0, 1]), query)[0]
    assert near < 1e-3 * far


def test_parameters_without_effect_are_absent() -> None:
    """Biases that a softmax or a difference cannot see are left out."""
    names = {name for name, _ in SpatialCrossAttention(8, 5).named_parameters()}
    assert not {"key_norm.bias", "to_values.bias"} & names and "query_norm.bias" in names


class TestMistakes:
    def test_released_weights_of_the_paper_form_raise(self) -> None:
        for module in (SACT(8, 4, 5), SpatialCrossAttention(8, 5)):
            with pytest.raises(DmgalError, match="form='paper'"):
                module.load_reference_state_dict({})

    def test_unknown_form_raises(self) -> None:
        with pytest.raises(DmgalError, match="form='seed'"):
            SACT(8, form="seed")

    def test_wrong_number_of_frames_raises(self) -> None:
        module = SpatialCrossAttention(8, 5)
        with pytest.raises(DmgalError, match="3 support frames, 4 query frames"):
            distances(module, maps(1, frames=3), torch.tensor([0]), maps(1))

    def test_frame_features_raise(self) -> None:
        with pytest.raises(DmgalError, match=r"\(2, 4, 8\)"):
            SACT(8, 4, 5).prepare(torch.zeros(2, 4, 8))

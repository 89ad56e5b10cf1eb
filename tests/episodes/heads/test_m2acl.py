"""M2ACL: the released numbers, the contrast written out in loops, and what its parts do in the head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dmgal.episodes.episode import TaskTargets
from dmgal.episodes.heads import M2ACL
from dmgal.episodes.heads.m2acl import (
    TupleEmbedding,
    largest_distances,
    tuple_contrast,
    tuple_distances,
    unrelated_tuples,
)


def tuples(videos: int, seed: int, num_tuples: int = 6) -> Tensor:
    return torch.rand(videos, num_tuples, 5, generator=torch.Generator().manual_seed(seed))


def contrast_in_loops(distances: Tensor, support_distances: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The released computation, one class, other class, query and tuple at a time: contrast and unrelated tuples."""
    num_query, num_tuples, num_support = distances.shape[:3]
    n_way = int(labels.max()) + 1
    result, unrelated = torch.zeros(num_query, n_way), torch.zeros(n_way, num_support, num_tuples, dtype=torch.bool)
    places = [(labels == c).nonzero().flatten() for c in range(n_way)]
    for c in range(n_way):
        own, others = places[c], [k for k in range(n_way) if k != c]
        for k in others:
            counts = torch.zeros(len(places[k]) * num_tuples)
            for q in range(num_query):
                for i in range(num_tuples):
                    to_class = distances[q, i, own].flatten()  # shot after shot
                    threshold = to_class.view(num_tuples, len(own)).amax(dim=0).mean()
                    farthest = support_distances[own].flatten(0, 1)[to_class.argmax()]  # (S,M)
                    counts += farthest[places[k]].flatten() > threshold
            if (counts > 0).any():
                unrelated[c, places[k]] = (counts < counts[counts > 0].mean()).view(-1, num_tuples)
        for q in range(num_query):
            largest = distances[q, :, own].flatten(1).amax(dim=1).mean()
            chosen = distances[q][:, unrelated[c].clone()]  # a copy, which nobody changes before the backward pass
            to_unrelated = chosen.mean() / (n_way - 1) if chosen.numel() else torch.zeros(())
            result[q, c] = largest / (largest + to_unrelated)
    return result, unrelated


class TestGolden:
    def test_embedding_and_contrast(self, read_golden, assert_relatively_close) -> None:
        tensors, weights, info = read_golden("m2acl_tuple_contrast")
        width = weights["clsW.weight"].shape[0]
        embedding = TupleEmbedding(tensors["query"].shape[2], info["cardinality"], width).eval()
        embedding.load_reference_state_dict(weights)
        query, support = embedding(tensors["query"]), embedding(tensors["support"])
        distances, labels = tuple_distances(query, support), tensors["labels"]
        assert_relatively_close(largest_distances(distances, labels)[0].mean(dim=1), tensors["largest_distance"])
        contrast = tuple_contrast(distances, tuple_distances(support, support), labels)
        assert_relatively_close(contrast, tensors["contrast"])


class TestContrast:
    @pytest.mark.parametrize("labels", [[0, 1, 2, 3], [2, 0, 1, 1, 0, 2], [1, 0, 1, 1, 2, 0], [0, 0, 0, 1, 1]])
    def test_contrast_equals_plain_loops(self, labels: list[int], assert_relatively_close) -> None:
        labels = torch.tensor(labels)
        query, support = tuples(3, 1), tuples(len(labels), 2)
        inputs = tuple_distances(query, support), tuple_distances(support, support), labels
        expected, unrelated = contrast_in_loops(*inputs)
        assert torch.equal(unrelated_tuples(*inputs), unrelated) and unrelated.any()
        assert_relatively_close(tuple_contrast(*inputs), expected)

    def test_farthest_tuple_is_selected(self) -> None:
        labels = torch.tensor([1, 0, 1])
        distances = tuple_distances(tuples(2, 1), tuples(3, 2))
        largest, place = largest_distances(distances, labels)
        torch.testing.assert_close(distances.flatten(2).gather(2, place), largest)
        assert (labels[place // 6] == torch.arange(2)).all()
        torch.testing.assert_close(largest[..., 1], distances[:, :, labels == 1].flatten(2).amax(dim=2))

    def test_contrast_of_a_single_class_is_one(self) -> None:
        support = tuples(2, 2)
        inputs = tuple_distances(tuples(3, 1), support), tuple_distances(support, support), torch.tensor([0, 0])
        torch.testing.assert_close(tuple_contrast(*inputs), torch.ones(3, 1))

    def test_equal_tuples_have_finite_gradients(self) -> None:
        same = torch.ones(4, 6, 5, requires_grad=True)
        contrast = tuple_contrast(tuple_distances(same, same), tuple_distances(same, same), torch.tensor([0, 1, 2, 1]))
        contrast.sum().backward()
        assert contrast.isfinite().all() and same.grad.isfinite().all()

    def test_gradients_equal_plain_loops(self) -> None:
        labels, support = torch.tensor([0, 1, 2, 1]), tuples(4, 2)
        gradients = []
        for compute in (tuple_contrast, lambda *inputs: contrast_in_loops(*inputs)[0]):
            distances = tuple_distances(tuples(3, 1), support).requires_grad_()
            compute(distances, tuple_distances(support, support), labels).square().sum().backward()
            gradients.append(distances.grad)
        torch.testing.assert_close(*gradients)


class TestHead:
    LABELS = torch.tensor([0, 1, 2, 1, 0, 2])

    @staticmethod
    def states(head: M2ACL) -> tuple:
        generator = torch.Generator().manual_seed(0)
        return tuple(head.prepare(torch.randn(count, 4, 16, 2, 3, generator=generator)) for count in (6, 3))

    def test_prediction_and_losses(self, assert_relatively_close) -> None:
        torch.manual_seed(0)
        head, answers = M2ACL(16, width=8, tuple_weight=2.0).eval(), torch.tensor([0, 1, 2])
        support, query = self.states(head)
        output = head.compare(support, self.LABELS, query, TaskTargets(answers))
        cross_attention = head.matcher.compare(support, self.LABELS, query).logits
        largest, contrasts = [], []
        for name in ("tuples_2", "tuples_3"):
            distances = tuple_distances(query[name], support[name])
            largest.append(largest_distances(distances, self.LABELS)[0].mean(dim=1))
            own = tuple_distances(support[name], support[name])
            contrasts.append(tuple_contrast(distances, own, self.LABELS))
        assert_relatively_close(output.logits, cross_attention + sum(largest))  # 2 times the mean of two
        assert set(output.losses) == {"cross_entropy", "contrast"} and head.loss_weights == {"contrast": 0.05}
        expected = functional.cross_entropy(cross_attention, answers)
        assert_relatively_close(output.losses["cross_entropy"], expected)
        expected = functional.cross_entropy(sum(contrasts) / 2, answers)
        assert_relatively_close(output.losses["contrast"], expected)

    def test_contrast_trains_the_embeddings(self) -> None:
        """In the released code they are no part of the model."""
        head = M2ACL(16, width=8)
        support, query = self.states(head)
        losses = head.compare(support, self.LABELS, query, TaskTargets(torch.arange(3))).losses
        losses["contrast"].backward()
        gradients = {name: p.grad for name, p in head.named_parameters() if name.startswith("embeddings")}
        assert len(gradients) == 4
        assert all(gradient.abs().sum() > 0 for gradient in gradients.values())

    def test_released_weights_load(self, read_golden) -> None:
        head = M2ACL(24, cardinalities=(2,), width=24)
        _, motion, _ = read_golden("m2acl_tdsam")
        before = head.embeddings[0].linear.weight.clone()
        generator = torch.Generator().manual_seed(0)
        names = {
            "k_linear.weight": (24, 48),
            "v_linear.weight": (24, 48),
            "norm_k.weight": (24,),
            "norm_v.weight": (24,),
        }
        shapes = {**names, **{name.replace("weight", "bias"): (24,) for name in names}, "pe.pe": (1, 12, 24)}
        tuples = {f"transformers.0.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        released = {**{f"tdsam.{name}": tensor for name, tensor in motion.items()}, **tuples}
        head.load_reference_state_dict(released)
        assert torch.equal(head.motion_attention.gamma, motion["gamma"])
        assert torch.equal(head.matcher.projections[0].keys.weight, tuples["transformers.0.k_linear.weight"])
        assert torch.equal(head.embeddings[0].linear.weight, before)
        head.load_reference_state_dict(
            {**released, "tuple_classifiers.0.clsW.weight": before + 1, "tuple_classifiers.0.clsW.bias": torch.ones(12)}
        )
        assert torch.equal(head.embeddings[0].linear.weight, before + 1)

    def test_dropout_is_the_same_for_all_videos(self) -> None:
        embedding, frames = TupleEmbedding(16, 2).train(), torch.ones(1, 4, 16).expand(2, -1, -1)
        first, second = embedding(frames)
        torch.testing.assert_close(first, second)
        assert not torch.allclose(embedding(frames), embedding(frames))

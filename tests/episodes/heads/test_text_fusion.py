"""Text added to every head: the sum of both logits, in episodes, cached evaluation and zero-shot recognition."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from dmgal.backbones import ClassTexts, VideoState
from dmgal.episodes import EpisodeSampler, FewShotRecognizer
from dmgal.episodes.evaluation import evaluate
from dmgal.episodes.evaluation.states import PrecomputedStates
from dmgal.episodes.heads import OTAM, TRX, BiMHM, FrameAligned, HyRSM, LateFusion, Prototype, TextFusion
from dmgal.errors import DmgalError
from dmgal.testing import HeadCase

FRAMES = (4, 16)
LABELS = torch.tensor([2, 0, 1, 1, 0])
HEADS = {
    "bi_mhm_both": partial(BiMHM, "both", 10.0),
    "otam": OTAM,
    "frame_aligned": FrameAligned,
    "prototype": partial(Prototype, "euclidean", 10.0),
    "trx": partial(TRX, 16, width=8),
    "hyrsm": partial(HyRSM, 16, 2),
    "late_fusion": LateFusion,
}


def class_texts(classes=3, width=16):
    features = torch.nn.functional.normalize(torch.randn(classes, width, dtype=torch.float64), dim=-1)
    return ClassTexts(tuple(map(str, range(classes))), features, 20.0, -3.0, "random")


def with_text(state, texts, labels):
    return VideoState(state, class_text=texts.features[labels])


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_logits_are_the_sum_of_visual_and_text_logits(name):
    case, texts = HeadCase(HEADS[name], FRAMES), class_texts()
    head, support, query = case.perturbed(), case.videos(5, 1), case.videos(4, 2)
    fused = TextFusion(head, texts, weight=0.3)
    visual = head.compare(head.prepare(support), LABELS, head.prepare(query)).logits
    state = with_text(fused.prepare(support), texts, LABELS)
    both = fused.compare(state, LABELS, fused.prepare(query)).logits
    torch.testing.assert_close(both, visual + 0.3 * texts.logits(query))
    torch.testing.assert_close(TextFusion(None, texts).compare(state, LABELS, state).logits, texts.logits(support))
    assert fused.pair_scores == getattr(head, "pair_scores", None)


@torch.no_grad()
def test_a_stream_of_its_own_leaves_the_head_its_features():
    texts, videos = class_texts(width=6), torch.randn(5, 4, 22, dtype=torch.float64)
    head = BiMHM()
    fused = TextFusion(head, texts, has_own_stream=True)
    state = fused.prepare(videos)
    torch.testing.assert_close(state["frames"], videos[..., 6:])
    expected = head.compare(head.prepare(videos[..., 6:]), LABELS, head.prepare(videos[..., 6:])).logits
    logits = fused.compare(with_text(state, texts, LABELS), LABELS, state).logits
    torch.testing.assert_close(logits, expected + texts.logits(videos[..., :6]))


@torch.no_grad()
def test_text_of_queries_is_not_read():
    texts = class_texts()
    fused = TextFusion(BiMHM(), texts)
    state = with_text(fused.prepare(torch.randn(5, *FRAMES)), texts, LABELS)
    other = VideoState(state, class_text=torch.full_like(state["class_text"], torch.nan))
    expected = fused.compare(state, LABELS, state).logits
    torch.testing.assert_close(fused.compare(state, LABELS, other).logits, expected)


@torch.no_grad()
def test_evaluation_by_pairs_and_by_tasks_agree():
    labels = torch.arange(6).repeat_interleave(5)
    texts = class_texts(6)
    answers = []
    for pair_scores in (True, False):
        head = TextFusion(BiMHM(), texts, 0.1)
        if not pair_scores:
            head.head.__class__ = type("NoPairs", (BiMHM,), {"pair_scores": None})
        state = head.prepare(torch.randn(30, *FRAMES, generator=torch.Generator().manual_seed(0)))
        states = PrecomputedStates.undivided(state).with_support(class_text=texts.features[labels].float())
        sampler = EpisodeSampler(labels.numpy(), 3, 2, 1, 400, 0, texts.class_names)
        answers.append(
            evaluate(
                FewShotRecognizer(SimpleNamespace(has_task_layer=False), head), states, sampler, progress=False
            ).answers
        )
    assert answers[0].predicted.tolist() == answers[1].predicted.tolist()


def test_missing_text_and_other_features_are_refused():
    fused = TextFusion(BiMHM(), class_texts())
    state = fused.prepare(torch.randn(5, *FRAMES))
    with pytest.raises(DmgalError, match="bring no text"):
        fused.compare(state, LABELS, state)
    with pytest.raises(DmgalError, match="cannot be compared with text"):
        fused.prepare(torch.randn(2, 4, 12))
    with pytest.raises(DmgalError, match="compares frame features"):
        fused.prepare(torch.randn(2, 4, 16, 3, 3))

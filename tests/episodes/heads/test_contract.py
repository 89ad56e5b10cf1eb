"""Contract of every head. A new head needs one entry in `CASES`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from dmgal.episodes.heads import (
    HEADS,
    M2ACL,
    OTAM,
    SACT,
    STRM,
    TEAM,
    TIM,
    TRX,
    BiMHM,
    ClipFSAR,
    DistanceCorrelation,
    DmgalFT,
    FineTuned,
    FrameAligned,
    HyRSM,
    LaplacianShot,
    LateFusion,
    LogisticProbe,
    MoLo,
    Prototype,
    RidgeProbe,
)
from dmgal.testing import HEAD_CHECKS, HeadCase

FRAMES, MAPS = (4, 16), (4, 16, 3, 5)

CASES = {
    "bi_mhm": HeadCase(BiMHM, FRAMES),
    "bi_mhm_plain_cosine": HeadCase(partial(BiMHM, center="video", logit_scale=10.0, eps=0.0), FRAMES),
    "bi_mhm_both_prototype": HeadCase(partial(BiMHM, "both", 10.0, shots="prototype"), FRAMES),
    "otam": HeadCase(OTAM, FRAMES),
    "otam_both": HeadCase(partial(OTAM, relaxation=0.5, center="both", logit_scale=10.0, eps=0.0), FRAMES),
    "frame_aligned": HeadCase(partial(FrameAligned, center="video", logit_scale=10.0), FRAMES),
    "dmgal_ft": HeadCase(partial(DmgalFT, 16, num_frames=4), MAPS),
    "dmgal_ft_both": HeadCase(partial(DmgalFT, 16, 4, matcher=BiMHM("both", 10.0, eps=0.0)), MAPS),
    "trx": HeadCase(partial(TRX, 16, width=8), FRAMES),
    "trx_quadruples": HeadCase(partial(TRX, 16, (1, 4), 8), FRAMES),
    "strm": HeadCase(partial(STRM, 16, 4, width=8), MAPS),
    "hyrsm": HeadCase(partial(HyRSM, 16, num_base_classes=7), FRAMES),
    "hyrsm_without_classes": HeadCase(partial(HyRSM, 16, 2), FRAMES),
    "hyrsm_centered": HeadCase(partial(HyRSM, 16, num_base_classes=7, center="video"), FRAMES),
    "clip_fsar": HeadCase(partial(ClipFSAR, 16), FRAMES),
    "clip_fsar_merged": HeadCase(partial(ClipFSAR, 16, merge="before"), FRAMES),
    "clip_fsar_bi_mhm": HeadCase(lambda: ClipFSAR(16, matcher=BiMHM("video", 10.0, eps=0.0)), FRAMES),
    "distance_correlation": HeadCase(DistanceCorrelation, MAPS),
    "team": HeadCase(partial(TEAM, 16, num_patterns=5), FRAMES),
    "team_centered": HeadCase(partial(TEAM, 16, num_patterns=5, center="video"), FRAMES),
    "late_fusion": HeadCase(LateFusion, FRAMES),
    "late_fusion_two_streams": HeadCase(partial(LateFusion, (6, 10), (0.2, 0.1, 0.2, 0.5)), FRAMES),
    "prototype": HeadCase(Prototype, FRAMES),
    "prototype_euclidean": HeadCase(partial(Prototype, "euclidean"), FRAMES),
    "prototype_scaled": HeadCase(partial(Prototype, "euclidean", 10.0), FRAMES),
    "ridge_probe": HeadCase(RidgeProbe, FRAMES),
    "ridge_probe_all_frames": HeadCase(partial(RidgeProbe, 0.1, frames="all"), FRAMES),
    "ridge_probe_maps": HeadCase(RidgeProbe, MAPS),
    "logistic_probe": HeadCase(LogisticProbe, FRAMES),
    "fine_tuned": HeadCase(FineTuned, FRAMES),
    "fine_tuned_linear": HeadCase(partial(FineTuned, "linear"), FRAMES),
    "tim": HeadCase(TIM, FRAMES),
    "laplacian_shot": HeadCase(LaplacianShot, FRAMES),
    "sact": HeadCase(partial(SACT, 16, num_frames=4, width=8), MAPS),
    "sact_released": HeadCase(partial(SACT, 16, num_frames=4, width=8, form="released"), MAPS),
    "molo": HeadCase(partial(MoLo, 16, num_base_classes=7), MAPS),
    "molo_without_classes": HeadCase(partial(MoLo, 16, num_heads=2), MAPS),
    "molo_centered": HeadCase(partial(MoLo, 16, num_base_classes=7, center="video"), MAPS),
    "m2acl": HeadCase(partial(M2ACL, 16, width=8), MAPS),
    "m2acl_pairs": HeadCase(partial(M2ACL, 16, cardinalities=(2,), width=8), MAPS),
}


@pytest.mark.parametrize("check", HEAD_CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", CASES)
def test_contract(name: str, check: Callable[[HeadCase], None]) -> None:
    check(CASES[name])


def test_every_registered_head_has_a_case() -> None:
    torch.manual_seed(0)
    assert {type(case.make_head()) for case in CASES.values()} == set(HEADS.values())
    assert all(name == head.__name__ for name, head in HEADS.items())

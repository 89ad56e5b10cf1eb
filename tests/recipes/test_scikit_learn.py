"""scikit-learn's checks and tools with an `ActionRecognizer`, which does not depend on scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dmgal import ActionRecognizer
from dmgal.errors import DmgalError

sklearn = pytest.importorskip("sklearn", reason="needs scikit-learn")
checks = pytest.importorskip("sklearn.utils.estimator_checks", reason="needs scikit-learn and scipy")

CHECKS = (
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_set_params",
    "check_valid_tag_types",
)
"""The checks of scikit-learn that do not fit rows of numbers."""


@pytest.mark.parametrize("check", CHECKS)
def test_checks_that_fit_no_rows_of_numbers(check):
    getattr(checks, check)("ActionRecognizer", ActionRecognizer())


@pytest.fixture(scope="module")
def videos() -> list[np.ndarray]:
    """Six videos of noise, of which each half looks alike."""
    generator = torch.Generator().manual_seed(0)
    looks = [torch.randint(0, 256, (4, 48, 48, 3), generator=generator) for _ in range(2)]
    return [(looks[k // 3] + k).clamp(0, 255).to(torch.uint8).numpy() for k in range(6)]


def test_tools_for_models(videos):
    from sklearn.exceptions import NotFittedError
    from sklearn.model_selection import GridSearchCV, cross_val_predict
    from sklearn.utils.validation import check_is_fitted

    recognizer = ActionRecognizer.from_backbone()
    clone = sklearn.base.clone(recognizer)
    assert sklearn.base.is_classifier(clone) and clone.model is recognizer.model
    with pytest.raises(NotFittedError):
        check_is_fitted(clone)
    with pytest.raises(NotFittedError) as refused:
        clone.predict(videos)
    assert isinstance(refused.value, DmgalError)
    labels = ["this"] * 3 + ["that"] * 3
    probabilities = cross_val_predict(clone, videos, labels, cv=3, method="predict_proba")
    assert probabilities.shape == (6, 2) and probabilities.sum(1) == pytest.approx(np.ones(6))
    search = GridSearchCV(clone, {"adapter": [None, "tiny-clip-motion"]}, cv=3).fit(videos, labels)
    check_is_fitted(search.best_estimator_)
    assert search.best_estimator_.classes_.tolist() == ["that", "this"] and search.best_score_ == 1

"""Public contract suites for adapters, heads and backbones of your own.

    import pytest
    from dmgal.testing import HEAD_CHECKS, HeadCase

    CASE = HeadCase(MyHead, video=(4, 16))

    @pytest.mark.parametrize("check", HEAD_CHECKS, ids=lambda check: check.__name__)
    def test_my_head(check):
        check(CASE)

``AdapterCase`` with ``ADAPTER_CHECKS`` and ``BackboneCase`` with ``BACKBONE_CHECKS`` work alike. A check is a plain
function that raises ``AssertionError`` if the contract is violated.
"""

from .adapters import ADAPTER_CHECKS, AdapterCase, ignored_warnings
from .backbones import BACKBONE_CHECKS, BackboneCase, image_features
from .heads import HEAD_CHECKS, HeadCase

__all__ = [
    "ADAPTER_CHECKS",
    "BACKBONE_CHECKS",
    "HEAD_CHECKS",
    "AdapterCase",
    "BackboneCase",
    "HeadCase",
    "ignored_warnings",
    "image_features",
]

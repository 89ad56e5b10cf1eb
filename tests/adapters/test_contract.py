"""Adapter contract: adapters on one backbone and every backbone with one adapter. The full product is slow."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from adapter_cases import ADAPTER_CASES, REFUSED
from tiny_backbones import TINY_BACKBONES

from dmgal.testing import ADAPTER_CHECKS, AdapterCase

ON, WITH = "open_clip visual", "DMGAL"
VARIANTS = {"DMGAL multi-scale", "DMGAL no switches", "Smga before", "Cmga two before the end", "two Cmga"}
QUICK = [(ON, adapter) for adapter in ADAPTER_CASES if adapter not in VARIANTS]
QUICK += [(backbone, WITH) for backbone in TINY_BACKBONES]
FULL = [pair for pair in itertools.product(TINY_BACKBONES, ADAPTER_CASES) if pair not in {*QUICK, *REFUSED}]


def case_of(backbone: str, adapter: str) -> AdapterCase:
    tiny = TINY_BACKBONES[backbone]
    return AdapterCase(tiny.make, ADAPTER_CASES[adapter], tiny.videos(), features=tiny.features)


every_check = pytest.mark.parametrize("check", ADAPTER_CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))


@every_check
@pytest.mark.parametrize("pair", dict.fromkeys(QUICK), ids=" + ".join)
def test_contract(pair: tuple[str, str], check: Callable[[AdapterCase], None]) -> None:
    check(case_of(*pair))


@pytest.mark.slow
@every_check
@pytest.mark.parametrize("pair", FULL, ids=" + ".join)
def test_contract_of_the_full_product(pair: tuple[str, str], check: Callable[[AdapterCase], None]) -> None:
    check(case_of(*pair))

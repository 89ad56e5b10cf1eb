"""A gallery's fingerprint changes with settings that no weight shows."""

from __future__ import annotations

from dmgal.recipes.run.build import build_recognizer
from dmgal.recipes.run.config import BackboneConfig, Recipe
from dmgal.recipes.run.gallery import made_with


def test_fingerprint_depends_on_normalization() -> None:
    recipe = Recipe(backbone=BackboneConfig(name="tiny-clip"))
    recognizer = build_recognizer(recipe)
    before = made_with(recipe, recognizer)
    assert made_with(recipe, recognizer) == before and all(isinstance(text, str) for text in before.values())
    for name in ("mean", "std"):
        getattr(recognizer.encoder, name).add_(0.1)
        now = made_with(recipe, recognizer)
        assert [key for key in before if now[key] != before[key]] == ["normalization"]
        before = now

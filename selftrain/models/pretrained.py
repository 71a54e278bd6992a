"""Pretrained backbones, as a recipe names them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from selftrain.config import Recipe

if TYPE_CHECKING:
    from backbones.base import Backbone


def finetuning_backbone(recipe: Recipe) -> Backbone:
    """A new pretrained backbone in float32, as fine-tuning wants it."""
    from backbones import load_backbone

    return load_backbone(recipe.backbone.name, dtype="fp32", **backbone_options(recipe))


def backbone_options(recipe: Recipe) -> dict[str, Any]:
    """Keyword arguments of `load_backbone` for a recipe."""
    options: dict[str, Any] = {"device": recipe.backbone.device}
    if recipe.backbone.name == "clip":
        options |= {"model": recipe.backbone.model, "weights": recipe.backbone.weights}
    return options

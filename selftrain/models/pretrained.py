"""Pretrained backbones, as a recipe names them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from selftrain.config import BackboneSection, Recipe

if TYPE_CHECKING:
    from backbones.base import Backbone


def finetuning_backbone(recipe: Recipe) -> Backbone:
    """A new pretrained backbone in float32, as fine-tuning wants it."""
    from backbones import load_backbone

    return load_backbone(recipe.backbone.name, dtype="fp32", **backbone_options(recipe.backbone))


def backbone_options(section: BackboneSection) -> dict[str, Any]:
    """Keyword arguments of `load_backbone` for a recipe's section."""
    options: dict[str, Any] = {"device": section.device}
    if section.name == "clip":
        options |= {"model": section.model, "weights": section.weights}
    return options

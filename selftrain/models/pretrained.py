"""Pretrained backbones, as a recipe names them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backbones import load_backbone
from selftrain._util.plugins import build_part
from selftrain.config import BackboneSection, Recipe

if TYPE_CHECKING:
    from backbones.base import Backbone


def finetuning_backbone(recipe: Recipe) -> Backbone:
    """Build a new pretrained backbone in float32, as fine-tuning wants it."""
    return build_backbone(recipe, dtype="fp32")


def build_backbone(recipe: Recipe, **more: Any) -> Backbone:  # noqa: ANN401 -- each backbone types its own
    """Build the backbone of a recipe; one of the user's own is made of its options alone.

    RecipeError: a class that cannot be imported, or made of these; WeightsError: as `load_backbone`.
    """
    section = recipe.backbone
    if not section.built_in:
        backbone: Backbone = build_part(section.kind, section.options, "backbone.kind")
        return backbone
    return load_backbone(section.kind, **{**backbone_options(section), **more})


def worker_backbone(recipe: Recipe, threads: int) -> Backbone:
    """Build the backbone of a recipe in a process of its own, which computes in so many threads."""
    import torch

    torch.set_num_threads(threads)
    return build_backbone(recipe)


def backbone_options(section: BackboneSection) -> dict[str, Any]:
    """Return the keyword arguments of `load_backbone` for a recipe's section."""
    options: dict[str, Any] = {"device": section.device}
    if section.kind == "clip":
        options |= {"model": section.model, "weights": section.weights}
    return options | section.options

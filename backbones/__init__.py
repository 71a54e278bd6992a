"""Backbones: posts in, feature rows out. Part of the selftrain distribution."""

from __future__ import annotations

from typing import Any

from backbones.base import Backbone
from backbones.errors import UnknownBackboneError

NAMES = ("embedded", "clip")


def load_backbone(name: str, **options: Any) -> Backbone:  # noqa: ANN401 -- each backbone types its own
    """Build a backbone; torch and the model libraries are imported only here.

    Args:
        name: "embedded" (no download) or "clip" (any open_clip model).
        options: Keyword arguments of `EmbeddedBackbone` or `ClipBackbone`: device, dtype, and for clip
            model, weights, like.

    Raises:
        UnknownBackboneError: another name.
        WeightsError: the weights are missing, damaged, or of another architecture.
    """
    if name == "embedded":
        from backbones.minilm_efficientnet import EmbeddedBackbone

        return EmbeddedBackbone(**options)
    if name == "clip":
        from backbones.clip import ClipBackbone

        return ClipBackbone(**options)
    raise UnknownBackboneError(f"no backbone is called {name!r}; expected one of {', '.join(NAMES)}")

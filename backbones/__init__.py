"""Backbones: posts in, feature rows out. Part of the selftrain distribution.

Each name is loaded when it is first used: torch and the model libraries come with `CLIP` and
`MiniLMEfficientNet`, not with this package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from backbones.errors import UnknownBackboneError

if TYPE_CHECKING:
    from backbones.base import Backbone, Encoded, EncodeFailure, FeatureLayout
    from backbones.clip import CLIP
    from backbones.minilm_efficientnet import MiniLMEfficientNet

__all__ = [  # noqa: RUF022 -- in the order of `sorted`
    "Backbone",
    "CLIP",
    "EncodeFailure",
    "Encoded",
    "FeatureLayout",
    "MiniLMEfficientNet",
    "UnknownBackboneError",
    "load_backbone",
]

BACKBONES = {"minilm_efficientnet": "MiniLMEfficientNet", "clip": "CLIP"}
"""Name in a recipe -> class."""

_MODULES = {
    "CLIP": "backbones.clip",
    "MiniLMEfficientNet": "backbones.minilm_efficientnet",
    **dict.fromkeys(("Backbone", "EncodeFailure", "Encoded", "FeatureLayout"), "backbones.base"),
}


def load_backbone(name: str, **options: Any) -> Backbone:  # noqa: ANN401 -- each backbone types its own
    """Build a backbone by the name that recipes use, "minilm_efficientnet" or "clip", and load its weights.

    The options are the keyword arguments of `MiniLMEfficientNet` or `CLIP`. UnknownBackboneError: another
    name; WeightsError: weights that are missing, damaged, or of another architecture.
    """
    if name not in BACKBONES:
        raise UnknownBackboneError(f"no backbone is called {name!r}; expected one of {', '.join(BACKBONES)}")
    backbone: Backbone = __getattr__(BACKBONES[name])(**options)
    _ = backbone.layout  # the look loads the weights: what is missing is said here
    return backbone


def __getattr__(name: str) -> Any:  # noqa: ANN401 -- a class of the table
    if name not in _MODULES:
        raise AttributeError(f"module 'backbones' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)

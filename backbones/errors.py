"""Every error that the backbones raise: a `BackboneError` each."""

from __future__ import annotations


class BackboneError(Exception):
    """Base of the tree. Messages say what was found, what was expected, and what to do."""


class UnknownBackboneError(BackboneError, ValueError):
    """A name that no backbone has."""


class WeightsError(BackboneError, RuntimeError):
    """Weights that are missing, damaged, unsafe to load, or of another architecture."""


class ImageError(BackboneError, ValueError):
    """An image that may not be opened (too large, another format) or cannot be (damaged, absent)."""


class PromptFitError(BackboneError, ValueError):
    """A prompt whose words leave no room for a post, or that lost an answer token or a picture."""


class TorchvisionError(BackboneError, ImportError):
    """A torchvision that does not load beside the installed torch."""

"""Every error that the losses themselves raise.

LossError
├── SettingError         a setting outside its range, or a form that does not exist
├── BatchError           tensors that do not fit together, or hold what a loss cannot use
└── PriorEstimateError   a quantity that cannot be estimated from what was given
"""

from __future__ import annotations


class LossError(Exception):
    """Base of the tree."""


class SettingError(LossError, ValueError):
    """A setting outside its range, or a form that does not exist."""


class BatchError(LossError, ValueError):
    """Tensors that do not fit together, or hold what a loss cannot use."""


class PriorEstimateError(LossError, ValueError):
    """A quantity that cannot be estimated from what was given."""

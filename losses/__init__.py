"""Losses of self-training: tensors in, tensors out. Part of the selftrain distribution."""

from losses.errors import BatchError, EstimateError, LossError, SettingError
from losses.groups import Group
from losses.pnu import Form, PNULoss, PNUOutput, PNUWeights
from losses.prior import estimate_prior

__all__ = [
    "BatchError",
    "EstimateError",
    "Form",
    "Group",
    "LossError",
    "PNULoss",
    "PNUOutput",
    "PNUWeights",
    "SettingError",
    "estimate_prior",
]

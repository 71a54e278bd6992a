"""Losses of self-training: tensors in, tensors out. Part of the selftrain distribution."""

from losses.act import (
    ACTOutput,
    ACTWeights,
    act_cross_entropy,
    act_loss,
    act_variance,
    act_weights,
    equals_mixed_labels,
)
from losses.errors import BatchError, LossError, PriorEstimateError, SettingError
from losses.groups import Group
from losses.pnu import Form, PNULoss, PNUOutput, PNUWeights
from losses.prior import estimate_prior

__all__ = [
    "ACTOutput",
    "ACTWeights",
    "BatchError",
    "Form",
    "Group",
    "LossError",
    "PNULoss",
    "PNUOutput",
    "PNUWeights",
    "PriorEstimateError",
    "SettingError",
    "act_cross_entropy",
    "act_loss",
    "act_variance",
    "act_weights",
    "equals_mixed_labels",
    "estimate_prior",
]

"""Losses of self-training: tensors in, tensors out. Part of the selftrain distribution."""

from losses.act import (
    ACTWeights,
    act_cross_entropy,
    act_loss,
    act_variance,
    act_weights,
    equals_mixed_labels,
)
from losses.base import LossOutput, RoundLoss
from losses.errors import BatchError, LossError, PriorEstimateError, SettingError
from losses.groups import Group
from losses.pnu import Form, PNULoss, PNUWeights
from losses.prior import estimate_prior
from losses.process import ProcessOutput, process_loss

__all__ = [
    "ACTWeights",
    "BatchError",
    "Form",
    "Group",
    "LossError",
    "LossOutput",
    "PNULoss",
    "PNUWeights",
    "PriorEstimateError",
    "ProcessOutput",
    "RoundLoss",
    "SettingError",
    "act_cross_entropy",
    "act_loss",
    "act_variance",
    "act_weights",
    "equals_mixed_labels",
    "estimate_prior",
    "process_loss",
]

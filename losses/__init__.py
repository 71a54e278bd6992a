"""Losses of self-training: tensors in, tensors out. Part of the selftrain distribution.

The names below are imported when they are first asked for: ``import losses`` loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from losses.act import ACTWeights as ACTWeights
    from losses.act import act_cross_entropy as act_cross_entropy
    from losses.act import act_loss as act_loss
    from losses.act import act_variance as act_variance
    from losses.act import act_weights as act_weights
    from losses.act import non_negative as non_negative
    from losses.against_rest import AgainstRest as AgainstRest
    from losses.base import BatchError as BatchError
    from losses.base import ClassLoss as ClassLoss
    from losses.base import Group as Group
    from losses.base import LossError as LossError
    from losses.base import LossOutput as LossOutput
    from losses.base import PriorEstimateError as PriorEstimateError
    from losses.base import RoundLoss as RoundLoss
    from losses.base import SettingError as SettingError
    from losses.pnu import Form as Form
    from losses.pnu import PNULoss as PNULoss
    from losses.pnu import PNUWeights as PNUWeights
    from losses.prior import estimate_prior as estimate_prior
    from losses.process import ProcessOutput as ProcessOutput
    from losses.process import answer_sums as answer_sums
    from losses.process import process_loss as process_loss

_NAMES = {
    "act": (
        "ACTWeights", "act_cross_entropy", "act_loss", "act_variance", "act_weights", "non_negative",
    ),
    "against_rest": ("AgainstRest",),
    "base": (
        "BatchError", "ClassLoss", "Group", "LossError", "LossOutput", "PriorEstimateError", "RoundLoss",
        "SettingError",
    ),
    "pnu": ("Form", "PNULoss", "PNUWeights"),
    "prior": ("estimate_prior",),
    "process": ("ProcessOutput", "answer_sums", "process_loss"),
}  # fmt: skip
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_HOME)  # noqa: PLE0605 -- a list of texts all the same


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value

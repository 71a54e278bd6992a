"""Making an agent's label probabilities mean what they say, with posts of known label.

A model that has just written its reasons is nearly always sure. Its class probabilities q are corrected to
p_k proportional to q_k^a exp(b_k): a < 1 takes sureness away, b_k mends a leaning to a class. Both are fitted
by likelihood with a Gaussian prior around a = 1, b = 0, so that five posts change little and a hundred much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# a probability below this says no more than this: what is not among the likeliest tokens is not impossible
_LEAST = 1e-4
_PRIOR_SD = 1.0


class LabelCalibration(NamedTuple):
    """A fitted correction; `identity` leaves everything as it is."""

    classes: tuple[str, ...]  # class names, K
    slope: float  # a, above 0
    offsets: tuple[float, ...]  # b, K numbers

    def apply(self, probs: Mapping[str, float]) -> dict[str, float]:
        """Return corrected probabilities of the classes, adding up to 1."""
        scores = self.slope * _logs([probs], self.classes) + np.array(self.offsets)
        mass = np.exp(scores - scores.max())[0]
        return dict(zip(self.classes, (mass / mass.sum()).tolist(), strict=True))


def identity(classes: Sequence[str]) -> LabelCalibration:
    """Return the correction that corrects nothing."""
    return LabelCalibration(tuple(classes), 1.0, (0.0,) * len(classes))


def fit_calibration(
    probs: Sequence[Mapping[str, float]], truth: Sequence[str], classes: Sequence[str]
) -> LabelCalibration:
    """Fit the correction for answers on posts of known label.

    Args:
        probs: Class probabilities of each answer, n of them; none: `identity`.
        truth: The posts' labels.
        classes: Class names, K.
    """
    if not probs:
        return identity(classes)
    from scipy.optimize import minimize

    logs = _logs(probs, classes)
    targets = np.array([list(classes).index(label) for label in truth])

    def loss(parameters: npt.NDArray[np.float64]) -> float:
        scores = math.exp(parameters[0]) * logs + parameters[1:]
        scores = scores - scores.max(axis=1, keepdims=True)
        chosen = scores[np.arange(len(targets)), targets]
        likelihood = float((np.log(np.exp(scores).sum(axis=1)) - chosen).sum())
        return likelihood + float((parameters**2).sum()) / (2 * _PRIOR_SD**2)

    # log a instead of a: the slope stays above 0, so calibration never turns an answer round by itself
    found = minimize(loss, np.zeros(len(classes) + 1), method="L-BFGS-B").x
    return LabelCalibration(tuple(classes), math.exp(found[0]), tuple(found[1:].tolist()))


def held_out(
    probs: Sequence[Mapping[str, float] | None], truth: Sequence[str], classes: Sequence[str], folds: int = 5
) -> list[dict[str, float] | None]:
    """Return each answer's probabilities, corrected by a fit on the other folds; None where it has none."""
    known = [i for i, one in enumerate(probs) if one is not None]
    fold_of = {i: place % folds for place, i in enumerate(known)}
    fits = [
        fit_calibration(
            [probs[i] or {} for i in known if fold_of[i] != f],
            [truth[i] for i in known if fold_of[i] != f],
            classes,
        )
        for f in range(folds)
    ]
    return [None if one is None else fits[fold_of[i]].apply(one) for i, one in enumerate(probs)]


def _logs(probs: Sequence[Mapping[str, float]], classes: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return log-probabilities [n, K]."""
    values = np.array([[one[name] for name in classes] for one in probs], dtype=np.float64)
    return np.log(np.maximum(values, _LEAST))

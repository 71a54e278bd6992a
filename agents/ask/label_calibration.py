"""Making an agent's label probabilities mean what they say, with posts of known label.

A model that has just written its reasons is nearly always sure. Its class shares q are corrected to
p_k proportional to q_k^a exp(b_k): a < 1 takes sureness away, b_k mends a leaning to a class. Both are fitted
by likelihood with a Gaussian prior around a = 1, b = 0, so that five posts change little and a hundred much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# a share below this says no more than this one: what is not among the likeliest tokens is not impossible
_LEAST = 1e-4
_PRIOR_SD = 1.0


class Calibration(NamedTuple):
    """A fitted correction; `identity` leaves everything as it is.

    Attributes:
        classes: Class names, K.
        slope: a, above 0.
        offsets: b, K numbers.
    """

    classes: tuple[str, ...]
    slope: float
    offsets: tuple[float, ...]

    def apply(self, shares: Mapping[str, float]) -> dict[str, float]:
        """Corrected probabilities of the classes, adding up to 1."""
        scores = self.slope * _logs([shares], self.classes) + np.array(self.offsets)
        odds = np.exp(scores - scores.max())[0]
        return dict(zip(self.classes, (odds / odds.sum()).tolist(), strict=True))


def identity(classes: Sequence[str]) -> Calibration:
    """The correction that corrects nothing."""
    return Calibration(tuple(classes), 1.0, (0.0,) * len(classes))


def fit(shares: Sequence[Mapping[str, float]], truth: Sequence[str], classes: Sequence[str]) -> Calibration:
    """The correction for answers on posts of known label.

    Args:
        shares: Class shares of each answer, n of them; none: `identity`.
        truth: The posts' labels.
        classes: Class names, K.
    """
    if not shares:
        return identity(classes)
    from scipy.optimize import minimize

    logs = _logs(shares, classes)
    targets = np.array([list(classes).index(label) for label in truth])

    def loss(parameters: Floats) -> float:
        scores = math.exp(parameters[0]) * logs + parameters[1:]
        scores = scores - scores.max(axis=1, keepdims=True)
        chosen = scores[np.arange(len(targets)), targets]
        likelihood = float((np.log(np.exp(scores).sum(axis=1)) - chosen).sum())
        return likelihood + float((parameters**2).sum()) / (2 * _PRIOR_SD**2)

    # log a instead of a: the slope stays above 0, so calibration never turns an answer round by itself
    found = minimize(loss, np.zeros(len(classes) + 1), method="L-BFGS-B").x
    return Calibration(tuple(classes), math.exp(found[0]), tuple(found[1:].tolist()))


def held_out(
    shares: Sequence[Mapping[str, float] | None], truth: Sequence[str], classes: Sequence[str], folds: int = 5
) -> list[dict[str, float] | None]:
    """Each answer's probabilities, corrected by a fit on the other folds; None where it has no shares."""
    known = [i for i, one in enumerate(shares) if one is not None]
    fold_of = {i: place % folds for place, i in enumerate(known)}
    fits = [
        fit(
            [shares[i] or {} for i in known if fold_of[i] != f],
            [truth[i] for i in known if fold_of[i] != f],
            classes,
        )
        for f in range(folds)
    ]
    return [None if one is None else fits[fold_of[i]].apply(one) for i, one in enumerate(shares)]


def _logs(shares: Sequence[Mapping[str, float]], classes: Sequence[str]) -> Floats:
    """Log shares [n, K]."""
    values = np.array([[one[name] for name in classes] for one in shares], dtype=np.float64)
    return np.log(np.maximum(values, _LEAST))

"""Logits to probabilities: a slope and an offset fitted on the validation posts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from selftrain._util.types import Float32Array, FloatArray, LabelArray

# Strength of the pull towards (slope 1, offset 0), in posts: with a handful of validation posts the
# calibration stays near the raw logits, with hundreds the data decide.
PRIOR_POSTS = 20.0


class Calibration(NamedTuple):
    """Calibrated logit = slope * logit + offset (Platt 1999)."""

    slope: float = 1.0
    offset: float = 0.0

    def __call__(self, logits: Float32Array) -> Float32Array:
        return np.asarray(self.slope * logits + self.offset, dtype=np.float32)


def fit_calibration(logits: Float32Array, labels: LabelArray) -> Calibration:
    """Slope and offset that minimise the cross-entropy of the labels, pulled towards (1, 0).

    The slope stays positive (its logarithm is what is fitted), so that the order of posts never changes.

    Args:
        logits: [V] raw logits of the validation posts.
        labels: [V] 1 for the positive class, 0 for the negative; both must occur.

    Raises:
        ValueError: One class only, or no posts.
    """
    from scipy.optimize import minimize

    if len(np.unique(labels)) < 2:
        raise ValueError(f"{len(labels)} validation posts of one class: calibration needs both")
    z = logits.astype(np.float64)
    # a scale of its own keeps the optimiser well conditioned whatever the size of the logits
    unit = max(float(np.abs(z).mean()), 1e-6)
    sign = np.where(labels == 1, 1.0, -1.0)

    def objective(theta: FloatArray) -> tuple[float, FloatArray]:
        slope = np.exp(theta[0])
        margin = sign * (slope * z + theta[1] * unit)
        value = np.logaddexp(0, -margin).sum()
        slack = -sign / (1 + np.exp(np.clip(margin, -50, 50)))
        gradient = np.array([(slack * z).sum() * slope, slack.sum() * unit])
        value += PRIOR_POSTS / 8 * (theta[0] ** 2 + (theta[1] * unit) ** 2)
        gradient += PRIOR_POSTS / 4 * np.array([theta[0], theta[1] * unit**2])
        return float(value), gradient

    found = minimize(objective, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[(-6, 6), (None, None)])
    return Calibration(float(np.exp(found.x[0])), float(found.x[1] * unit))

"""Logits to probabilities: a slope and an offset fitted on the validation posts, for two classes or more.

Shape legend: ``B`` posts, ``V`` validation posts, ``K`` classes, ``C`` columns that a head computes: one of
two classes, or all K.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from selftrain._util.types import Float32Array, FloatArray

# Strength of the pull towards (slope 1, offset 0), in posts: with a handful of validation posts the
# calibration stays near the raw logits, with hundreds the data decide.
PRIOR_POSTS = 20.0


class Calibration(NamedTuple):
    """Calibrated logits = slope * logits, and the offset beside the last (Platt 1999, for two classes).

    Of K computed logits a post, slope is 1 / temperature (Guo et al. 2017), and the offset is 0.
    """

    slope: float = 1.0
    offset: float = 0.0

    def __call__(self, logits: Float32Array) -> Float32Array:
        """Return calibrated logits [B, K] of raw ones [B, K]."""
        calibrated = np.asarray(self.slope * logits, dtype=np.float32)
        calibrated[:, -1] += self.offset
        return calibrated


def fit_calibration(logits: Float32Array, labels: npt.NDArray[np.integer[Any]]) -> Calibration:
    """Return the calibration that minimises the cross-entropy of the labels, pulled towards (1, 0).

    The slope stays positive (its logarithm is what is fitted), so that the order of posts never changes.

    Args:
        logits: [V, C] raw logits that a head computes.
        labels: [V] classes; of two both must occur where one logit tells them apart.

    Raises:
        ValueError: One class only, or no posts.
    """
    if logits.shape[1] > 1:
        return Calibration(_fit_slope(logits.astype(np.float64), labels))
    if len(np.unique(labels)) < 2:
        raise ValueError(f"{len(labels)} validation posts of one class: calibration needs both")
    return _fit_both(logits[:, 0].astype(np.float64), np.where(labels == 1, 1.0, -1.0))


def _fit_both(z: FloatArray, sign: FloatArray) -> Calibration:
    from scipy.optimize import minimize

    # a scale of its own keeps the optimiser well conditioned whatever the size of the logits
    unit = max(float(np.abs(z).mean()), 1e-6)

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


_LOG_SLOPES = (-3.0, 3.0)  # between a twentieth and twenty times the raw logits


def _fit_slope(z: FloatArray, labels: npt.NDArray[np.integer[Any]]) -> float:
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    places = np.arange(len(z)), labels

    def objective(log_slope: float) -> float:
        loss = -float(log_softmax(np.exp(log_slope) * z, axis=1)[places].sum())
        return loss + PRIOR_POSTS / 8 * log_slope**2

    return float(np.exp(minimize_scalar(objective, bounds=_LOG_SLOPES, method="bounded").x))


def probabilities(logits: npt.NDArray[np.floating[Any]]) -> FloatArray:
    """Return the probabilities [B, K] of logits [B, K]."""
    from scipy.special import softmax

    return np.asarray(softmax(logits.astype(np.float64), axis=1))

"""Logits to probabilities: a slope and offsets fitted on the validation posts, for two classes or more.

Shape legend: ``B`` posts, ``V`` validation posts, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from selftrain._util.types import Float32Array, FloatArray

# Strength of the pull towards (slope 1, offsets 0), in posts: with a handful of validation posts the
# calibration stays near the raw logits, with hundreds the data decide.
PRIOR_POSTS = 20.0


class Calibration(NamedTuple):
    """Calibrated logits = slope * logits + offsets (Platt 1999 for two classes, Guo et al. 2017 for more)."""

    slope: float = 1.0
    offsets: tuple[float, ...] = ()  # [K], of two classes beside the last alone; none: 0

    def __call__(self, logits: Float32Array) -> Float32Array:
        """Return calibrated logits [B, K] of raw ones [B, K]."""
        calibrated = np.asarray(self.slope * logits, dtype=np.float32)
        return calibrated + np.asarray(self.offsets, dtype=np.float32) if self.offsets else calibrated


def read_calibration(header: MutableMapping[str, Any], columns: int) -> Calibration:
    """Take it out of the header of a model of so many columns; KeyError, TypeError, ValueError: none."""
    found = dict(header.pop("calibration"))
    made = msgspec.convert([found[name] for name in Calibration._fields], Calibration)
    if len(made.offsets) not in {0, max(columns, 2)}:
        raise ValueError(f"its calibration has {len(made.offsets)} offsets for {max(columns, 2)} classes")
    return made


def fit_calibration(logits: Float32Array, labels: npt.NDArray[np.integer[Any]]) -> Calibration:
    """Return the calibration that minimises the cross-entropy of the labels [V], pulled towards (1, 0).

    The slope stays positive (its logarithm is what is fitted), so that between two classes the order of posts
    never changes. `logits` [V, K] are raw. ValueError: only one class of two.
    """
    wide = logits.astype(np.float64)
    if wide.shape[1] > 2:
        return _fit_classes(wide, labels)
    if len(np.unique(labels)) < 2:
        raise ValueError(f"{len(labels)} validation posts of one class: calibration needs both")
    return _fit_both(wide[:, 1] - wide[:, 0], np.where(labels == 1, 1.0, -1.0))


def _fit_both(z: FloatArray, sign: FloatArray) -> Calibration:
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

    found = _lowest(objective, [(-6.0, 6.0), (None, None)])
    return Calibration(float(np.exp(found[0])), (0.0, float(found[1] * unit)))


_LOG_SLOPES = (-3.0, 3.0)  # between a twentieth and twenty times the raw logits


def _fit_classes(z: FloatArray, labels: npt.NDArray[np.integer[Any]], *, offsets: bool = True) -> Calibration:
    """Fit a slope, and an offset for each class: losses of a class against the rest favour the rare ones."""
    from scipy.special import log_softmax

    places, known = (np.arange(len(z)), labels), np.eye(z.shape[1])[labels]

    def objective(theta: FloatArray) -> tuple[float, FloatArray]:
        slope, moved = np.exp(theta[0]), theta[1:]
        log_q = log_softmax(slope * z + moved, axis=1)
        wrong = np.exp(log_q) - known
        value = PRIOR_POSTS / 8 * (theta**2).sum() - log_q[places].sum()
        gradient = np.array([slope * (wrong * z).sum(), *wrong.sum(0)]) + PRIOR_POSTS / 4 * theta
        return float(value), gradient

    end = None if offsets else 0.0
    found = _lowest(objective, [_LOG_SLOPES, *[(end, end)] * z.shape[1]])
    return Calibration(float(np.exp(found[0])), tuple(map(float, found[1:])) if offsets else ())


def _lowest(
    objective: Callable[[FloatArray], tuple[float, FloatArray]], bounds: Sequence[tuple[Any, Any]]
) -> FloatArray:
    """Return where an objective, which gives its gradient too, is lowest: a slope's logarithm, and offsets.

    The descent begins at the raw logits. Where those are tiny, the pull towards them makes a valley of its
    own: the descent begins anew where another slope does better than what it found.
    """
    from scipy.optimize import minimize

    descend = partial(minimize, objective, jac=True, method="L-BFGS-B", bounds=bounds)
    found = descend(np.zeros(len(bounds)))
    others = [np.array([one, *found.x[1:]]) for one in np.linspace(*bounds[0], 25)]
    best = min(others, key=lambda one: objective(one)[0])
    return np.asarray(descend(best).x if objective(best)[0] < found.fun else found.x)


def fit_temperature(logits: Float32Array, labels: npt.NDArray[np.integer[Any]]) -> Calibration:
    """Return the slope alone that minimises the cross-entropy of labels [V], pulled towards 1.

    It is enough for `logits` [V, K] of a softmax, which was trained for the shares of its classes.
    """
    return _fit_classes(logits.astype(np.float64), labels, offsets=False)


# ---- which class is predicted ------------------------------------------------------------------------

_STEPS = np.linspace(-4.0, 4.0, 81)  # log-odds by which a class may be favoured
_SWEEPS = 5


def fit_cut(logits: Float32Array) -> tuple[float, ...]:
    """Return [K] what to add to each class's log-probability so that macro-F1 may be expected to be highest.

    The likeliest class is what accuracy asks for; where classes are uneven, macro-F1 asks for the rare ones
    sooner. Nobody's label is needed: with probabilities that are calibrated, the expected counts of every
    choice are known (plug-in rule; Narasimhan, Vaish, Agarwal, NeurIPS 2014). The `logits` [B, K] are
    calibrated, of posts as the model will meet them; the first class gets 0.
    """
    probs = probabilities(logits[np.isfinite(logits).all(1)])  # posts that cannot be read have none
    scores, cut = np.log(probs.clip(1e-12)), np.zeros(probs.shape[1])
    for _ in range(_SWEEPS):
        before = cut.copy()
        for k in range(1, len(cut)):
            tried = [np.where(np.arange(len(cut)) == k, step, cut) for step in _STEPS]
            expected = [_expected_macro_f1(probs, (scores + one).argmax(1)) for one in tried]
            # of equals the one nearest to none
            best = max(range(len(_STEPS)), key=lambda i: (round(expected[i], 9), -abs(_STEPS[i])))
            cut = tried[best]
        if np.array_equal(cut, before):
            break
    return tuple(float(round(one, 6)) for one in cut)


def _expected_macro_f1(probs: FloatArray, chosen: npt.NDArray[np.integer[Any]]) -> float:
    said = np.eye(probs.shape[1])[chosen]
    right, both = (said * probs).sum(0), said.sum(0) + probs.sum(0)
    return float(np.mean(2 * right / both.clip(1e-12)))


def probabilities(logits: npt.NDArray[np.floating[Any]]) -> FloatArray:
    """Return the probabilities [B, K] of logits [B, K]."""
    from scipy.special import softmax

    return np.asarray(softmax(logits.astype(np.float64), axis=1))

"""The share of positives in a selected set, from what a calibrated classifier says of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from losses.base import PriorEstimateError, SettingError, SupportsArray, is_number

BOUNDS = (0.05, 0.95)
"""Where an estimate is cut: PU and NU risks with a prior near 0 or 1 stop using one of their sides."""


def estimate_prior(
    probabilities: Tensor | SupportsArray | Sequence[float],
    training_prior: float,
    *,
    tolerance: float = 1e-7,
    max_iterations: int = 10_000,
) -> float:
    """The class prior of a set whose posts a classifier, trained under another prior, gave probabilities.

    Expectation maximisation of Saerens, Latinne and Decaestecker (Neural Computation 2002, section 2.3),
    from the training prior pi, for p_i the calibrated probability that post i is positive::

        r_i   = (theta/pi) p_i / [(theta/pi) p_i + ((1-theta)/(1-pi)) (1 - p_i)]
        theta = mean r_i

    until theta moves less than `tolerance`. The likelihood is concave, so there is one maximum; where the
    probabilities say nothing (all equal pi) the estimate stays at pi. It holds as far as the posts of each
    class look alike in both sets; the divergent set is chosen for its hardness, so take the estimate as
    better than the population's prior, not as exact.

    Args:
        probabilities: Calibrated P(positive) of the set's posts [M], M >= 1, each in [0, 1].
        training_prior: Share of positives, in (0, 1), under which `probabilities` are calibrated: that of
            the posts the classifier was calibrated on, weights included.
        tolerance: Largest change at which the iteration stops, > 0; the default lies above the rounding of
            float32, along which uninformative probabilities would drift.
        max_iterations: Where it stops anyway; the likelihood is then nearly flat.

    Returns:
        The estimate, cut to [.05, .95].

    Raises:
        SettingError: A training prior outside (0, 1).
        PriorEstimateError: No probabilities, one outside [0, 1], or several of each post.
    """
    if not (is_number(training_prior) and 0.0 < training_prior < 1.0):
        raise SettingError(f"training_prior is {training_prior}: expected a number strictly between 0 and 1")
    if not isinstance(probabilities, Tensor):
        probabilities = np.array(probabilities, np.float64)  # a copy: torch reads not every array in place
    positive = torch.as_tensor(probabilities, dtype=torch.float64).detach().cpu()
    _check(positive)
    # likelihood ratios up to a common factor: p(x|positive) and p(x|negative) by Bayes' rule
    positive, negative = positive / training_prior, (1.0 - positive) / (1.0 - training_prior)
    theta = training_prior
    for _ in range(max_iterations):
        share = theta * positive
        updated = float((share / (share + (1.0 - theta) * negative)).mean())
        moved, theta = abs(updated - theta), updated
        if moved < tolerance:
            break
    low, high = BOUNDS
    return min(max(theta, low), high)


def _check(probabilities: Tensor) -> None:
    if probabilities.ndim != 1:
        raise PriorEstimateError(
            f"probabilities have shape {tuple(probabilities.shape)}: expected [M], P(positive) of each post"
        )
    if probabilities.numel() == 0:
        raise PriorEstimateError(
            "0 probabilities: expected at least one; without divergent posts use balance 0"
        )
    fits = (probabilities >= 0) & (probabilities <= 1)
    if not bool(fits.all()):
        found = float(probabilities[~fits][0])
        raise PriorEstimateError(
            f"{int((~fits).sum())} of {probabilities.numel()} probabilities lie outside [0, 1], the first is "
            f"{found}: expected calibrated probabilities, not logits"
        )

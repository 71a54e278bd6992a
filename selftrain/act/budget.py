"""From error estimates to who is reviewed: inclusion probabilities that sum to the budget, and a sample.

Three rules turn an estimate e_i in [0, 1] of how likely the machine's label is wrong into the probability
pi_i of being sent to a person. All sum to the budget B exactly::

    normalised    pi proportional to e, capped at 1, the excess shared out among the others
    exponential   pi = sigmoid(k (e - a)), a solved so that the sum is B
    threshold     the B largest e have pi = 1, all others 0: no estimate from such a sample is unbiased

What lies outside its range is a `BudgetError` everywhere: budgets and estimates, probabilities and shares.

Sources: "ACT as Human" (arXiv 2511.09833); the floor: Zrnic and Candès, "Active statistical inference" (ICML
2024); systematic sampling: Madow (1949).

Shape legend: ``N`` posts, ``B`` of them reviewed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import numpy as np
import numpy.typing as npt

from selftrain._util.choices import Rule
from selftrain._util.types import FloatArray, IntArray
from selftrain.errors import BudgetError

STEEPNESS = 10.0
"""k of the exponential rule: e^10 between the odds of a post that is surely wrong and one surely right."""

_SURE = 1.0 - 1e-9  # from here on a post is taken, not drawn: rounding could draw it twice or not at all


def inclusion(
    errors: npt.ArrayLike,
    budget: int,
    *,
    rule: Rule = "exponential",
    steepness: float = STEEPNESS,
    floor: float = 0.0,
    seed: int = 0,
) -> FloatArray:
    """Return the probability [N] with which each post is reviewed.

    Args:
        errors: e [N], each in [0, 1]; see `filled` for posts without an estimate.
        budget: B, 0 <= B <= N.
        rule: See the module.
        steepness: k of the exponential rule, > 0.
        floor: t in [0, 1]: pi <- (1-t) pi + t B/N. Above 0, every post may be drawn, which the ACT loss and
            the error estimate need to be unbiased; the threshold rule becomes a mixture with a plain sample.
        seed: Orders equal estimates under the threshold rule.

    Raises:
        BudgetError: An unknown rule, a setting outside its range, an estimate that is none.
    """
    if rule == "normalised":
        pi = normalised(errors, budget)
    elif rule == "exponential":
        pi = exponential(errors, budget, steepness)
    elif rule == "threshold":
        pi = threshold(errors, budget, seed)
    else:
        raise BudgetError(f"rule {rule!r}: expected one of {', '.join(get_args(Rule))}")
    return with_floor(pi, budget, floor)


def normalised(errors: npt.ArrayLike, budget: int) -> FloatArray:
    """Return pi proportional to e, capped at 1; what is cut off is shared out among the others, again by e.

    Where all posts with e > 0 are sure to be reviewed, the rest of the budget goes to the others evenly.
    """
    values = _checked(errors, budget)
    pi = np.zeros(len(values))
    free, left = np.ones(len(values), dtype=bool), float(budget)
    while left > 0:
        # relative to the largest first: a sum of the tiniest numbers would be no number to divide by
        weights = values[free] / max(float(values[free].max()), np.finfo(np.float64).tiny)
        if not weights.any():
            weights = np.ones(int(free.sum()))
        shares = left * weights / weights.sum()
        full = shares >= 1.0
        if not full.any():
            pi[free] = shares
            break
        full_at = np.flatnonzero(free)[full]
        pi[full_at] = 1.0
        free[full_at] = False
        left = float(budget - int((pi == 1.0).sum()))
    return pi


def exponential(errors: npt.ArrayLike, budget: int, steepness: float = STEEPNESS) -> FloatArray:
    """Return pi = sigmoid(k (e - a)) that sum to B; k -> 0 is a plain sample, k -> oo `threshold`."""
    if not (math.isfinite(steepness) and steepness > 0):
        raise BudgetError(f"steepness {steepness}: expected a finite number > 0; {STEEPNESS:g} is usual")
    values = _checked(errors, budget)
    if budget in (0, len(values)):
        return np.full(len(values), float(budget > 0))
    from scipy.optimize import brentq
    from scipy.special import expit

    scores = steepness * values
    # at these ends every pi is below B/N, or above it
    share = math.log(budget / (len(values) - budget))
    low, high = float(scores.min()) - share - 1.0, float(scores.max()) - share + 1.0
    offset = brentq(lambda a: float(expit(scores - a).sum()) - budget, low, high, xtol=1e-13, rtol=1e-14)
    pi = expit(scores - offset)
    # what the solver leaves, some 1e-12, goes where it moves no probability past 0 or 1
    slack = pi * (1.0 - pi)
    return np.asarray(pi + (budget - pi.sum()) * slack / max(float(slack.sum()), 1e-300)).clip(0.0, 1.0)


def threshold(errors: npt.ArrayLike, budget: int, seed: int = 0) -> FloatArray:
    """Return pi = 1 for the B largest e, 0 for the others; equal ones in an order that the seed draws."""
    values = _checked(errors, budget)
    order = np.random.default_rng(seed).permutation(len(values))
    chosen = order[np.argsort(-values[order], kind="stable")[:budget]]
    pi = np.zeros(len(values))
    pi[chosen] = 1.0
    return pi


def with_floor(pi: FloatArray, budget: int, floor: float) -> FloatArray:
    """Return (1-t) pi + t B/N: the same sum, and no post without a chance."""
    if not 0.0 <= floor <= 1.0:
        raise BudgetError(f"floor {floor}: expected a share in [0, 1]; 0 leaves the rule as it is")
    return pi if floor == 0.0 else (1.0 - floor) * pi + floor * budget / max(len(pi), 1)


def systematic_sample(pi: npt.ArrayLike, seed: int) -> IntArray:
    """Draw exactly B positions in random order, position i with probability pi_i, B the sum of all.

    The posts are laid out in random order, each as long as its pi, and taken at u, u + 1, u + 2, ... with one
    uniform u: never more than the budget and never fewer, unlike independent draws. The sample is shuffled,
    so that those who stop before its end have still reviewed a chance part of it.
    """
    chances = _shares(np.asarray(pi, dtype=np.float64).reshape(-1), "inclusion probabilities in [0, 1]")
    total = float(chances.sum())
    if abs(total - round(total)) > 1e-6 * max(total, 1.0):
        raise BudgetError(
            f"the inclusion probabilities sum to {total:.6g}: expected a whole number, the budget; take them "
            "from `inclusion`"
        )
    rng = np.random.default_rng(seed)
    sure = np.flatnonzero(chances >= _SURE)
    order = rng.permutation(np.flatnonzero((chances > 0.0) & (chances < _SURE)))
    left = round(total) - len(sure)
    drawn = order[:0]
    if left > 0:
        ends = np.cumsum(chances[order])
        ends *= left / ends[-1]
        drawn = order[np.searchsorted(ends, rng.random() + np.arange(left), side="right")]
    return rng.permutation(np.concatenate([sure, drawn]).astype(np.int64))


def filled(errors: Sequence[float | None]) -> FloatArray:
    """Fill in missing estimates [N]: such a post gets the mean of the others, 1 if none has any.

    It is neither favoured nor passed over; who lacks an estimate, and why, stands in the criticisms.
    """
    known = [value for value in errors if value is not None]
    mean = float(np.mean(known)) if known else 1.0
    return checked([mean if value is None else value for value in errors])


def checked(errors: npt.ArrayLike) -> FloatArray:
    """Return estimates [N] as floats."""
    values = np.asarray(errors, dtype=np.float64)
    if values.ndim != 1:
        raise BudgetError(f"error estimates of shape {values.shape}: expected [N], one a post")
    advice = "where the criticizer gave none, `filled` says what stands in"
    return _shares(values, f"error estimates in [0, 1]; {advice}")


def _shares(values: FloatArray, expected: str) -> FloatArray:
    outside = np.flatnonzero(~((values >= 0.0) & (values <= 1.0)))
    if len(outside):
        raise BudgetError(
            f"{len(outside)} of {len(values)} values lie outside, the first is {values[outside[0]]}: expected"
            f" {expected}"
        )
    return values


def _checked(errors: npt.ArrayLike, budget: int) -> FloatArray:
    values = checked(errors)
    posts = len(values)
    if isinstance(budget, bool) or not isinstance(budget, int | np.integer) or not 0 <= budget <= posts:
        raise BudgetError(
            f"a budget of {budget} for {posts} posts: expected a whole number from 0 to {posts}; nobody "
            "reviews a post that is not there"
        )
    return values

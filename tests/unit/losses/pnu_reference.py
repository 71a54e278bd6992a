"""The PNU losses of the formulas, read again: plain Python floats and loops, one branch a form.

Written from the formulas and sharing no line with `losses`, so that a mistake has to be made twice.
"""

from __future__ import annotations

import math


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def logistic_function(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


def one_loss(z: float, side: int, surrogate: str) -> float:
    """l+ for side +1, l- for side -1."""
    return softplus(-side * z) if surrogate == "logistic" else logistic_function(-side * z)


def group_mean(rows, number, value):
    """`rows` are (logit, group, target, weight)."""
    top = bottom = 0.0
    for row in rows:
        if row[1] == number:
            top += row[3] * value(row)
            bottom += row[3]
    return top / bottom if bottom > 0 else 0.0


def reference_loss(rows, *, form, balance, theta, labelled_prior=0.5, lambda_soft=1.0, lambda_u=1.0,
                   surrogate="logistic", beta=0.0):  # fmt: skip
    """The value that is reported; what the gradient is when clipped is tested apart."""

    def plus(row):
        return one_loss(row[0], +1, surrogate)

    def minus(row):
        return one_loss(row[0], -1, surrogate)

    def soft(row):
        return row[2] * plus(row) + (1 - row[2]) * minus(row)

    def flipped(row):
        return (1 - row[2]) * plus(row) + row[2] * minus(row)

    positive = group_mean(rows, 0, plus)
    negative = group_mean(rows, 1, minus)
    agreed_positive = group_mean(rows, 2, soft)
    agreed_negative = group_mean(rows, 3, soft)
    any_divergent = any(row[1] == 4 and row[3] > 0 for row in rows)

    if form == "convex":
        r_plus = 0.5 * (positive + agreed_positive)
        r_minus = 0.5 * (negative + agreed_negative)
        if balance >= 0:
            bracket = group_mean(rows, 4, minus) - theta * 0.5 * (
                group_mean(rows, 0, minus) + group_mean(rows, 2, flipped)
            )
            risk = theta * r_plus + (bracket if bracket >= 0 else -0.01 * bracket)
        else:
            bracket = group_mean(rows, 4, plus) - theta * 0.5 * (
                group_mean(rows, 1, plus) + group_mean(rows, 3, flipped)
            )
            risk = theta * r_minus + (bracket if bracket >= 0 else -0.01 * bracket)
        if not any_divergent:
            risk = 0.0
        return (1 - abs(balance)) * (r_plus + r_minus) + abs(balance) * risk

    soft_part = lambda_soft * (labelled_prior * agreed_positive + (1 - labelled_prior) * agreed_negative)
    if balance >= 0:
        own, bracket = theta * positive, group_mean(rows, 4, minus) - theta * group_mean(rows, 0, minus)
    else:
        own = (1 - theta) * negative
        bracket = group_mean(rows, 4, plus) - (1 - theta) * group_mean(rows, 1, plus)
    unbiased = own + bracket if any_divergent else 0.0
    corrected = own + max(bracket, -beta) if any_divergent else 0.0
    plain = labelled_prior * positive + (1 - labelled_prior) * negative

    if form == "weighted":
        return plain + soft_part + (lambda_u * corrected if balance != 0 else 0.0)
    if form == "pn":
        return plain + soft_part
    if form == "nnpu":
        return lambda_u * corrected + soft_part
    if form == "upu":
        return lambda_u * unbiased + soft_part
    if form == "sakai":
        labelled = theta * positive + (1 - theta) * negative
        return (1 - abs(balance)) * labelled + abs(balance) * unbiased + soft_part
    raise AssertionError(form)

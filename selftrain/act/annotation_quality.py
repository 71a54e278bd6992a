"""What a human budget buys: AQG, ABS, the gaps, and macro-F1 of any number of classes.

Names of "ACT as Human" (arXiv 2511.09833). AQG(B), the annotation quality gain, is the quality of the labels
after the B likeliest errors were reviewed, minus that of the machine's labels as they are. ABS scores a
criticizer by the area under AQG over B in [0, N]. The published slides leave its scale open; here it is

    ABS = area under AQG / area under AQG of a perfect criticizer,

so that 1 is a criticizer that ranks every wrong label before every right one. Chance does not score 0:
reviewing at random gains quality too, and has ABS = 1 / (2 - r) for a share r of wrong labels (`chance_abs`),
a half where errors are rare.

Shape legend: ``N`` posts with a machine label, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from selftrain._util.types import FloatArray
from selftrain.act.budget import checked
from selftrain.errors import BudgetError

Labels = npt.NDArray[Any]
Quality = Callable[[Labels, Labels], float]
"""From the true labels [N] and those at hand [N] to a figure, better when larger."""


class Gaps(NamedTuple):
    """What training on other than human labels costs, in the unit of the quality compared."""

    machine: float  # human minus machine: what there is to win
    act: float  # human minus ACT: what is left of it


def accuracy(truth: Labels, labels: Labels) -> float:
    """Return the share of right labels."""
    return float((truth == labels).mean())


def gaps(human: float, machine: float, act: float) -> Gaps:
    """Return the human-machine and human-ACT gap of one quality."""
    return Gaps(human - machine, human - act)


def aqg(
    truth: Labels,
    machine: Labels,
    errors: npt.ArrayLike,
    budget: int,
    *,
    quality: Quality = accuracy,
    seed: int = 0,
) -> float:
    """Return AQG(B): what reviewing the B labels with the largest estimates adds to `quality`.

    Args:
        truth: [N] what a reviewer would answer.
        machine: [N] the machine's labels.
        errors: [N] the criticizer's estimates.
        budget: B, 0 <= B <= N.
        quality: Of labels.
        seed: Orders equal estimates.

    Raises:
        BudgetError: Arrays of different lengths, an estimate outside [0, 1], a budget outside [0, N].
    """
    values = checked(errors)
    if not truth.shape == machine.shape == values.shape or not len(values):
        raise BudgetError(
            f"{len(truth)} true labels, {len(machine)} machine labels, {len(values)} estimates: expected as"
            " many of each, one or more"
        )
    if not 0 <= budget <= len(values):
        raise BudgetError(f"a budget of {budget} for {len(values)} posts: expected 0 to {len(values)}")
    shuffled = np.random.default_rng(seed).permutation(len(values))
    reviewed = shuffled[np.argsort(-values[shuffled], kind="stable")][:budget]
    labels = machine.copy()
    labels[reviewed] = truth[reviewed]
    return quality(truth, labels) - quality(truth, machine)


def aqg_curve(wrong: npt.ArrayLike, errors: npt.ArrayLike) -> FloatArray:
    """Return AQG(B) in accuracy for B = 0..N [N + 1]; equal estimates count as in a random order.

    Raises:
        BudgetError: Arrays of different lengths, an estimate outside [0, 1].
    """
    values, faults = checked(errors), np.asarray(wrong, dtype=np.float64)
    if values.shape != faults.shape or not len(values):
        raise BudgetError(f"{len(faults)} labels, {len(values)} estimates: expected as many, one or more")
    order = np.argsort(-values, kind="stable")
    # posts of one estimate each bring the mean of their group
    _, group, sizes = np.unique(-values[order], return_inverse=True, return_counts=True)
    brought = np.bincount(group, weights=faults[order])[group] / sizes[group]
    return np.concatenate([[0.0], np.cumsum(brought)]) / len(values)


def abs_score(wrong: npt.ArrayLike, errors: npt.ArrayLike) -> float | None:
    """Return ABS, see the module; None where no label is wrong. Errors as of `aqg_curve`."""
    perfect = _area(aqg_curve(wrong, np.asarray(wrong, dtype=np.float64)))
    return _area(aqg_curve(wrong, errors)) / perfect if perfect > 0 else None


def chance_abs(wrong: npt.ArrayLike) -> float | None:
    """Return ABS of a criticizer that gives every label the same estimate: 1 / (2 - r), r the wrong share."""
    rate = float(np.asarray(wrong, dtype=np.float64).mean())
    return 1.0 / (2.0 - rate) if rate > 0 else None


def _area(curve: FloatArray) -> float:
    """Return the area under the curve over B in [0, N] by trapezoids: budgets may end within a post."""
    return float((curve[1:] + curve[:-1]).sum() / 2)

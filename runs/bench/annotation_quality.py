"""What the ACT study measures beside AQG in accuracy and ABS: AQG in any quality, gaps, chance.

Shape legend: ``N`` posts with a machine label.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

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


def chance_abs(wrong: npt.ArrayLike) -> float | None:
    """Return ABS of a criticizer that gives every label the same estimate: 1 / (2 - r), r the wrong share."""
    rate = float(np.asarray(wrong, dtype=np.float64).mean())
    return 1.0 / (2.0 - rate) if rate > 0 else None

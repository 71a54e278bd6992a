"""What a human budget buys, by how well a criticizer ranks a machine's labels: AQG and ABS.

Names of "ACT as Human" (arXiv 2511.09833). AQG(B), the annotation quality gain, is the quality of the labels
after the B likeliest errors were reviewed, minus that of the machine's labels as they are. ABS scores a
criticizer by the area under AQG over B in [0, N]. The published slides leave its scale open; here it is

    ABS = area under AQG / area under AQG of a perfect criticizer,

so that 1 is a criticizer that ranks every wrong label before every right one. Chance does not score 0:
reviewing at random gains quality too, and has ABS = 1 / (2 - r) for a share r of wrong labels, a half where
errors are rare.

Shape legend: ``N`` posts with a machine label.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from selftrain._util.types import FloatArray
from selftrain.act.budget import checked
from selftrain.errors import BudgetError


def aqg_curve(wrong: npt.ArrayLike, errors: npt.ArrayLike) -> FloatArray:
    """Return AQG(B) in accuracy for B = 0..N [N + 1]; equal estimates count as in a random order."""
    values, faults = checked(errors), np.asarray(wrong, dtype=np.float64)
    if values.shape != faults.shape or not len(values):
        raise BudgetError(f"{len(faults)} labels, {len(values)} estimates: expected as many, one or more")
    order = np.argsort(-values, kind="stable")
    # posts of one estimate each bring the mean of their group
    _, group, sizes = np.unique(-values[order], return_inverse=True, return_counts=True)
    brought = np.bincount(group, weights=faults[order])[group] / sizes[group]
    return np.concatenate([[0.0], np.cumsum(brought)]) / len(values)


def abs_score(wrong: npt.ArrayLike, errors: npt.ArrayLike) -> float | None:
    """Return ABS, see the module; None where no label is wrong."""
    perfect = _area(aqg_curve(wrong, np.asarray(wrong, dtype=np.float64)))
    return _area(aqg_curve(wrong, errors)) / perfect if perfect > 0 else None


def _area(curve: FloatArray) -> float:
    """Return the area under the curve over B in [0, N] by trapezoids: budgets may end within a post."""
    return float((curve[1:] + curve[:-1]).sum() / 2)

"""How often the 95 % interval of a label error holds the truth, over many simulated reviews."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runs.bench.act_simulation import simulated_estimates
from runs.bench.study import Figure, Figures
from selftrain._util.choices import Rule

RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.34)
POSTS, BUDGET, FLOOR, REVIEWS = 1000, 100, 0.1, 1000


def measure(figures: Figures, aucs: Sequence[float], reviews: int) -> None:
    """What is missing: every error rate, criticizer and rule."""
    for rate in RATES:
        for auc in aucs:
            for rule in ("normalised", "exponential"):
                method = f"rate={rate:g} auc={auc:g} {rule}"
                if figures.has("act-coverage", method, BUDGET, 0):
                    continue
                values = coverage(rate, auc, rule, reviews)
                figures.add(
                    [
                        Figure("act-coverage", "simulated", method, BUDGET, 0, metric, value)
                        for metric, value in values.items()
                    ]
                )
                print(method, values, flush=True)


def coverage(rate: float, auc: float, rule: Rule, reviews: int) -> dict[str, float]:
    """How often the 95 % interval holds the true rate, its mean width, and the estimate's mean error."""
    found = list(
        simulated_estimates(
            posts=POSTS, budget=BUDGET, rate=rate, auc=auc, rule=rule,
            floor=FLOOR, reviews=reviews, seed=round(1e6 * rate),
        )
    )  # fmt: skip
    return {
        "coverage": float(np.mean([e.low <= truth <= e.high for e, truth in found])),
        "width": float(np.mean([e.high - e.low for e, _ in found])),
        "bias": float(np.mean([e.value - truth for e, truth in found])),
        "reviews": float(reviews),
    }

"""Which epoch a few validation posts choose: rules beside each other, on the scores of every epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from selftrain._util.types import BoolArray, FloatArray
from selftrain.models.metrics import threshold_metrics

SIZES = (50, 100, 300)  # validation posts
METRICS = ("auc", "recall_at_precision_60")
_DRAWS = 200

Rule = Callable[[BoolArray, FloatArray], float]
"""What truth [V] and scores [V] of an epoch are worth; the largest is chosen, of equal ones the first."""


def _likelihood(truth: BoolArray, scores: FloatArray) -> float:
    return float(np.log(np.where(truth, scores, 1 - scores).clip(1e-12)).mean())


RULES: Mapping[str, Rule] = {
    "AUC": lambda truth, scores: threshold_metrics(truth, scores)["auc"],
    "macro-F1": lambda truth, scores: threshold_metrics(truth, scores)["macro_f1"],
    "loss": _likelihood,
}


LAST = "the last epoch"
NAMES = (LAST, *(f"epoch by {name} of {size}" for size in SIZES for name in RULES))
BEST = "the best epoch"


def choices(
    truth: BoolArray, by_epoch: FloatArray, validation_truth: BoolArray, validation_by_epoch: FloatArray
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each of `NAMES` with the test metrics of the epochs that it chooses, and `BEST` in hindsight.

    Args:
        truth, by_epoch: [B] of the test posts, and their scores [E, B].
        validation_truth, validation_by_epoch: [V] and [E, V]. Fewer of them are drawn 200 times, the same
            for all rules; the metrics are means over the draws.
    """
    tested = [{m: threshold_metrics(truth, scores)[m] for m in METRICS} for scores in by_epoch]
    yield LAST, tested[-1]
    for size in SIZES:
        drawn = list(_drawn(validation_truth, size))
        for name, rule in RULES.items():
            places = [
                int(np.argmax([rule(validation_truth[one], scores[one]) for scores in validation_by_epoch]))
                for one in drawn
            ]
            found = {m: float(np.mean([tested[place][m] for place in places])) for m in METRICS}
            yield f"epoch by {name} of {size}", found
    yield BEST, {m: max(one[m] for one in tested) for m in METRICS}


def _drawn(truth: BoolArray, size: int) -> Iterator[np.ndarray]:
    """Yield places of `size` posts, both answers among them; once all, where there are no more."""
    random = np.random.default_rng(0)
    if size >= len(truth):
        yield np.arange(len(truth))
        return
    for _ in range(_DRAWS):
        while True:
            places = random.choice(len(truth), size, replace=False)
            if 0 < truth[places].sum() < size:
                break
        yield places

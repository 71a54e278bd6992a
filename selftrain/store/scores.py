"""What a round's model says of the posts that it is measured on, kept beside its figures.

rounds/0003/scores.jsonl holds one line a post: id, split, label (a class name) and the calibrated logit of
the positive class. From these follow what a table of figures cannot tell: the precision-recall curve, the
reliability diagram, and intervals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from selftrain._util.numeric import sigmoid
from selftrain._util.types import Float32Array, Json, LabelArray
from selftrain.errors import RunStateError
from selftrain.store import atomic
from selftrain.store.run_dir import read_jsonl

FILE = "scores.jsonl"
DECIMALS = 6
_SPLITS = ("validation", "test")


class Scored(NamedTuple):
    """The posts of one split.

    Attributes:
        ids: [V] post ids.
        labels: [V] 1 positive, 0 negative.
        logits: [V] calibrated logits of the positive class.
    """

    ids: Sequence[str]
    labels: LabelArray
    logits: Float32Array


def write_scores(folder: Path, splits: Mapping[str, Scored], *, positive: str, negative: str) -> None:
    """Write `scores.jsonl` of one round.

    Args:
        folder: The round's folder.
        splits: "validation" and, where its labels are known, "test".
        positive, negative: The class names.

    Raises:
        ValueError: An unknown split, or ids, labels and logits of different lengths.
        StorageError: The disk is full or refuses.
    """
    unknown = sorted(splits.keys() - set(_SPLITS))
    if unknown:
        raise ValueError(f"splits {unknown}: expected {list(_SPLITS)} alone")
    names = (negative, positive)
    atomic.write_jsonl(folder / FILE, _rows(splits, names))


def _rows(splits: Mapping[str, Scored], names: Sequence[str]) -> Iterator[Json]:
    for split, scored in splits.items():
        for post_id, label, logit in zip(*scored, strict=True):
            value = round(float(logit), DECIMALS)
            yield {"id": post_id, "split": split, "label": names[int(label)], "logit": value}


def read_scores(folder: Path, *, positive: str, negative: str) -> dict[str, Scored] | None:
    """Read the splits of one round's `scores.jsonl`; None when the round has none.

    Raises:
        RunStateError: A line that is not a score, or names another class.
    """
    file = folder / FILE
    if not file.exists():
        return None
    columns: dict[str, tuple[list[str], list[int], list[float]]] = {}
    values = {positive: 1, negative: 0}
    try:
        for row in read_jsonl(file):
            ids, labels, logits = columns.setdefault(str(row["split"]), ([], [], []))
            ids.append(str(row["id"]))
            labels.append(values[row["label"]])
            logits.append(float(row["logit"]))
    except (KeyError, TypeError, ValueError) as error:
        raise RunStateError(
            f"{file} has a line that is no score ({error!r}): the folder is damaged"
        ) from error
    return {
        split: Scored(ids, np.array(labels, dtype=np.int8), np.array(logits, dtype=np.float32))
        for split, (ids, labels, logits) in sorted(columns.items(), key=lambda item: _order(item[0]))
    }


def _order(split: str) -> int:
    return _SPLITS.index(split) if split in _SPLITS else len(_SPLITS)


# ---- what follows from scores -----------------------------------------------------------------------


class PrecisionRecall(NamedTuple):
    """Precision at recall, over all thresholds, recall rising; `average` is average precision."""

    recall: Sequence[float]
    precision: Sequence[float]
    average: float


class ReliabilityBin(NamedTuple):
    """Posts whose probability lies in [low, high): how many, their mean probability, share of positives."""

    low: float
    high: float
    posts: int
    confidence: float
    accuracy: float


class ReliabilityDiagram(NamedTuple):
    """Bins that hold a post, and the expected calibration error: their mean gap, weighted by posts."""

    bins: Sequence[ReliabilityBin]
    ece: float


MOST_POINTS = 250
BINS = 10


def precision_recall(scored: Scored) -> PrecisionRecall | None:
    """Compute the curve, thinned to `MOST_POINTS`; None when one class does not occur."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    if len(np.unique(scored.labels)) < 2:
        return None
    precision, recall, _ = precision_recall_curve(scored.labels, scored.logits)
    chosen = np.unique(np.linspace(0, len(recall) - 1, min(MOST_POINTS, len(recall))).round().astype(int))
    average = float(average_precision_score(scored.labels, scored.logits))
    return PrecisionRecall(recall[chosen][::-1].tolist(), precision[chosen][::-1].tolist(), average)


def reliability(scored: Scored, bins: int = BINS) -> ReliabilityDiagram:
    """Compute the share of positives by predicted probability, in `bins` equal intervals of [0, 1]."""
    probs = sigmoid(scored.logits)
    place = np.minimum((probs * bins).astype(int), bins - 1)
    found = [
        ReliabilityBin(
            low=number / bins,
            high=(number + 1) / bins,
            posts=int(inside.sum()),
            confidence=float(probs[inside].mean()),
            accuracy=float((scored.labels[inside] == 1).mean()),
        )
        for number in range(bins)
        if (inside := place == number).any()
    ]
    return ReliabilityDiagram(found, expected_calibration_error(found))


def expected_calibration_error(bins: Iterable[ReliabilityBin]) -> float:
    """Return the mean distance between confidence and accuracy, weighted by posts; 0 without a post."""
    listed = list(bins)
    posts = sum(one.posts for one in listed)
    return sum(one.posts * abs(one.confidence - one.accuracy) for one in listed) / max(posts, 1)


def histogram(scored: Scored, bins: int) -> tuple[list[int], list[int]]:
    """Count positive posts, and the others, by predicted probability in `bins` equal intervals."""
    probs = sigmoid(scored.logits)
    positive, negative = (
        np.histogram(probs[scored.labels == value], bins=bins, range=(0, 1))[0].tolist() for value in (1, 0)
    )
    return positive, negative

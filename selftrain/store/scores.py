"""What a round's model says of the posts that it is measured on, kept beside its figures.

rounds/0003/scores.jsonl holds one line a post: id, split, label and predicted label (class names), and the
calibrated logits, in the order of the classes. From these follow what a table of figures cannot tell: the
precision-recall curve, the reliability diagram, and intervals.

Shape legend: ``V`` posts, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from selftrain._util.numeric import decide
from selftrain._util.types import Float32Array, IntArray, Json, LabelArray
from selftrain.errors import RunStateError
from selftrain.store import atomic
from selftrain.store.run_dir import read_jsonl

FILE = "scores.jsonl"
DECIMALS = 6
_SPLITS = ("validation", "test")


class Scored(NamedTuple):
    """The posts of one split."""

    ids: Sequence[str]  # [V] post ids
    labels: LabelArray  # [V] the class of each: a column of `logits`
    logits: Float32Array  # [V, K] calibrated
    predicted: IntArray | None = None  # [V] the class that the model decides on; None: the likeliest

    @property
    def decided(self) -> IntArray:
        """[V] the class that the model decides on."""
        return decide(self.logits) if self.predicted is None else self.predicted


def numbered(classes: Sequence[str]) -> tuple[str, ...]:
    """Return a run's class names, given with the positive one first, as its labels number them: it last."""
    return *classes[1:], classes[0]


def write_scores(folder: Path, splits: Mapping[str, Scored], classes: Sequence[str]) -> None:
    """Write `scores.jsonl` into a round's folder, classes [K] named in the order of the labels.

    Raises:
        ValueError: Another split than "validation" and "test", or ids, labels and logits of unequal length.
    """
    unknown = sorted(splits.keys() - set(_SPLITS))
    if unknown:
        raise ValueError(f"splits {unknown}: expected {list(_SPLITS)} alone")
    atomic.write_jsonl(folder / FILE, _rows(splits, classes))


def _rows(splits: Mapping[str, Scored], names: Sequence[str]) -> Iterator[Json]:
    for split, scored in splits.items():
        columns = (scored.ids, scored.labels, scored.decided, scored.logits)
        for post_id, label, predicted, logits in zip(*columns, strict=True):
            yield {
                "id": post_id,
                "split": split,
                "label": names[int(label)],
                "predicted": names[int(predicted)],
                "logits": [round(float(logit), DECIMALS) for logit in logits],
            }


def read_scores(folder: Path, classes: Sequence[str]) -> dict[str, Scored] | None:
    """Read the splits of one round's `scores.jsonl`; None when the round has none."""
    file = folder / FILE
    if not file.exists():
        return None
    columns: dict[str, tuple[list[str], list[int], list[int], list[list[float]]]] = {}
    values = {name: number for number, name in enumerate(classes)}
    try:
        for row in read_jsonl(file):
            ids, labels, predicted, logits = columns.setdefault(str(row["split"]), ([], [], [], []))
            ids.append(str(row["id"]))
            labels.append(values[row["label"]])
            predicted.append(values[row["predicted"]])
            logits.append([float(row["logits"][number]) for number in range(len(classes))])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise RunStateError(
            f"{file} has a line that is no score ({error!r}): the folder is damaged"
        ) from error
    return {
        split: Scored(
            ids,
            np.array(labels, dtype=np.int16),
            np.array(logits, dtype=np.float32),
            np.array(predicted, dtype=np.int64),
        )
        for split, (ids, labels, predicted, logits) in sorted(columns.items(), reverse=True)
    }


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

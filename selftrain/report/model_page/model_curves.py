"""How a training went: its losses, thinned so that a chart can hold them, and its epochs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from selftrain._util.types import Json
from selftrain.agentps.journal import LOSSES
from selftrain.report.model_page.model_files import read_lines

MOST_POINTS = 200
"""Of the losses' chart; of more steps each point is a mean."""


class Losses(NamedTuple):
    """Losses over the steps, each a mean of `together` steps.

    Attributes:
        steps: The last step of each mean, counted from 1.
        total: As it was minimised, the weighted sum of all questions.
        final: Of the final question.
        process: Mean over the process questions, before their weights; None without any.
        together: Steps of a mean.
    """

    steps: Sequence[int]
    total: Sequence[float]
    final: Sequence[float]
    process: Sequence[float] | None
    together: int


class Epoch(NamedTuple):
    """One epoch.

    Attributes:
        number: Counted from 1.
        kept: Whether its weights are the model's.
        loss: Mean of its steps' losses; None where they are not known.
        figures: On the validation posts.
    """

    number: int
    kept: bool
    loss: float | None
    figures: Json


class Training(NamedTuple):
    """A training; `metric` said which epoch is best. `losses` is None without losses.jsonl."""

    epochs: Sequence[Epoch]
    metric: str
    losses: Losses | None

    @property
    def kept(self) -> int:
        """The number of the epoch whose weights are the model's."""
        return next(one.number for one in self.epochs if one.kept)


def gather_training(folder: Path, metrics: Json, about: Json) -> Training | None:
    """The training that a folder tells of; None for one that only measures.

    Raises:
        ModelError: A line of the losses is not JSON.
        KeyError, TypeError: A record lacks something.
    """
    epochs = metrics.get("epochs")
    if not epochs:
        return None
    file = folder / LOSSES
    rows = list(read_lines(file)) if file.exists() else []
    best = int(metrics["best"])
    means = _means([float(row["loss"]) for row in rows], len(epochs))
    return Training(
        [Epoch(number + 1, number == best, means[number], figures) for number, figures in enumerate(epochs)],
        str(about.get("metric", "macro_f1")),
        _losses(rows) if rows else None,
    )


def _means(losses: Sequence[float], epochs: int) -> list[float | None]:
    """Mean loss of each epoch; all have the same number of steps."""
    size, rest = divmod(len(losses), epochs)
    if not size or rest:
        return [None] * epochs
    return [fmean(losses[size * number : size * (number + 1)]) for number in range(epochs)]


def _losses(rows: Sequence[Json]) -> Losses:
    together = -(-len(rows) // MOST_POINTS)
    groups = [rows[start : start + together] for start in range(0, len(rows), together)]
    has_process = len(rows[0]["parts"]) > 1
    return Losses(
        steps=[int(group[-1]["step"]) + 1 for group in groups],
        total=[fmean(float(row["loss"]) for row in group) for group in groups],
        final=[fmean(float(row["parts"][-1]) for row in group) for group in groups],
        process=[fmean(fmean(row["parts"][:-1]) for row in group) for group in groups]
        if has_process
        else None,
        together=together,
    )

"""Read everything that the page of a model shows, as plain data out of the model's folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np

from selftrain._util.types import BoolArray, Interval, Json
from selftrain.agentps.checkpoint import ABOUT, METRICS, TASK, VALIDATION
from selftrain.agentps.dataset import FINAL, question_set
from selftrain.data.task import Task, load_task
from selftrain.errors import ModelError, RunStateError, SelftrainError
from selftrain.models.metrics import Curve, curve
from selftrain.models.training_log import LOSSES
from selftrain.report.left_out import QUARANTINED, Quarantine
from selftrain.report.model_page.model_cases import Cases, Column, gather_cases, probs_of, truth_of
from selftrain.store.run_dir import read_jsonl
from selftrain.web.pictures import BUDGET

MOST_POINTS = 200
"""Of the losses' chart; of more steps each point is a mean."""


class MeasuredQuestion(NamedTuple):
    """What was measured of one question.

    Attributes:
        column: The question.
        posts: That answer it.
        answers: Answer -> how many posts have it.
        figures: Metric -> value and interval; None where `note` says why.
        note: "" with figures.
        all_answers: Macro-F1 and accuracy over all answers, of a question with more than two.
        curve: None without figures.
    """

    column: Column
    posts: int
    answers: Mapping[str, int]
    figures: Mapping[str, Interval] | None
    note: str
    all_answers: Mapping[str, float] | None
    curve: Curve | None

    @property
    def base_rate(self) -> float:
        """Share of posts that have the answer looked for: the precision of choosing blindly."""
        return self.answers[self.column.looked_for] / self.posts


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
        """Number of the epoch whose weights are the model's."""
        return next(one.number for one in self.epochs if one.kept)


class ModelPage(NamedTuple):
    """All that the template draws.

    Attributes:
        name: The folder's.
        model: The first characters of the fingerprint of the model that was measured, where it is told.
        about: Of a trained model its agentps.json, else empty.
        questions: The final one first.
        training: None for a folder that only measures.
        unread: Posts that could not be read.
    """

    name: str
    model: str | None
    about: Json
    task: Task
    questions: Sequence[MeasuredQuestion]
    training: Training | None
    cases: Cases
    unread: Quarantine


def gather(folder: Path, *, picture_budget: int = BUDGET) -> ModelPage:
    """Read everything that the page shows.

    Args:
        folder: Of a model, or of an evaluation.
        picture_budget: Characters of all pictures together.

    Raises:
        ModelError: A file is missing, or damaged.
        TaskError: The task cannot be read.
    """
    metrics = _read_object(folder / METRICS)
    about = _read_object(folder / ABOUT) if (folder / ABOUT).exists() else {}
    task = load_task(folder / TASK)
    rows = list(_read_lines(folder / VALIDATION))
    try:
        columns = _columns(metrics["questions"], task)
        read = [row for row in rows if "reason" not in row]
        return ModelPage(
            name=folder.resolve().name,
            model=str(metrics["model"])[:12] if "model" in metrics else None,
            about=about,
            task=task,
            questions=[_measured(one, metrics["questions"][one.name], read) for one in columns],
            training=_training(folder, metrics, about),
            cases=gather_cases(read, columns, budget=picture_budget),
            unread=_unread([row for row in rows if "reason" in row]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, SelftrainError):
            raise
        raise ModelError(
            f"{folder} has records that are incomplete ({error!r}): the folder is damaged; measure the model"
            " anew with `selftrain agentps evaluate`"
        ) from error


def _columns(questions: Mapping[str, Json], task: Task) -> list[Column]:
    """Return the final question, then the others in their order."""
    names = [FINAL, *(name for name in questions if name != FINAL)]
    columns = []
    for name in names:
        asked = task.question(name)
        wording = question_set(task, "vanilla").final.wording if name == FINAL else ""
        columns.append(
            Column(
                name,
                wording if asked is None else asked.wording,
                tuple(questions[name]["answers"]),
                str(questions[name]["looked_for"]),
            )
        )
    return columns


def _measured(column: Column, about: Json, rows: Sequence[Json]) -> MeasuredQuestion:
    figures = about.get("figures")
    return MeasuredQuestion(
        column=column,
        posts=int(about["posts"]),
        answers=about["answers"],
        figures=None if figures is None else {name: Interval(**one) for name, one in figures.items()},
        note=str(about.get("note", "")),
        all_answers=about.get("all_answers"),
        curve=None if figures is None else _curve(column, rows),
    )


def _curve(column: Column, rows: Sequence[Json]) -> Curve:
    known = [row for row in rows if truth_of(row, column) is not None]
    truth: BoolArray = np.array([truth_of(row, column) == column.looked_for for row in known])
    scores = np.array([probs_of(row, column)[column.looked_for] for row in known], dtype=np.float64)
    return curve(truth, scores)


def _unread(rows: Sequence[Json]) -> Quarantine:
    shown = [{"kind": "image", "id": row["id"], "reason": _reason(row)} for row in rows[:QUARANTINED]]
    return Quarantine(shown, len(rows), {"image": len(rows)} if rows else {})


def _reason(row: Json) -> str:
    """Return why a post could not be read; of where its pictures lie only their names."""
    reason = str(row["reason"])
    for path in row.get("pictures", ()):
        reason = reason.replace(path, Path(path).name)
    return reason


# ---- training ---------------------------------------------------------------------------------------


def _training(folder: Path, metrics: Json, about: Json) -> Training | None:
    """Read how a model was trained; None for a folder that only measures.

    Raises:
        ModelError: A line of the losses is not JSON.
        KeyError, TypeError: A record lacks something.
    """
    epochs = metrics.get("epochs")
    if not epochs:
        return None
    file = folder / LOSSES
    rows = list(_read_lines(file)) if file.exists() else []
    best = int(metrics["best"])
    means = _means([float(row["loss"]) for row in rows], len(epochs))
    return Training(
        [Epoch(number + 1, number == best, means[number], figures) for number, figures in enumerate(epochs)],
        str(about.get("metric", "macro_f1")),
        _losses(rows) if rows else None,
    )


def _means(losses: Sequence[float], epochs: int) -> list[float | None]:
    """Return the mean loss of each epoch; all have the same number of steps."""
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


# ---- files ------------------------------------------------------------------------------------------


def _read_object(file: Path) -> Json:
    """Read the JSON object in a file.

    Raises:
        ModelError: It is not there, or holds none.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _missing(file) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read ({error}): the folder is damaged") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file} holds no JSON object: the folder is damaged")
    return value


def _read_lines(file: Path) -> Iterator[Json]:
    """Read the JSON objects of a file, one a line.

    Raises:
        ModelError: It is not there, or a line, whose number is told, is not JSON.
    """
    if not file.exists():
        raise _missing(file)
    try:
        yield from read_jsonl(file)
    except RunStateError as error:
        raise ModelError(str(error).replace("the run folder", "the folder")) from error


def _missing(file: Path) -> ModelError:
    return ModelError(
        f"there is no {file}: expected the folder of a trained model, or one that"
        " `selftrain agentps evaluate` wrote"
    )

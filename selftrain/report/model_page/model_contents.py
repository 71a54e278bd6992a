"""Everything that the page tells, as plain data out of a model's folder; nothing here draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from selftrain._util.types import BoolArray, Json
from selftrain.agentps.folder import ABOUT, METRICS, TASK, VALIDATION
from selftrain.agentps.metrics import Curve, Interval, curve
from selftrain.agentps.questions import FINAL, questionnaire
from selftrain.data.task import Task, load_task
from selftrain.errors import ModelError, SelftrainError
from selftrain.report.left_out import QUARANTINED, Quarantine
from selftrain.report.model_page.model_cases import Cases, Column, gather_cases, odds_of, truth_of
from selftrain.report.model_page.model_curves import Training, gather_training
from selftrain.report.model_page.model_files import read_lines, read_object
from selftrain.web.pictures import BUDGET


class Measured(NamedTuple):
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
        """The share of posts that have the answer looked for: the precision of choosing blindly."""
        return self.answers[self.column.looked_for] / self.posts


class Page(NamedTuple):
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
    questions: Sequence[Measured]
    training: Training | None
    cases: Cases
    unread: Quarantine


def gather(folder: Path, *, picture_budget: int = BUDGET) -> Page:
    """Everything the page tells.

    Args:
        folder: Of a model, or of an evaluation.
        picture_budget: Characters of all pictures together.

    Raises:
        ModelError: A file is missing, or damaged.
        TaskError: The task cannot be read.
    """
    metrics = read_object(folder / METRICS)
    about = read_object(folder / ABOUT) if (folder / ABOUT).exists() else {}
    task = load_task(folder / TASK)
    rows = list(read_lines(folder / VALIDATION))
    try:
        columns = _columns(metrics["questions"], task)
        read = [row for row in rows if "reason" not in row]
        return Page(
            name=folder.resolve().name,
            model=str(metrics["model"])[:12] if "model" in metrics else None,
            about=about,
            task=task,
            questions=[_measured(one, metrics["questions"][one.name], read) for one in columns],
            training=gather_training(folder, metrics, about),
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
    """The final question, then the others in their order."""
    names = [FINAL, *(name for name in questions if name != FINAL)]
    columns = []
    for name in names:
        asked = task.question(name)
        wording = questionnaire(task, "vanilla").final.wording if name == FINAL else ""
        columns.append(
            Column(
                name,
                wording if asked is None else asked.wording,
                tuple(questions[name]["answers"]),
                str(questions[name]["looked_for"]),
            )
        )
    return columns


def _measured(column: Column, about: Json, rows: Sequence[Json]) -> Measured:
    figures = about.get("figures")
    return Measured(
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
    scores = np.array([odds_of(row, column)[column.looked_for] for row in known], dtype=np.float64)
    return curve(truth, scores)


def _unread(rows: Sequence[Json]) -> Quarantine:
    shown = [{"kind": "image", "id": row["id"], "reason": _reason(row)} for row in rows[:QUARANTINED]]
    return Quarantine(shown, len(rows), {"image": len(rows)} if rows else {})


def _reason(row: Json) -> str:
    """Why a post could not be read; of where its pictures lie only their names."""
    reason = str(row["reason"])
    for path in row.get("pictures", ()):
        reason = reason.replace(path, Path(path).name)
    return reason

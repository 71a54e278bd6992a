"""One page of a model: its figures, its curves, its training, and every post that it was measured on.

`gather` reads the folder (`model_records`) and lays out the case table (`case_table`), `render` draws;
cases.js is the page's own script.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np

from selftrain._util.types import BoolArray
from selftrain.agentps.checkpoint import ABOUT, METRICS, TASK, VALIDATION
from selftrain.agentps.dataset import FINAL, question_set
from selftrain.data.run_posts import TaskWords
from selftrain.data.task import Task, load_task
from selftrain.models.metrics import MOST_POINTS, PRECISIONS, Curve, curve
from selftrain.models.train_loop import LOSSES
from selftrain.report.case_table import gather_cases
from selftrain.report.left_out import QUARANTINED, LeftOutRow, Quarantine
from selftrain.report.model_records import (
    AboutModel,
    CalibrationRecord,
    Case,
    EpochRecord,
    LossStep,
    ModelMetrics,
    QuestionMetrics,
    damaged,
)
from selftrain.store import atomic
from selftrain.web import charts
from selftrain.web.charts import ChartPanel, legend
from selftrain.web.html import isolated, render_page
from selftrain.web.pictures import BUDGET, without_paths
from selftrain.web.table import TableData

MOST_LOSSES = 200
"""Points of the losses' chart; of more steps each point is a mean."""
RECALLS = tuple(step / 10 for step in range(1, 11))
"""Where the table below the curves gives precision."""
METRIC_NAMES = {
    "f1": "F1", "macro_f1": "macro-F1", "auc": "AUC",
    **{f"recall_at_precision_{round(one * 100)}": f"recall at precision {one:.2f}" for one in PRECISIONS},
    "precision_at_recall_50": "precision at recall 0.50", "accuracy": "accuracy",
}  # fmt: skip
EPOCH_METRICS = ("f1", "macro_f1", "auc", "precision_at_recall_50")
_PROCESS = "/macro_f1"  # an epoch's metric of a process question ends so


class QuestionPart(NamedTuple):
    """One question: its name, its wording, what was measured of it, and its curve where that has figures."""

    name: str
    wording: str
    measured: QuestionMetrics
    curve: Curve | None

    @property
    def average(self) -> float:
        """Average precision, in [0, 1]; 0 without a curve."""
        found = self.curve
        return float(np.diff(found.recall, prepend=0.0) @ found.precision) if found else 0.0


class Training(NamedTuple):
    """A training."""

    # each with the mean loss of the steps before it, None where they are not known
    validations: Sequence[tuple[float | None, EpochRecord]]
    best: EpochRecord  # that of the weights which are the model's
    metric: str  # what said so
    steps: Sequence[LossStep]  # the losses, each the mean of `together` steps; none without losses.jsonl
    together: int  # steps of a mean

    @property
    def within(self) -> bool:
        """Whether some validations are within an epoch; else there is one at each epoch's end."""
        return len({one.epoch for _, one in self.validations}) < len(self.validations)

    @property
    def kept(self) -> str:
        """Which validation is kept, in words."""
        return f"step {self.best.step:,}" if self.within else f"epoch {self.best.epoch}"

    def place(self, one: EpochRecord) -> int:
        """Return where a validation stands on the axis of the charts."""
        return one.step if self.within else one.epoch


class ModelPage(NamedTuple):
    """All that the template draws."""

    name: str  # the folder's
    # the first characters of the fingerprint of the model that was measured, where it is known
    model: str | None
    about: AboutModel  # of a trained model what it is
    task: Task
    questions: Sequence[QuestionPart]  # the final one first
    training: Training | None  # none for a folder that only measures
    cases: TableData  # the posts that were measured on; `truth_known`: whether the class of any is known
    truth_known: bool
    unread: Quarantine  # posts that could not be read


def write_report(folder: Path, out: Path) -> None:
    """Draw the page of a model's folder, or of one that `selftrain agentps evaluate` wrote, into `out`.

    The folder holds task.toml, metrics.json and validation.jsonl; of a trained model also agentps.json and
    losses.jsonl.
    """
    atomic.write_text(out, render(gather(folder)))


# ---- reading ------------------------------------------------------------------------------------------


def gather(folder: Path, *, picture_budget: int = BUDGET) -> ModelPage:
    """Read everything that the page shows; its pictures take at most `picture_budget` characters."""
    metrics = ModelMetrics.read(folder / METRICS)
    about = AboutModel.read(folder / ABOUT) if (folder / ABOUT).exists() else AboutModel()
    task = load_task(folder / TASK)
    rows = Case.read_lines(folder / VALIDATION)
    read = [case for case in rows if case.reason is None]
    try:
        questions = {FINAL: metrics.questions[FINAL]} | metrics.questions
        truth_known = any(case.truth[FINAL] is not None for case in read)
        return ModelPage(
            name=folder.resolve().name,
            model=metrics.model[:12] if metrics.model else None,
            about=about,
            task=task,
            questions=[
                QuestionPart(name, _wording(task, name), one, _curve(name, one, read))
                for name, one in questions.items()
            ],
            training=_training(folder / LOSSES, metrics, about) if metrics.validations else None,
            cases=gather_cases(read, questions, truth_known=truth_known, budget=picture_budget),
            truth_known=truth_known,
            unread=_unread([case for case in rows if case.reason is not None]),
        )
    except KeyError as error:  # what one file names another lacks
        raise damaged(folder, repr(error)) from error


def _wording(task: Task, name: str) -> str:
    asked = question_set(task, "vanilla").final if name == FINAL else task.question(name)
    return asked.wording if asked else ""


def _curve(name: str, question: QuestionMetrics, cases: Sequence[Case]) -> Curve | None:
    if question.metrics is None:
        return None
    known = [case for case in cases if case.truth[name] is not None]
    truth: BoolArray = np.array([case.truth[name] == question.looked_for for case in known])
    return curve(truth, np.array([case.probs(name)[question.looked_for] for case in known]))


def _unread(cases: Sequence[Case]) -> Quarantine:
    shown = [
        LeftOutRow("image", one.id, reason=without_paths(one.reason or "", {p: p.name for p in one.pictures}))
        for one in cases[:QUARANTINED]
    ]
    return Quarantine(shown, len(cases), {"image": len(cases)} if cases else {})


def _training(losses: Path, metrics: ModelMetrics, about: AboutModel) -> Training:
    steps = LossStep.read_lines(losses) if losses.exists() else []
    ends = [0, *(one.step for one in metrics.validations)]
    parts = [steps[first:last] if last <= len(steps) else [] for first, last in pairwise(ends)]
    means = [fmean(step.loss for step in part) if part else None for part in parts]
    together = -(-len(steps) // MOST_LOSSES) or 1
    groups = [steps[start : start + together] for start in range(0, len(steps), together)]
    validations = list(zip(means, metrics.validations, strict=True))
    best = metrics.validations[metrics.best]
    return Training(validations, best, about.metric, list(map(_mean, groups)), together)


def _mean(steps: Sequence[LossStep]) -> LossStep:
    parts = zip(*(step.parts for step in steps), strict=True)
    return LossStep(
        step=steps[-1].step, loss=fmean(step.loss for step in steps), parts=list(map(fmean, parts))
    )


# ---- drawing ------------------------------------------------------------------------------------------


def render(page: ModelPage) -> str:
    """Return the page as HTML."""
    training = page.training
    values = page._asdict() | {
        "words": TaskWords.of(page.task, page.task.names),
        "curves": [(one, precision_at(one.curve, RECALLS)) for one in page.questions if one.curve],
        "curve_panels": [
            _curve_panel(n, one, one.curve) for n, one in enumerate(page.questions) if one.curve
        ],
        "reliability_panels": [
            _reliability_panel(n, one, one.measured.calibration)
            for n, one in enumerate(page.questions)
            if one.measured.calibration
        ],
        "training_panels": [] if training is None else list(_training_panels(training)),
        "recalls": RECALLS,
        "metric_names": METRIC_NAMES,
        "precisions": PRECISIONS,
        "figure_names": [name for name in METRIC_NAMES if name != "accuracy"],
        "epoch_metrics": EPOCH_METRICS,
        "process_metric": _PROCESS,
    }
    scripts = ("page.js", "table.js", "cases.js")
    return render_page("model.html.j2", values, folder=Path(__file__).parent, scripts=scripts).html


def _curve_panel(number: int, question: QuestionPart, found: Curve) -> ChartPanel:
    places = np.linspace(0, len(found.recall) - 1, min(MOST_POINTS, len(found.recall)))
    chosen = np.unique(places.round().astype(int))
    # from recall 0 on, the most confident posts decide
    recall = [0.0, *found.recall[chosen].tolist()]
    precision = [float(found.precision[0]), *found.precision[chosen].tolist()]
    base_rate = question.measured.base_rate
    what = (
        f"Precision by recall of question {number + 1}: average precision {question.average:.3f},"
        f" base rate {base_rate:.3f}. The table below the curves has figures."
    )
    drawn = [(recall, precision)]
    return ChartPanel(
        isolated("{}", question.name),
        isolated("looked for: {}", question.measured.looked_for),
        charts.precision_recall_chart(drawn, f"curve-{number}", what, base_rate=base_rate),
        [
            ("line", f"average precision {question.average:.3f}"),
            ("line faint-line dash", f"base rate {base_rate:.3f}"),
        ],
    )


def _reliability_panel(number: int, question: QuestionPart, found: CalibrationRecord) -> ChartPanel:
    drawn = {"calibrated": found.calibrated, "the model's own": found.raw}
    dots = [[(one.confidence, one.accuracy, one.posts) for one in diagram.bins] for diagram in drawn.values()]
    what = (
        f"Share of posts that were so by probability, of question {number + 1}: expected calibration error"
        f" {found.raw.ece:.3f} before, {found.calibrated.ece:.3f} after"
    )
    names = [f"{name}, error {one.ece:.3f}" for name, one in drawn.items()]
    chart = charts.reliability_chart(dots, f"reliability-{number}", what)
    under = f"temperature {1 / found.slope:.2f}; on the line, the model is as sure as it is right"
    return ChartPanel(isolated("{}", question.name), under, chart, legend(names))


def precision_at(found: Curve, recalls: Sequence[float]) -> list[float]:
    """Return the best precision of any threshold with at least each recall, all of which are at most 1."""
    # a recall of 0.3 is 3 of 10 posts, whatever the last bit of the quotient is
    return [float(found.precision[found.recall >= least - 1e-9].max()) for least in recalls]


def _training_panels(training: Training) -> Iterator[ChartPanel]:
    if steps := training.steps:
        series = {"total": [step.loss for step in steps]}
        if len(steps[0].parts) > 1:
            series["final question"] = [step.parts[-1] for step in steps]
            series["process questions, mean"] = [fmean(step.parts[:-1]) for step in steps]
        across = [step.step + 1 for step in steps]
        what = (
            f"Loss over {across[-1]} steps: the total goes from {steps[0].loss:.3f} to {steps[-1].loss:.3f}"
        )
        many = f"each point the mean of {training.together:,} steps"
        chart = charts.lines(across, series, "losses", what, marker="")
        under = many if training.together > 1 else "on the training posts"
        yield ChartPanel("Loss by step", under, chart, legend(series))
    metrics = [one.metrics for _, one in training.validations]
    by = "step" if training.within else "epoch"
    across = [training.place(one) for _, one in training.validations]
    asked = (training.metric, "macro_f1", "auc")
    final = {METRIC_NAMES.get(name, name): name for name in asked if all(name in one for one in metrics)}
    # more lines than colours say nothing; the table has them all
    process = [name for name in metrics[0] if name.endswith(_PROCESS)][: len(charts.SERIES)]
    what = (
        f"Figures on the validation posts by {by}; {training.kept} is kept. The table below has all figures."
    )
    for title, under, name, named in (
        (f"Final question by {by}", "on the validation posts", "epochs-final", final),
        (f"Process questions by {by}", "macro-F1 on the validation posts", "epochs-process",
         {name.removesuffix(_PROCESS): name for name in process}),
    ):  # fmt: skip
        if named:
            values = {word: [one.get(key) for one in metrics] for word, key in named.items()}
            chart = charts.lines(across, values, name, what, share=True, kept=training.place(training.best))
            yield ChartPanel(title, under, chart, [*legend(values), ("line faint-line dash", "kept")])

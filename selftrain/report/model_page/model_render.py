"""The page's data, drawn: which charts a model's page has, and the page as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from selftrain.agentps.metrics import PRECISIONS, Curve
from selftrain.report.model_page.model_contents import Losses, MeasuredQuestion, ModelPage, Training
from selftrain.store.scores import MOST_POINTS
from selftrain.web import charts
from selftrain.web.html import render_page

RECALLS = tuple(step / 10 for step in range(1, 11))
"""Where the table beside the curves tells precision."""
METRIC_NAMES = {
    "f1": "F1", "macro_f1": "macro-F1", "auc": "AUC",
    **{f"recall_at_precision_{round(one * 100)}": f"recall at precision {one:.2f}" for one in PRECISIONS},
    "precision_at_recall_50": "precision at recall 0.50", "accuracy": "accuracy",
}  # fmt: skip
FIGURES = tuple(name for name in METRIC_NAMES if name != "accuracy")
EPOCH_METRICS = ("f1", "macro_f1", "auc", "precision_at_recall_50")
_PROCESS = "/macro_f1"


class CurvePart(NamedTuple):
    """One question's curve: its chart, its average precision, and precision at each of `RECALLS`."""

    question: MeasuredQuestion
    chart: Markup
    average: float
    precision: Sequence[float]


class TrainingCharts(NamedTuple):
    """(chart, its series), each; `process` is None without process questions, `losses` without losses."""

    losses: tuple[Markup, Sequence[str]] | None
    final: tuple[Markup, Sequence[str]]
    process: tuple[Markup, Sequence[str]] | None


def render(page: ModelPage) -> str:
    """Return the page as HTML."""
    values = page._asdict() | {
        "cases": page.cases.table,
        "truth_known": page.cases.truth_known,
        "curves": [
            _curve_part(number, one, one.curve)
            for number, one in enumerate(page.questions)
            if one.curve is not None
        ],
        "recalls": RECALLS,
        "training_charts": None if page.training is None else _training_charts(page.training),
        "metric_names": METRIC_NAMES,
        "precisions": [(f"recall_at_precision_{round(one * 100)}", one) for one in PRECISIONS],
        "figure_names": FIGURES,
        "epoch_metrics": EPOCH_METRICS,
        "process_metric": _PROCESS,
        "quarantine": page.unread,
    }
    scripts = ("page.js", "table.js", "cases.js")
    return render_page("model.html.j2", values, folder=Path(__file__).parent, scripts=scripts).html


# ---- precision and recall ---------------------------------------------------------------------------


def _curve_part(number: int, question: MeasuredQuestion, curve: Curve) -> CurvePart:
    average = float(np.diff(curve.recall, prepend=0.0) @ curve.precision)
    places = np.linspace(0, len(curve.recall) - 1, min(MOST_POINTS, len(curve.recall))).round().astype(int)
    chosen = np.unique(places)
    # from recall 0 on, the most confident posts decide
    drawn = (
        [0.0, *curve.recall[chosen].tolist()],
        [float(curve.precision[0]), *curve.precision[chosen].tolist()],
    )
    what = (
        f"Precision by recall of question {number + 1}: average precision {average:.3f},"
        f" base rate {question.base_rate:.3f}. The table below the curves has figures."
    )
    chart = charts.precision_recall_chart([drawn], f"curve-{number}", what, base_rate=question.base_rate)
    return CurvePart(question, chart, average, precision_at(curve, RECALLS))


def precision_at(curve: Curve, recalls: Sequence[float]) -> list[float]:
    """Return the best precision of any threshold with at least each recall, all of which are at most 1."""
    # a recall of 0.3 is 3 of 10 posts, whatever the last bit of the quotient is
    return [float(curve.precision[curve.recall >= least - 1e-9].max()) for least in recalls]


# ---- training ---------------------------------------------------------------------------------------


def _training_charts(training: Training) -> TrainingCharts:
    names = [one for one in dict.fromkeys((training.metric, "macro_f1", "auc")) if _known(training, one)]
    # more lines than colours say nothing; the table has them all
    process = [one for one in training.epochs[0].figures if one.endswith(_PROCESS)][: len(charts.SERIES)]
    asked = {one.removesuffix(_PROCESS): one for one in process}
    return TrainingCharts(
        losses=None if training.losses is None else _losses(training.losses),
        final=_by_epoch(training, {METRIC_NAMES.get(one, one): one for one in names}, "epochs-final"),
        process=_by_epoch(training, asked, "epochs-process") if asked else None,
    )


def _known(training: Training, name: str) -> bool:
    return all(name in one.figures for one in training.epochs)


def _losses(losses: Losses) -> tuple[Markup, Sequence[str]]:
    series: dict[str, Sequence[float]] = {"total": losses.total}
    if losses.process is not None:
        series |= {"final question": losses.final, "process questions, mean": losses.process}
    what = (
        f"Loss over {losses.steps[-1]} steps: the total goes from {losses.total[0]:.3f}"
        f" to {losses.total[-1]:.3f}"
    )
    return charts.lines(losses.steps, series, "losses", what, marker=""), list(series)


def _by_epoch(training: Training, named: Mapping[str, str], name: str) -> tuple[Markup, Sequence[str]]:
    series = {
        called: [one.figures.get(metric) for one in training.epochs] for called, metric in named.items()
    }
    what = (
        f"Figures on the validation posts by epoch; epoch {training.kept} is kept."
        " The table below has all figures."
    )
    across = [float(one.number) for one in training.epochs]
    return charts.lines(across, series, name, what, share=True, kept=training.kept), list(series)

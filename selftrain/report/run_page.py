"""The page of a run: `gather` reads its figures as plain data out of the folder, `render` draws them.

A run that is under way, or was killed, has fewer figures: what is missing is None or empty, and the page
says so in a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from agents.trust import Trust
from selftrain._util.types import Interval, Json
from selftrain.data.run_posts import TaskWords, task_words
from selftrain.engine.mapping import StageRun
from selftrain.errors import RunStateError
from selftrain.models.metrics import counts_of, estimates, histogram, precision_recall, reliability
from selftrain.report.left_out import Quarantine, read_quarantine
from selftrain.report.post_history import JudgedPosts
from selftrain.report.posterior_figures import PosteriorFigures, gather_posterior
from selftrain.report.status import RunStatus, Summary, score, status_after, summarise
from selftrain.report.verdict_browser import UNFINISHED, Browser, gather_verdicts
from selftrain.review.estimates import ReviewedBatch, reviewed_batches
from selftrain.rounds import AgentCounts, Cost, RoundResult, SplitMetrics, replay, total_cost
from selftrain.store import atomic
from selftrain.store.run_dir import RunFolder
from selftrain.store.scores import PrecisionRecall, ReliabilityDiagram, numbered, read_scores
from selftrain.web import charts
from selftrain.web.charts import ChartPanel, legend
from selftrain.web.html import isolated, render_page

HISTOGRAM = 20
TRUST = "trust.json"
# part of the loss in metrics.json -> what it is
LOSS_PARTS = {
    "loss": "total", "pn": "labelled posts", "soft": "agreed posts", "unlabelled": "divergent posts",
}  # fmt: skip
COST_NAMES = {
    "calls": "calls", "stored": "from the store", "failed": "failed", "prompt": "prompt tokens",
    "cached": "of them cached", "image": "of them images", "completion": "completion tokens",
    "seconds": "seconds",
}  # fmt: skip


class FinalSplit(NamedTuple):
    """The best model on one split: "validation" or "test"."""

    name: str
    metrics: SplitMetrics
    # posts by true class (rows) and the model's (columns), in the order of the task's classes
    confusion: Sequence[Sequence[int]]
    estimates: Mapping[str, Interval]  # metric -> value and 95 % interval
    precision_recall: PrecisionRecall | None  # none without scores
    reliability: ReliabilityDiagram | None
    # posts by a class's predicted probability, in `HISTOGRAM` equal bins: its own, and the others;
    # None without scores
    histogram: tuple[Sequence[int], Sequence[int]] | None


class RunPage(NamedTuple):
    """All that the page shows."""

    name: str  # the folder's
    simulated: bool
    state: str  # one sentence: what comes next, or why nothing does
    finished: bool  # whether nothing comes next
    last_written: str | None  # when the last round was finished, in UTC; None without one
    task: TaskWords
    environment: Mapping[str, Any]  # environment.json
    summary: Summary | None  # none before round 0 is finished, as `final` is empty then
    rounds: Sequence[RoundResult]
    truth_known: bool  # whether some round knows the truth of its candidates
    trust: Trust  # the agents on posts of known label; empty without trust.json
    behaviour: Mapping[str, AgentCounts]  # what each did on the candidates of all rounds
    cost: Cost | None  # of all rounds; None for agents that call nobody
    stages: Sequence[StageRun]  # what ran where, over all rounds
    final: Sequence[FinalSplit]
    quarantine: Quarantine
    recipe: Mapping[str, Json]  # section -> its keys; what stands outside of any comes first, under ""
    posterior: PosteriorFigures | None  # what it came to; None where the run decides by another rule
    verdicts: Browser | None  # none when no round has verified a post
    reviews: Sequence[ReviewedBatch]  # what people's reviews say of the labels; empty without any


# ---- reading ------------------------------------------------------------------------------------------


def gather(folder: RunFolder) -> RunPage:
    """Read everything that the page shows."""
    recipe, environment = folder.recipe(), folder.environment()
    state, rounds = replay(folder)
    summary = summarise(rounds) if rounds else None
    status = status_after(folder, state, rounds)
    task = task_words(folder, folder.class_names())
    outcomes = {row.number: row.outcome for row in rounds}
    if rounds and (folder.round_path(len(rounds)) / "verdicts.jsonl").exists():
        outcomes[len(rounds)] = UNFINISHED  # written whole before the round's training: worth reading already
    judged = JudgedPosts(folder, outcomes)
    verdicts = gather_verdicts(judged, outcomes, task.classes)
    cost = total_cost(rounds)
    outside = {key: value for key, value in recipe.items() if not isinstance(value, dict)}
    return RunPage(
        name=folder.path.resolve().name,
        simulated=environment.simulated or (summary is not None and summary.simulated),
        state=_state(status),
        finished=status.stopped is not None,
        last_written=_last_written(folder, len(rounds)),
        task=task,
        environment=environment.record,
        summary=summary,
        rounds=rounds,
        truth_known=any(one.sets.candidates.precision is not None for one in rounds),
        trust=_read_trust(folder),
        behaviour=_behaviour(rounds),
        cost=cost if cost.calls or cost.stored or cost.failed else None,
        stages=list(_stages(rounds)),
        final=[] if summary is None else list(_final(folder, rounds[summary.best_round], task.classes)),
        quarantine=read_quarantine(folder.path / "quarantine.jsonl"),
        recipe={"": outside} | {key: value for key, value in recipe.items() if isinstance(value, dict)},
        posterior=gather_posterior(state, rounds, judged),
        verdicts=verdicts if verdicts.table.shown else None,
        reviews=reviewed_batches(folder),
    )


def _state(status: RunStatus) -> str:
    following = status.finished
    if status.stopped is not None:
        return f"Finished: {status.stopped}." + (f" But {status.untaken}." if status.untaken else "")
    if status.waiting is not None:
        return f"Waiting for people: {status.waiting}."
    if status.held:
        return f"Under way: round {following} was being worked on when this page was drawn."
    return f"Stopped before round {following} was finished: the command that began the run goes on."


def _last_written(folder: RunFolder, finished: int) -> str | None:
    if not finished:
        return None
    written = (folder.round_path(finished - 1) / "metrics.json").stat().st_mtime
    return datetime.fromtimestamp(written, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _read_trust(folder: RunFolder) -> Trust:
    file = folder.path / TRUST
    if not file.exists():
        return Trust({}, {}, simulated=False)
    try:
        return Trust.from_json(folder.read_json(file))
    except (KeyError, TypeError, AttributeError) as error:
        raise RunStateError(f"{file} is incomplete ({error!r}): the run folder is damaged") from error


def _behaviour(rounds: Sequence[RoundResult]) -> dict[str, AgentCounts]:
    """Return role -> the sum over the rounds."""
    total: dict[str, AgentCounts] = {}
    for role, counts in (item for one in rounds for item in one.agents.items()):
        known = total.get(role, AgentCounts())
        total[role] = AgentCounts(*(a + b for a, b in zip(known, counts, strict=True)))
    return total


def _stages(rounds: Sequence[RoundResult]) -> Iterator[StageRun]:
    """Yield each stage, once for every place where it ran, over all rounds."""
    found: dict[tuple[str, str], StageRun] = {}
    for one in (one for row in rounds for one in row.stages):
        known = found.get((one.stage, one.where), one._replace(posts=0, seconds=0.0))
        found[one.stage, one.where] = known._replace(
            posts=known.posts + one.posts, seconds=known.seconds + one.seconds
        )
    yield from found.values()


def _final(folder: RunFolder, best: RoundResult, classes: Sequence[str]) -> Iterator[FinalSplit]:
    numbers = numbered(classes)
    scores = read_scores(folder.round_path(best.number), numbers) or {}
    order = [numbers.index(name) for name in classes]
    for name, split in (("validation", best.validation), ("test", best.test)):
        if split is not None:
            one = scores.get(name)
            drawn = (
                (precision_recall(one), reliability(one), histogram(one, HISTOGRAM)) if one else (None,) * 3
            )
            confusion = [[split.confusion[true][given] for given in order] for true in order]
            yield FinalSplit(name, split, confusion, estimates(counts_of(split)), *drawn)


# ---- drawing ------------------------------------------------------------------------------------------


def render(page: RunPage) -> str:
    """Return the page as HTML."""
    rounds = page.rounds
    verified = [row for row in rounds if row.number]
    values = page._asdict() | {
        "roles": list(dict.fromkeys([*page.trust.agents, *page.behaviour])),
        "cost_names": COST_NAMES,
        "curve": charts.rounds_curve([charts.RoundPoint(r.number, r.kept, *score(r)[:2]) for r in rounds])
        if rounds
        else None,
        "set_panels": list(_set_panels(page, verified)) if verified else [],
        "posterior_panels": list(_posterior_panels(page.posterior)) if page.posterior else [],
        "training_panels": list(_training_panels(page)) if rounds else [],
        "model_panels": list(_model_panels(page)),
        "agent_charts": dict(_agent_charts(page.trust)),
    }
    scripts = ("page.js", "table.js", "verdicts.js") if page.verdicts else ()
    return render_page("report.html.j2", values, folder=Path(__file__).parent, scripts=scripts).html


def _set_panels(page: RunPage, rounds: Sequence[RoundResult]) -> Iterator[ChartPanel]:
    numbers, kept = [row.number for row in rounds], [row.kept for row in rounds]
    classes = page.task.classes
    whose = "the posterior's" if page.posterior else "the classifier's"
    names = rounds[0].sets._fields
    sets = {name: [row.sets[place] for row in rounds] for place, name in enumerate(names)}
    for which in ("consistent", "divergent"):
        parts = _few({name: [one.by_class.get(name, 0) for one in sets[which]] for name in classes})
        sizes = [f"round {n} {one.posts}" for n, one in zip(numbers, sets[which], strict=True)]
        what = f"Posts of the {which} set by round, by {whose} class: {', '.join(sizes[-20:])}"
        chart = charts.stacked_bars(numbers, list(parts.values()), kept, which, what)
        yield ChartPanel(f"{which.capitalize()} posts", f"by round and {whose} class", chart, legend(parts))
    if page.truth_known:
        series = {name: [one.precision for one in found] for name, found in sets.items()}
        what = "Share of right labels by round, among candidates, consistent and divergent posts"
        chart = charts.lines(numbers, series, "precision", what, share=True)
        yield ChartPanel("Right labels", f"share of {whose} labels that are true", chart, legend(series))


def _few(parts: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Return as many parts as there are colours; the rarest classes of more are drawn as one."""
    room = len(charts.SERIES)
    if len(parts) <= room:
        return dict(parts)
    common = sorted(parts, key=lambda name: -sum(parts[name]))[: room - 1]
    others = [sum(counts) for counts in zip(*(parts[n] for n in parts if n not in common), strict=True)]
    return {name: parts[name] for name in parts if name in common} | {"other classes": others}


def _posterior_panels(found: PosteriorFigures) -> Iterator[ChartPanel]:
    rows = found.thresholds
    at = [row.at for row in rows]
    series: dict[str, list[float | None]] = {"consistent": [row.posts / found.posts for row in rows]}
    if found.known:
        series["right of these"] = [row.right for row in rows]
    what = f"Share of {found.posts} judged posts that would be consistent, by threshold"
    chart = charts.lines(at, series, "thresholds", what, share=True, kept=found.threshold)
    kept = ("line faint-line dash", f"threshold of this run, {found.threshold:.2f}")
    yield ChartPanel("Consistent by threshold", "share of judged posts", chart, [*legend(series), kept])
    if found.calibration is not None:
        dots = [(one.confidence, one.accuracy, one.count) for one in found.calibration.bins]
        what = "How often the posterior's label is right, by its probability"
        under = f"how often its label is right, on {found.known:,} posts of known truth"
        yield ChartPanel("Calibration", under, charts.reliability_chart([dots], "posterior", what))


def _training_panels(page: RunPage) -> Iterator[ChartPanel]:
    rounds = page.rounds
    learned = [row.training for row in rounds]
    parts = {
        "labelled": [sum(one.labelled.values()) for one in learned],
        "agreed": [sum(one.agreed.values()) for one in learned],
        "divergent": [one.divergent for one in learned],
    }
    what = "Posts that each round was trained on: labelled, agreed and divergent"
    numbers, kept = [row.number for row in rounds], [row.kept for row in rounds]
    chart = charts.stacked_bars(numbers, list(parts.values()), kept, "training", what)
    yield ChartPanel("Trained on", "posts of each round's training set", chart, legend(parts))
    known = [row for row in rounds if row.curve]
    if series := _loss_series([row.curve[-1].loss for row in known]):
        what = "Parts of the loss at the end of each round's training"
        chart = charts.lines([row.number for row in known], series, "loss-rounds", what)
        yield ChartPanel("Loss by round", "at the end of its training", chart, legend(series))
    best = rounds[page.summary.best_round if page.summary else 0]
    if len(best.curve) > 1 and (series := _loss_series([one.loss for one in best.curve])):
        what = f"Parts of the loss over the epochs of round {best.number}"
        chart = charts.lines([one.epoch for one in best.curve], series, "loss-epochs", what, marker="")
        yield ChartPanel("Loss by epoch", f"in round {best.number}, the best", chart, legend(series))


def _loss_series(losses: Sequence[Mapping[str, float]]) -> dict[str, list[float | None]]:
    """Return what it is called -> a value for each, for the parts that occur."""
    series = {called: [one.get(part) for one in losses] for part, called in LOSS_PARTS.items()}
    return {called: values for called, values in series.items() if any(v is not None for v in values)}


def _model_panels(page: RunPage) -> Iterator[ChartPanel]:
    final, classes = page.final, page.task.classes
    # what is said of one class: of two it is the positive one, of more all of them together
    own, other = classes if len(classes) == 2 else ("each class", "the others")
    if curves := {one.name: one.precision_recall for one in final if one.precision_recall is not None}:
        drawn = [(one.recall, one.precision) for one in curves.values()]
        chart = charts.precision_recall_chart(
            drawn, "precision-recall", "Precision by recall of the best model"
        )
        under = isolated("of {}, over all thresholds", own)
        yield ChartPanel("Precision and recall", under, chart, legend(curves))
    if diagrams := {one.name: one.reliability for one in final if one.reliability is not None}:
        dots = [
            [(one.confidence, one.accuracy, one.posts) for one in found.bins] for found in diagrams.values()
        ]
        what = "Share of posts of a class by the probability that the best model gave it"
        chart = charts.reliability_chart(dots, "reliability", what)
        words = "on the line, the model is as sure as it is right; a dot's size follows its posts"
        yield ChartPanel("Reliability", words, chart, legend(diagrams))
    # the test split, where there is one: the model was chosen on validation
    for split in [one for one in final if one.histogram is not None][-1:]:
        what = f"Posts of each class by the probability that the best model gave, {split.name}"
        chart = charts.histogram_chart(*(split.histogram or ([], [])), "histogram", what)
        under = isolated(f"{split.name} posts by probability of {{}}", own)
        sides = legend([f"{own}, upwards", f"{other}, downwards"])
        yield ChartPanel("Where the scores lie", under, chart, sides)


def _agent_charts(trust: Trust) -> Iterator[tuple[str, ChartPanel]]:
    for number, (role, one) in enumerate(trust.agents.items(), 1):
        if one.reliability is not None:
            dots = [(b.confidence, b.accuracy, b.count) for b in one.reliability.bins]
            what = f"How often agent {number} was right, by the probability it gave"
            chart = charts.reliability_chart([dots], f"agent-{number}", what)
            under = (
                "how often it was right, by the probability it gave; on the line it is as sure as it is right"
            )
            yield role, ChartPanel("Calibration", under, chart)


def write_report(folder: RunFolder, out: Path | None = None) -> Path:
    """Render the report anew, `report.html` in the run folder or `out`, and return its path."""
    path = folder.path / "report.html" if out is None else out
    atomic.write_text(path, render(gather(folder)))
    return path

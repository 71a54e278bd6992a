"""Read everything that the report shows, as plain data out of a run's folder; nothing here draws.

A run that is under way, or was killed, has fewer figures: what is missing is None or empty, and the page
says so in a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from agents.trust import AgentTrust, Trust
from selftrain._util.types import Json
from selftrain.data.task import load_task
from selftrain.errors import RunStateError, TaskError
from selftrain.models.intervals import Estimate, counts_of, estimates
from selftrain.report.left_out import Quarantine, read_quarantine
from selftrain.report.status import Summary, is_held, missing_reviews, summarise, why_stopped
from selftrain.report.verdict_browser import UNFINISHED, Browser, gather_verdicts
from selftrain.review.estimates import ReviewedBatch, reviewed_batches
from selftrain.rounds import AgentCounts, Cost, RoundResult, SplitMetrics, finished_rounds, total_cost
from selftrain.store.run_dir import RunFolder
from selftrain.store.scores import (
    PrecisionRecall,
    ReliabilityDiagram,
    histogram,
    precision_recall,
    read_scores,
    reliability,
)
from selftrain.web.pictures import BUDGET

HISTOGRAM = 20
COST = Cost._fields
TRUST = "trust.json"


class TaskText(NamedTuple):
    """The task in words; `policy` is None and `meanings` are empty when its file is gone."""

    name: str
    positive: str
    negative: str
    policy: str | None
    meanings: Mapping[str, str]


class FinalSplit(NamedTuple):
    """The best model on one split.

    Attributes:
        name: "validation" or "test".
        metrics: Its figures.
        estimates: Metric -> value and 95 % interval.
        precision_recall, reliability: None without scores.
        histogram: Posts by predicted probability, in `HISTOGRAM` equal bins: of the positive class, and of
            the negative; None without scores.
    """

    name: str
    metrics: SplitMetrics
    estimates: Mapping[str, Estimate]
    precision_recall: PrecisionRecall | None
    reliability: ReliabilityDiagram | None
    histogram: tuple[Sequence[int], Sequence[int]] | None


class MeasuredAgent(NamedTuple):
    """One agent on posts of known label.

    Attributes:
        trust: Its figures.
        answers: The columns of the confusion: class names, then what stands for no label.
        confusion: (true class, count by answer), one a class.
    """

    trust: AgentTrust
    answers: Sequence[str]
    confusion: Sequence[tuple[str, Sequence[int]]]


class AgentPart(NamedTuple):
    """One agent: on posts of known label, and over the candidates of all rounds; either may be missing."""

    role: str
    measured: MeasuredAgent | None
    behaviour: AgentCounts | None


class Agents(NamedTuple):
    """All agents.

    Attributes:
        parts: By role.
        kappa: (pair, Cohen's kappa or None).
        described: What answered and how, as environment.json has it.
        measured: Whether there is a trust.json.
        calibrated: Whether it says how well the agents' probabilities hold.
    """

    parts: Sequence[AgentPart]
    kappa: Sequence[tuple[str, float | None]]
    described: Mapping[str, Any]
    measured: bool
    calibrated: bool


class Costs(NamedTuple):
    """What the agents' calls came to: (round, cost), and the sum; `COST` names the figures."""

    rounds: Sequence[tuple[int, Cost]]
    total: Cost


class RunPage(NamedTuple):
    """All that the template draws.

    Attributes:
        name: The folder's.
        state: One sentence: what comes next, or why nothing does.
        finished: Whether nothing comes next.
        last_written: When the last round was finished, in UTC; None without one.
        summary: None before round 0 is finished, as `final` is empty then.
        truth_known: Whether some round knows the truth of its candidates.
        verdicts: None when no round has verified a post.
        reviews: What people's reviews say of the labels; empty without any.
    """

    name: str
    simulated: bool
    state: str
    finished: bool
    last_written: str | None
    task: TaskText
    environment: Mapping[str, Any]
    summary: Summary | None
    rounds: Sequence[RoundResult]
    truth_known: bool
    agents: Agents
    cost: Costs | None
    final: Sequence[FinalSplit]
    quarantine: Quarantine
    recipe: Mapping[str, Json]
    verdicts: Browser | None
    reviews: Sequence[ReviewedBatch]


def gather(folder: RunFolder, *, picture_budget: int = BUDGET) -> RunPage:
    """Read everything that the page shows.

    Args:
        folder: A run, in whatever state.
        picture_budget: Characters of all its pictures together.

    Raises:
        RunStateError: No run folder, or a damaged one.
    """
    recipe, environment = folder.recipe(), folder.environment()
    rounds = finished_rounds(folder)
    summary = summarise(rounds) if rounds else None
    task = _task(folder, recipe)
    state, done = _state(folder, len(rounds))
    return RunPage(
        name=folder.path.resolve().name,
        simulated=environment.simulated or (summary is not None and summary.simulated),
        state=state,
        finished=done,
        last_written=_last_written(folder, len(rounds)),
        task=task,
        environment=environment.record,
        summary=summary,
        rounds=rounds,
        truth_known=any(one.sets.candidates.precision is not None for one in rounds),
        agents=_agents(folder, rounds),
        cost=_costs(rounds),
        final=[] if summary is None else _final(folder, rounds[summary.best_round], task),
        quarantine=read_quarantine(folder.path / "quarantine.jsonl"),
        recipe=_sections(recipe),
        verdicts=_verdicts(folder, rounds, task, picture_budget),
        reviews=reviewed_batches(folder),
    )


def _state(folder: RunFolder, finished: int) -> tuple[str, bool]:
    stopped = why_stopped(folder) if finished else None
    if stopped is not None:
        return f"Finished: {stopped}.", True
    missing = missing_reviews(folder) if finished else None
    if missing is not None:
        return f"Waiting for people: {missing}.", False
    if is_held(folder):
        return f"Under way: round {finished} was being worked on when this page was drawn.", False
    return f"Stopped before round {finished} was finished: the command that began the run goes on.", False


def _last_written(folder: RunFolder, finished: int) -> str | None:
    if not finished:
        return None
    written = (folder.round_path(finished - 1) / "metrics.json").stat().st_mtime
    return datetime.fromtimestamp(written, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _task(folder: RunFolder, recipe: Json) -> TaskText:
    name, (positive, negative) = folder.environment().task, folder.class_names()
    # the run's own copy: the original may have moved, or say something else by now
    copied, original = folder.path / "task.toml", recipe.get("data", {}).get("task", "")
    try:
        task = load_task(copied if copied.exists() else Path(original))
    except TaskError:  # the file went, or was changed: the run's own names are enough
        return TaskText(name, positive, negative, None, {})
    return TaskText(
        name, positive, negative, task.policy, {one.name: one.meaning for one in task.classes}
    )  # fmt: skip


def _agents(folder: RunFolder, rounds: Sequence[RoundResult]) -> Agents:
    """Read trust.json, if it is there, and sum up the rounds.

    Raises:
        RunStateError: A damaged folder.
    """
    trust = _read_trust(folder)
    measured = {role: _measured(one) for role, one in trust.agents.items()}
    behaviour: dict[str, AgentCounts] = {}
    for role, counts in (item for one in rounds for item in one.agents.items()):
        known = behaviour.get(role, AgentCounts())
        behaviour[role] = AgentCounts(*(a + b for a, b in zip(known, counts, strict=True)))
    return Agents(
        parts=[
            AgentPart(role, measured.get(role), behaviour.get(role))
            for role in dict.fromkeys([*measured, *behaviour])
        ],
        kappa=list(trust.kappa.items()),
        described=folder.environment().agents,
        measured=bool(measured),
        calibrated=any(one.trust.reliability is not None for one in measured.values()),
    )


def _read_trust(folder: RunFolder) -> Trust:
    """Read how the agents did on posts of known label before the last round; empty without trust.json.

    Raises:
        RunStateError: A damaged file.
    """
    file = folder.path / TRUST
    if not file.exists():
        return Trust({}, {}, simulated=False)
    try:
        return Trust.from_json(folder.read_json(file))
    except (KeyError, TypeError, AttributeError) as error:
        raise RunStateError(f"{file} is incomplete ({error!r}): the run folder is damaged") from error


def _measured(one: AgentTrust) -> MeasuredAgent:
    answers = list(dict.fromkeys(answer for row in one.confusion.values() for answer in row))
    confusion = [(true, [row.get(answer, 0) for answer in answers]) for true, row in one.confusion.items()]
    return MeasuredAgent(one, answers, confusion)


def _costs(rounds: Sequence[RoundResult]) -> Costs | None:
    known = [(one.number, one.cost) for one in rounds if one.cost is not None]
    if not any(cost.calls or cost.stored or cost.failed for _, cost in known):
        return None  # agents that call nobody
    return Costs(known, total_cost(rounds))


def _final(folder: RunFolder, best: RoundResult, task: TaskText) -> list[FinalSplit]:
    path = folder.round_path(best.number)
    scores = read_scores(path, positive=task.positive, negative=task.negative) or {}
    return [
        FinalSplit(
            name=name,
            metrics=split,
            estimates=estimates(counts_of(split)),
            precision_recall=None if (one := scores.get(name)) is None else precision_recall(one),
            reliability=None if one is None else reliability(one),
            histogram=None if one is None else histogram(one, HISTOGRAM),
        )
        for name, split in (("validation", best.validation), ("test", best.test))
        if split is not None
    ]


def _sections(recipe: Mapping[str, Any]) -> dict[str, Json]:
    """Return section -> its keys; what stands outside of any section comes first, under ""."""
    outside = {key: value for key, value in recipe.items() if not isinstance(value, dict)}
    sections = {key: value for key, value in recipe.items() if isinstance(value, dict)}
    return ({"": outside} if outside else {}) | sections


def _verdicts(
    folder: RunFolder, rounds: Sequence[RoundResult], task: TaskText, budget: int
) -> Browser | None:  # fmt: skip
    outcomes = {row.number: row.outcome for row in rounds if row.number}
    following = len(rounds)
    if following and (folder.round_path(following) / "verdicts.jsonl").exists():
        outcomes[following] = UNFINISHED  # written whole before the round's training: worth reading already
    found = gather_verdicts(folder, outcomes, (task.positive, task.negative), budget=budget)
    return found if found.table.shown else None

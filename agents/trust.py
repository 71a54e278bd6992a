"""How far agents can be trusted: their answers on posts of known label.

An agent that learned from these posts is judged out of fold (`Panel.predict_out_of_fold`), never on what it
has seen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from agents.ask.answer_schema import guard_hint
from agents.errors import JudgmentError, NearChanceError, ReviewError
from agents.judgment import Judgment, LabelledPost, State, rounded
from agents.panel import Panel


class Proportion(NamedTuple):
    """A proportion and its 95 % Wilson interval, all in [0, 1]."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class TrustBin:
    """Judgments whose stated probability lies in (low, high]: how sure they were, and how often right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class AgentReliability:
    """Whether the probability that an agent gives its label is how often that label is right."""

    brier: float  # mean of (probability - right)^2, in [0, 1]; .25 is a coin that says one half
    # expected calibration error: mean distance of confidence and accuracy, by bins of equal width, weighted
    # by their counts
    ece: float
    bins: tuple[TrustBin, ...]  # the bins that hold any judgment

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> AgentReliability:
        """Return the reliability of a record."""
        return cls(record["brier"], record["ece"], tuple(TrustBin(**one) for one in record["bins"]))


@dataclass(frozen=True, slots=True)
class AgentTrust:
    """One agent on posts of known label."""

    # true class -> answer -> count; the answers are the classes, "abstain" and "failed", which stand under
    # `ABSTAINED` and `FAILED` so that no class name can meet them
    confusion: Mapping[str, Mapping[str, int]]
    answered: int  # posts that got a label
    accuracy: Proportion  # right answers among those answered
    # mean over the classes of the right answers among those answered; its interval joins the classes' Wilson
    # intervals by the variances they stand for
    balanced: Proportion
    # of the stated probabilities; None when no judgment states one
    reliability: AgentReliability | None = None

    @property
    def near_chance(self) -> bool:
        """Whether the interval of the balanced accuracy holds chance, 1 / classes, or lies below it."""
        return self.balanced.low <= 1 / len(self.confusion)


@dataclass(frozen=True, slots=True)
class Trust:
    """All agents, and Cohen's kappa of each pair, "reviewer/user", over the posts that both labelled.

    A kappa is None where fewer than two posts were labelled by both, or where nothing varied.
    """

    agents: Mapping[str, AgentTrust]
    kappa: Mapping[str, float | None]
    simulated: bool

    def to_json(self) -> dict[str, Any]:
        """Return a record of JSON values."""
        record = {
            "simulated": self.simulated,
            "agents": {
                role: {
                    "confusion": one.confusion,
                    "answered": one.answered,
                    "accuracy": one.accuracy._asdict(),
                    "balanced_accuracy": one.balanced._asdict(),
                    "near_chance": one.near_chance,
                    "calibration": asdict(one.reliability) if one.reliability else None,
                }
                for role, one in self.agents.items()
            },
            "kappa": self.kappa,
        }
        return {key: rounded(value) for key, value in record.items()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Trust:
        """Return the figures of a record that `to_json` made.

        Raises:
            KeyError, TypeError: The record is incomplete.
        """
        agents = {
            role: AgentTrust(
                one["confusion"], one["answered"], Proportion(**one["accuracy"]),
                Proportion(**one["balanced_accuracy"]),
                AgentReliability.from_json(one["calibration"]) if one["calibration"] else None,
            )
            for role, one in record["agents"].items()
        }  # fmt: skip
        return cls(agents, record["kappa"], record["simulated"])


ABSTAINED, FAILED = "(abstain)", "(failed)"


Answers = Mapping[str, Sequence[Judgment]]
"""Role -> its step-0 judgments on the labelled posts, in their order."""


def trust(panel: Panel, labelled: Sequence[LabelledPost]) -> tuple[Trust, Answers]:
    """Return figures on `labelled`, every one of which has a label, and the answers that they are made of.

    Raises:
        JudgmentError: No post, or a post without a label.
        ReviewError: A role that did not judge every post once.
    """
    truth = [post.label for post in labelled]
    if not truth or None in truth:
        raise JudgmentError(f"{len(truth)} posts, {truth.count(None)} of them without a label")
    known = [str(label) for label in truth]
    answers = {role: list(given) for role, given in panel.predict_out_of_fold(labelled).items()}
    for role, given in answers.items():
        if len(given) != len(known):
            raise ReviewError(
                f"{role} gave {len(given)} judgments on {len(known)} posts of known label: expected one on"
                f" each, in their order, of {type(panel).__qualname__}.predict_out_of_fold"
            )
    figures = Trust(
        agents={role: _agent(known, given) for role, given in answers.items()},
        kappa={f"{a}/{b}": kappa(answers[a], answers[b]) for a, b in combinations(answers, 2)},
        simulated=panel.simulated,
    )
    return figures, answers


def _agent(truth: Sequence[str], answers: Sequence[Judgment]) -> AgentTrust:
    classes = sorted(set(truth))
    given = [_answer(judgment) for judgment in answers]
    columns = [*dict.fromkeys([*classes, *sorted(set(given) - {ABSTAINED, FAILED})]), ABSTAINED, FAILED]
    confusion = {t: dict.fromkeys(columns, 0) for t in classes}
    for true, answer in zip(truth, given, strict=True):
        confusion[true][answer] += 1
    totals = {t: sum(row.values()) - row[ABSTAINED] - row[FAILED] for t, row in confusion.items()}
    right = sum(confusion[t][t] for t in classes)
    return AgentTrust(
        confusion,
        sum(totals.values()),
        wilson(right, sum(totals.values())),
        _mean([wilson(confusion[t][t], totals[t]) for t in classes]),
        reliability(truth, answers),
    )


def _answer(judgment: Judgment) -> str:
    if judgment.label is not None:
        return judgment.label
    return FAILED if judgment.state is State.FAILED else ABSTAINED


class Stated(Protocol):
    """A label, and how probable it is said to be: a judgment, or a posterior."""

    @property
    def label(self) -> str | None: ...
    @property
    def probability(self) -> float | None: ...


def reliability(truth: Sequence[str], answers: Sequence[Stated], bins: int = 10) -> AgentReliability | None:
    """Return the calibration of the stated probabilities; None when none is stated."""
    stated = [
        (answer.probability, answer.label == true)
        for true, answer in zip(truth, answers, strict=True)
        if answer.probability is not None
    ]
    if not stated:
        return None
    probs, right = np.array(stated, np.float64).T
    # bins are open below and closed above, but for the first, which holds 0 too
    places = np.maximum(np.ceil(probs * bins).astype(int) - 1, 0)
    rows = tuple(
        TrustBin(
            int(place) / bins, (int(place) + 1) / bins, int((places == place).sum()),
            float(probs[places == place].mean()), float(right[places == place].mean()),
        )
        for place in np.unique(places)
    )  # fmt: skip
    ece = sum(row.count * abs(row.confidence - row.accuracy) for row in rows) / len(stated)
    return AgentReliability(float(np.mean((probs - right) ** 2)), ece, rows)


def wilson(right: int, total: int) -> Proportion:
    """Return `right` / `total` with its 95 % Wilson interval; [0, 1] around one half when `total` is 0."""
    from scipy.stats import binomtest

    if total == 0:
        return Proportion(0.5, 0.0, 1.0)
    interval = binomtest(right, total).proportion_ci(method="wilson")
    return Proportion(right / total, float(interval.low), float(interval.high))


def _mean(parts: Sequence[Proportion]) -> Proportion:
    """Return the mean of independent proportions; each side's distances add up in squares.

    Source: Newcombe's hybrid score interval (Statistics in Medicine 1998).
    """
    count = len(parts)
    value = sum(part.value for part in parts) / count
    below = math.sqrt(sum((part.value - part.low) ** 2 for part in parts)) / count
    above = math.sqrt(sum((part.high - part.value) ** 2 for part in parts)) / count
    return Proportion(value, max(0.0, value - below), min(1.0, value + above))


def kappa(first: Sequence[Judgment], second: Sequence[Judgment]) -> float | None:
    """Return Cohen's kappa over posts that both labelled; None below two such posts or without variation."""
    both = zip(first, second, strict=True)
    return cohen_kappa([(a.label, b.label) for a, b in both if a.label is not None and b.label is not None])


def cohen_kappa(pairs: Sequence[tuple[str, ...]]) -> float | None:
    """Return Cohen's kappa (1960) of pairs of labels; None below two pairs, or without variation."""
    if len(pairs) < 2 or len({label for pair in pairs for label in pair}) < 2:
        return None
    # sklearn's takes seconds to import, for which every reviewer of the page would wait
    first, second = (Counter(labels) for labels in zip(*pairs, strict=True))
    agreed = len(pairs) * sum(a == b for a, b in pairs)
    by_chance = sum(count * second[label] for label, count in first.items())
    return (agreed - by_chance) / (len(pairs) ** 2 - by_chance)


OnNearChance = Literal["stop", "continue"]


def check_agents(
    panel: Panel, labelled: Sequence[LabelledPost], on_near_chance: OnNearChance
) -> tuple[Trust, Answers]:
    """Return the figures of a panel fitted on the labelled posts, and the answers they are made of.

    Raises:
        NearChanceError: An agent is near chance and `on_near_chance` is "stop".
    """
    figures, answers = trust(panel, labelled)
    guessing = [role for role, agent in figures.agents.items() if agent.near_chance]
    if guessing and on_near_chance == "stop":
        raise NearChanceError(_advice(figures, answers, guessing))
    return figures, answers


def _advice(figures: Trust, answers: Answers, guessing: Sequence[str]) -> str:
    chance = 1 / max(len(agent.confusion) for agent in figures.agents.values())
    lines = []
    for role in guessing:
        agent = figures.agents[role]
        value, low, high = agent.balanced
        lines.append(
            f"  {role}: balanced accuracy {value:.2f} ({low:.2f} to {high:.2f}) on {len(answers[role])}"
            f" labelled posts, {agent.answered} of them answered; {chance:.2f} is guessing"
        )
        faults = Counter(one.rationale for one in answers[role] if one.state is State.FAILED)
        for fault, count in faults.most_common(1):
            told = fault + guard_hint(fault)
            lines.append(f"    {faults.total()} answers could not be used, {count} of them: {told}")
    return (
        "near chance on posts of known label:\n" + "\n".join(lines) + "\nTheir word is worth nothing here,"
        " so nothing of the pool was judged. Try a stronger model, say more in the task's policy, look at a"
        " prompt with `selftrain agents prompts RECIPE --post ID`, or label more posts if the interval is"
        ' merely wide. To go on all the same: agents.on_near_chance = "continue"'
    )

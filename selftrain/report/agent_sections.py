"""What a run tells of its agents: measured on labelled posts, and how they behaved round by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from agents.trust import AgentTrust, Trust
from selftrain.errors import RunStateError
from selftrain.rounds import AgentCounts, RoundResult
from selftrain.store.run_dir import RunFolder
from selftrain.store.scores import ReliabilityBin, ReliabilityDiagram

TRUST = "trust.json"


class MeasuredAgent(NamedTuple):
    """One agent on posts of known label.

    Attributes:
        trust: Its figures.
        answers: The columns of the confusion: class names, then what stands for no label.
        confusion: (true class, count by answer), one a class.
        reliability: Its calibration, or None.
    """

    trust: AgentTrust
    answers: Sequence[str]
    confusion: Sequence[tuple[str, Sequence[int]]]
    reliability: ReliabilityDiagram | None


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


def gather_agents(folder: RunFolder, rounds: Sequence[RoundResult]) -> Agents:
    """Read trust.json, if it is there, and sum up the rounds.

    Raises:
        RunStateError: A damaged folder.
    """
    trust = read_trust(folder)
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
        calibrated=any(one.reliability is not None for one in measured.values()),
    )


def read_trust(folder: RunFolder) -> Trust:
    """The agents on posts of known label, before the last round's candidates; empty without trust.json.

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
    if one.reliability is None:
        return MeasuredAgent(one, answers, confusion, None)
    bins = [
        ReliabilityBin(held.low, held.high, held.count, held.confidence, held.accuracy)
        for held in one.reliability.bins
    ]
    return MeasuredAgent(one, answers, confusion, ReliabilityDiagram(bins, one.reliability.ece))

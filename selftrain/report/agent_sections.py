"""What a run tells of its agents: measured on labelled posts, and how they behaved round by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from selftrain._util.types import Json
from selftrain.store.run_dir import RunFolder
from selftrain.store.scores import ReliabilityBin, ReliabilityDiagram

TRUST = "trust.json"
COUNTS = (
    "label", "abstain", "failed", "reconsidered", "changed_mind", "changed_for_better", "changed_for_worse",
)  # fmt: skip


class MeasuredAgent(NamedTuple):
    """One agent on posts of known label.

    Attributes:
        answers: The columns of the confusion: class names, then what stands for no label.
        confusion: (true class, count by answer), one a class.
        accuracy, balanced: value, low and high, as trust.json has them.
        near_chance: Whether it may be guessing.
        brier: Mean squared error of its probabilities, or None.
        reliability: Its calibration, or None.
    """

    answers: Sequence[str]
    confusion: Sequence[tuple[str, Sequence[int]]]
    accuracy: Mapping[str, float]
    balanced: Mapping[str, float]
    near_chance: bool
    brier: float | None
    reliability: ReliabilityDiagram | None


class Behaviour(NamedTuple):
    """One agent over all rounds: sums of `COUNTS`; None where no round counted it.

    Attributes:
        judged: Posts that it judged.
        right, truth_known: Of the posts whose truth is known; `right` of them got the right last label.
    """

    judged: int
    counts: Mapping[str, int | None]
    right: int
    truth_known: int


class AgentPart(NamedTuple):
    """One agent; either part may be missing."""

    role: str
    measured: MeasuredAgent | None
    behaviour: Behaviour | None


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
    described: Json
    measured: bool
    calibrated: bool


def gather_agents(folder: RunFolder, rounds: Sequence[Json], environment: Json) -> Agents:
    """Read trust.json, if it is there, and sum up the rounds.

    Raises:
        RunStateError: A damaged folder.
    """
    file: Path = folder.path / TRUST
    trust = folder.read_json(file) if file.exists() else {}
    measured = {role: _measured(one) for role, one in (trust.get("agents") or {}).items()}
    seen = dict.fromkeys(role for one in rounds for role in one.get("agents") or {})
    behaviour = {role: _behaviour([one.get("agents") or {} for one in rounds], role) for role in seen}
    return Agents(
        parts=[
            AgentPart(role, measured.get(role), behaviour.get(role))
            for role in dict.fromkeys([*measured, *seen])
        ],
        kappa=list((trust.get("kappa") or {}).items()),
        described=environment.get("agents") or {},
        measured=bool(measured),
        calibrated=any(one.reliability is not None for one in measured.values()),
    )


def _measured(one: Json) -> MeasuredAgent:
    confusion: Json = one["confusion"]
    answers = list(dict.fromkeys(answer for row in confusion.values() for answer in row))
    calibration = one.get("calibration")
    return MeasuredAgent(
        answers=answers,
        confusion=[(true, [int(row.get(a, 0)) for a in answers]) for true, row in confusion.items()],
        accuracy=one["accuracy"],
        balanced=one["balanced_accuracy"],
        near_chance=bool(one["near_chance"]),
        brier=calibration["brier"] if calibration else None,
        reliability=_reliability(calibration) if calibration else None,
    )


def _reliability(calibration: Json) -> ReliabilityDiagram:
    bins = [
        ReliabilityBin(one["low"], one["high"], int(one["count"]), one["confidence"], one["accuracy"])
        for one in calibration["bins"]
        if one["count"]
    ]
    return ReliabilityDiagram(bins, float(calibration["ece"]))


def _behaviour(rounds: Sequence[Json], role: str) -> Behaviour:
    known = [one[role] for one in rounds if role in one]
    counts = {
        name: sum(int(one[name]) for one in known) if all(name in one for one in known) else None
        for name in COUNTS
    }
    return Behaviour(
        judged=sum(int(one.get(state, 0)) for one in known for state in ("label", "abstain", "failed")),
        counts=counts,
        right=sum(int(one.get("right", 0)) for one in known),
        truth_known=sum(int(one.get("truth_known", 0)) for one in known),
    )

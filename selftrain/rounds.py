"""A finished round as a typed value, the replay of finished rounds, and the grown dataset.

`RoundResult` is what the loop yields, what metrics.json holds, and what report, status and comparison read.
Nothing here needs features or torch: a run is read in the time that its files take.
"""

from __future__ import annotations

import functools
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents.judgment import Judgment, Verdict, opinions
from agents.trust import Trust
from losses.base import Group
from selftrain._util.types import Json, LabelArray
from selftrain.data.columns import SPLIT
from selftrain.data.corpus import Corpus, TrainingSet
from selftrain.data.posts import Post
from selftrain.engine.mapping import StageRun
from selftrain.errors import RunStateError
from selftrain.state import LastVerdict, LoopState
from selftrain.store.checksums import digest_of
from selftrain.store.run_dir import RunFolder

# ---- the parts of a round -----------------------------------------------------------------------------


class SplitMetrics(NamedTuple):
    """How good the round's model is on one split."""

    posts: int  # of the split
    # macro_f1, accuracy: in [0, 1]
    macro_f1: float
    accuracy: float
    # precision, recall: of the positive of two classes, in [0, 1]; of more the mean over all of them
    precision: float
    recall: float
    brier: float  # mean squared error of the same classes' probabilities
    # [K][K] posts: true class by row, the model's by column, the positive one last
    confusion: Sequence[Sequence[int]]
    # area under the ROC curve, of the same classes, each against the rest; None where one is missing
    auc: float | None = None


class SetCounts(NamedTuple):
    """The candidates of a round, or its consistent or divergent ones."""

    posts: int  # how many
    # of the labels that the posts would be learned with: the classifier's, or a posterior's where one decides
    by_class: Mapping[str, int]  # class name -> posts that have it
    precision: float | None  # share of right ones where truth is known; None where it is not


class CandidateSets(NamedTuple):
    """What became of a round's candidates."""

    candidates: SetCounts
    consistent: SetCounts
    divergent: SetCounts


class AgentCounts(NamedTuple):
    """One agent over a round's candidates: states of its last judgments, changes of mind, how often right."""

    # label, abstain, failed: posts by the state of the last judgment
    label: int = 0
    abstain: int = 0
    failed: int = 0
    reconsidered: int = 0  # posts judged a second time
    # posts whose last label is not the first; where the truth is known, `changed_for_better` and
    # `changed_for_worse` of them
    changed_mind: int = 0
    changed_to_classifier: int = 0  # of those the ones whose last label is the classifier's
    changed_for_better: int = 0
    changed_for_worse: int = 0
    truth_known: int = 0  # posts with a last label whose truth is known; `right` of them got the right one
    right: int = 0


class AgentGain(NamedTuple):
    """What one agent's answer about a post is worth, when all others have answered."""

    bits: float  # mean gain in bits; a label that could be either of two classes has 1
    # low, high: its 95 % interval, over the labelled posts
    low: float
    high: float
    open: float  # bits that classifier and the other agents leave open

    def to_json(self) -> Json:
        """Return a record of JSON values."""
        return {name: round(value, 6) for name, value in self._asdict().items()}

    def __str__(self) -> str:
        return (
            f"{self.bits:+.3f} bits a post ({self.low:+.3f} to {self.high:+.3f}) of the {self.open:.3f} that"
            " are open without it"
        )


class GroupCounts(NamedTuple):
    """Posts that the round's model learned from."""

    # labelled, agreed: class name -> posts, the positive class first
    labelled: Mapping[str, int]
    agreed: Mapping[str, int]
    divergent: int  # posts without a label


class CurvePoint(NamedTuple):
    """An epoch: validation macro-F1, and the loss with its parts by name."""

    epoch: int
    macro_f1: float
    loss: Mapping[str, float]


class PseudoLabels(NamedTuple):
    """The pseudo-labels of the grown dataset; `precision` is None where no truth is known."""

    posts: int
    truth_known: int
    precision: float | None


class HumanCounts(NamedTuple):
    """Labels of people: all in use, and those that the round was the first to use."""

    posts: int
    new: int


class Cost(NamedTuple):
    """What the agents of a round asked of models."""

    calls: int = 0  # answers that a model gave, unusable ones included
    stored: int = 0  # answers that were there already and cost nothing
    failed: int = 0  # questions without a usable answer
    # prompt, cached, image, completion: tokens; the second and third are parts of the first
    prompt: int = 0
    cached: int = 0
    image: int = 0
    completion: int = 0
    seconds: float = 0.0  # sum over the calls, which run side by side

    @property
    def tokens(self) -> int:
        """Tokens read and written."""
        return self.prompt + self.completion

    def plus(self, other: Cost) -> Cost:
        """Return both together."""
        return Cost._make(a + b for a, b in zip(self, other, strict=True))


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """A finished round: the content of metrics.json."""

    number: int  # 0 is the labels alone
    kept: bool  # False when the round was rolled back
    score: float  # what rounds are compared by: validation macro-F1, or mean held-out log-likelihood
    simulated: bool  # whether the agents' answers were drawn from known labels
    # validation, test: metrics of the round's model; `test` is None without labels there
    validation: SplitMetrics
    test: SplitMetrics | None
    sets: CandidateSets  # what became of the candidates
    # accepted posts whose label the best classifier no longer gave: unlabelled again
    flipped: tuple[str, ...]
    agents: Mapping[str, AgentCounts]  # role -> what it did
    training: GroupCounts  # whom the model learned from
    # class set against the rest -> its prior among the divergent posts in the loss, None where the loss knows
    # none; empty in round 0
    theta: Mapping[str, float | None]
    best_epoch: int  # the epoch whose weights the model has
    curve: tuple[CurvePoint, ...]  # its training
    human: HumanCounts | None  # None where nobody is asked
    trust: Trust | None  # the agents on posts of known label; None in round 0
    # role -> what its answers add to the classifier's and the others', on posts of known label
    gains: Mapping[str, AgentGain]
    cost: Cost | None  # None in round 0
    grown: int  # posts of the grown dataset after the round
    pseudo_labels: PseudoLabels  # those in it that classifier and agents gave
    seconds: float  # time spent, without what `stages` has of the time before
    stages: tuple[StageRun, ...] = ()  # what was done where, in its order

    @property
    def consistent(self) -> int:
        """Candidates that the classifier and the agents agree on."""
        return self.sets.consistent.posts

    @property
    def divergent(self) -> int:
        """Candidates without agreement."""
        return self.sets.divergent.posts

    @property
    def pseudo_label_precision(self) -> float | None:
        """Precision of the round's consistent set, or None where truth is not known."""
        return self.sets.consistent.precision

    @property
    def outcome(self) -> str:
        """In words."""
        return "labels alone" if self.number == 0 else "kept" if self.kept else "rolled back"

    def to_json(self) -> Json:
        """Return a record of JSON values."""
        splits = {"validation": self.validation} | ({"test": self.test} if self.test else {})
        return {
            "round": self.number,
            "kept": self.kept,
            "score": self.score,
            "simulated": self.simulated,
            **{
                name: {key: value for key, value in split._asdict().items() if value is not None}
                for name, split in splits.items()
            },
            **{name: counts._asdict() for name, counts in self.sets._asdict().items()},
            "flipped": list(self.flipped),
            "agents": {role: counts._asdict() for role, counts in self.agents.items()},
            "training": self.training._asdict(),
            "theta": dict(self.theta),
            "best_epoch": self.best_epoch,
            "curve": [point._asdict() for point in self.curve],
            **({"human": self.human._asdict()} if self.human else {}),
            **({"trust": self.trust.to_json()} if self.trust else {}),
            **({"gains": {role: one.to_json() for role, one in self.gains.items()}} if self.gains else {}),
            **({"cost": self.cost._asdict()} if self.cost else {}),
            "grown": self.grown,
            "pseudo_labels": self.pseudo_labels._asdict(),
            "seconds": self.seconds,
            "stages": [one.to_json() for one in self.stages],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> RoundResult:
        """Return the round of a record; KeyError, TypeError, AttributeError: one that is incomplete."""
        sets = [SetCounts(**record[name]) for name in CandidateSets._fields]
        return cls(
            number=record["round"],
            kept=record["kept"],
            score=record["score"],
            simulated=record["simulated"],
            validation=SplitMetrics(**record["validation"]),
            test=SplitMetrics(**record["test"]) if "test" in record else None,
            sets=CandidateSets(*sets),
            flipped=tuple(record["flipped"]),
            agents={role: AgentCounts(**counts) for role, counts in record["agents"].items()},
            training=GroupCounts(**record["training"]),
            theta=record["theta"],
            best_epoch=record["best_epoch"],
            curve=tuple(CurvePoint(**point) for point in record["curve"]),
            human=HumanCounts(**record["human"]) if "human" in record else None,
            trust=Trust.from_json(record["trust"]) if "trust" in record else None,
            gains={role: AgentGain(**one) for role, one in record.get("gains", {}).items()},
            cost=Cost(**record["cost"]) if "cost" in record else None,
            grown=record["grown"],
            pseudo_labels=PseudoLabels(**record["pseudo_labels"]),
            seconds=record["seconds"],
            stages=tuple(StageRun.from_json(one) for one in record.get("stages", ())),
        )

    def __str__(self) -> str:
        parts = [f"round {self.number:>2}", f"validation macro-F1 {_scores(self.validation)}"]
        if self.test:
            parts.append(f"test {_scores(self.test)}")
        if self.number:
            parts.append(f"consistent {self.consistent}, divergent {self.divergent}")
            if self.pseudo_label_precision is not None:
                parts.append(f"precision {self.pseudo_label_precision:.3f}")
        parts.append("kept" if self.kept else "rolled back")
        if self.simulated:
            parts.append("SIMULATED agents")
        return " | ".join(parts)


def _scores(split: SplitMetrics) -> str:
    return f"{split.macro_f1:.3f}" + ("" if split.auc is None else f", AUC {split.auc:.3f}")


def trust_lines(finished: RoundResult, before: RoundResult | None) -> Iterator[str]:
    """Yield how good the agents are on the labelled posts; nothing where the round before had the same."""
    if not finished.trust or (before is not None and before.trust == finished.trust):
        return
    for role, agent in finished.trust.agents.items():
        value, low, high = agent.balanced
        chance = ", MAY BE GUESSING" if agent.near_chance else ""
        yield (
            f"{role} on the labelled posts: balanced accuracy {value:.2f} ({low:.2f} to {high:.2f}),"
            f" {agent.answered} answered{chance}"
        )
    for pair, kappa in finished.trust.kappa.items():
        yield f"agreement of {pair} beyond chance (kappa): {'none' if kappa is None else f'{kappa:.2f}'}"
    yield from gain_lines(finished.gains)


def gain_lines(gains: Mapping[str, AgentGain]) -> Iterator[str]:
    """Yield what each agent's answers add to the others', and whether one agent would do; {}: nothing."""
    for role, gain in gains.items():
        yield f"{role} adds {gain}"
    if len(gains) < 2:
        return
    least = min(gains, key=lambda role: gains[role].bits)
    others = " and ".join(role for role in gains if role != least)
    if gains[least].low > 0:
        yield f"each adds to the other: {least}, who adds least, is worth a call"
    elif len(gains) == 2:
        yield (
            f"what {least} adds to {others} cannot be told from nothing: one agent may do (agents.count = 1"
            " asks the first), for half the calls"
        )
    else:
        yield f"what {least} adds to {others} cannot be told from nothing: leave it out, and its calls"


def cost_lines(finished: RoundResult) -> Iterator[str]:
    """Yield what a round cost, and what came of the cross-review; nothing for agents that cost nothing."""
    cost = finished.cost
    if not cost or not (cost.calls or cost.stored or cost.failed):
        return
    cached = f" ({cost.cached / cost.prompt:.0%} cached)" if cost.prompt else ""
    yield (
        f"{cost.calls:,} calls and {cost.stored:,} answers from the store; tokens: {cost.prompt:,}"
        f" read{cached}, {cost.completion:,} written; {cost.failed} without a usable answer"
    )
    for role, agent in finished.agents.items():
        better, worse = agent.changed_for_better, agent.changed_for_worse
        known = f"; {better} for the better and {worse} for the worse" if agent.truth_known else ""
        yield (
            f"{role} changed its mind {agent.changed_mind} times in {agent.reconsidered},"
            f" {agent.changed_to_classifier} of them to the classifier's label{known}"
        )


# ---- counting what a round did ------------------------------------------------------------------------


def precision(corpus: Corpus, labels: Iterable[tuple[str, str]]) -> float | None:
    """Return the share of right labels, (post id, class), where truth is known; None where none is."""
    truths = ((_truth(corpus, post_id), label) for post_id, label in labels)
    right = [truth == label for truth, label in truths if truth is not None]
    return sum(right) / len(right) if right else None


def _truth(corpus: Corpus, post_id: str) -> str | None:
    value = int(corpus.truth[corpus.position_of[post_id]])
    return corpus.classes[value] if value >= 0 else None


def candidate_sets(corpus: Corpus, verdicts: Sequence[Verdict]) -> CandidateSets:
    """Count candidates, consistent and divergent ones, with their precision where truth is known."""
    consistent = [verdict for verdict in verdicts if verdict.consistent]
    divergent = [verdict for verdict in verdicts if not verdict.consistent]
    return CandidateSets(*(_set_counts(corpus, some) for some in (verdicts, consistent, divergent)))


def _set_counts(corpus: Corpus, verdicts: Sequence[Verdict]) -> SetCounts:
    counts = Counter(verdict.label for verdict in verdicts)
    return SetCounts(
        len(verdicts),
        {name: counts[name] for name in corpus.shown},
        precision(corpus, [(verdict.post_id, verdict.label) for verdict in verdicts]),
    )


def agent_counts(corpus: Corpus, verdicts: Iterable[Verdict]) -> dict[str, AgentCounts]:
    """Return role -> what the agent did over a round's candidates."""
    counts: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        truth = _truth(corpus, verdict.post_id)
        for role, judgments in verdict.by_agent().items():
            counts.setdefault(role, Counter()).update(_behaviour(judgments, verdict.classifier_label, truth))
    return {role: AgentCounts(**count) for role, count in counts.items()}


def _behaviour(judgments: Sequence[Judgment], classifier: str, truth: str | None) -> dict[str, int]:
    """Return what one agent's judgments on one post add to its counts."""
    judgments = opinions(judgments)
    first, last = judgments[0], judgments[-1]
    changed = first.label != last.label
    counts = {str(last.state): 1, "reconsidered": int(len(judgments) > 1), "changed_mind": int(changed)}
    counts["changed_to_classifier"] = int(changed and last.label == classifier)
    if truth is not None and last.label is not None:
        counts |= {"truth_known": 1, "right": int(last.label == truth)}
    if truth is not None and changed:
        # no label is not right either: an agent that finds the right one has changed for the better
        was, now = first.label == truth, last.label == truth
        counts |= {"changed_for_better": int(now and not was), "changed_for_worse": int(was and not now)}
    return counts


def group_counts(corpus: Corpus, training: TrainingSet) -> GroupCounts:
    """Count the posts that a model learned from, by what is known of them."""

    def by_class(own: Group, other: Group) -> dict[str, int]:
        some = training.groups[np.isin(training.groups[:, 0], (own, other))]
        kinds = np.arange(len(corpus.classes))
        rows = corpus.groups(kinds, own, other)
        counts = [int((some == row).all(1).sum()) for row in rows]
        return {name: counts[corpus.classes.index(name)] for name in corpus.shown}

    return GroupCounts(
        by_class(Group.POSITIVE, Group.NEGATIVE),
        by_class(Group.AGREED_POSITIVE, Group.AGREED_NEGATIVE),
        int((training.groups[:, 0] == Group.DIVERGENT).sum()),
    )


def pseudo_labels(corpus: Corpus, state: LoopState) -> PseudoLabels:
    """Count the pseudo-labels of grown.jsonl, and the right ones where truth is known."""
    labels = [(post_id, last.verdict.label) for post_id, last in state.accepted.items()]
    known = sum(_truth(corpus, post_id) is not None for post_id, _ in labels)
    return PseudoLabels(len(labels), known, precision(corpus, labels))


def labels_known(labels: LabelArray) -> bool:
    """Whether a split can be measured on."""
    return bool(len(labels)) and bool(np.all(labels >= 0))


def total_cost(rounds: Iterable[RoundResult]) -> Cost:
    """Return what all rounds cost together."""
    total = Cost()
    for one in rounds:
        total = total if one.cost is None else total.plus(one.cost)
    return total


# ---- reading what is finished -------------------------------------------------------------------------


def finished_rounds(folder: RunFolder) -> list[RoundResult]:
    """Return every finished round, round 0 (the labels alone) first; RunStateError: a damaged folder."""
    rounds = []
    for number, record in enumerate(folder.round_records()):
        try:
            rounds.append(RoundResult.from_json(record))
        except (KeyError, TypeError, AttributeError) as error:
            raise RunStateError(
                f"{folder.round_path(number) / 'metrics.json'} is incomplete ({error!r}): the run folder is"
                " damaged"
            ) from error
    return rounds


def replay(folder: RunFolder) -> tuple[LoopState, list[RoundResult]]:
    """Return the state after the finished rounds of `folder`, and those rounds; RunStateError as they."""
    state, rounds = LoopState(), finished_rounds(folder)
    for one in rounds:
        path = folder.round_path(one.number)
        if one.number and not (path / "verdicts.jsonl").exists():
            raise RunStateError(f"{path} has no verdicts.jsonl: the run folder is damaged")
        state = state.apply_human_labels(folder.human_labels(one.number))
        verdicts = folder.verdicts(one.number)
        if one.kept:
            state = state.keep(state.merge(verdicts, one.flipped, folder.revised(one.number)))
        else:
            state = state.roll_back(verdicts)
    return state, rounds


def check_pool(corpus: Corpus, state: LoopState, folder: RunFolder) -> None:
    """Raise RunStateError where a post that was judged, or labelled by people, is not in the pool."""
    pool = set(corpus.pool.tolist())
    for post_id in (*state.last_verdicts, *state.divergent, *state.human):
        if corpus.position_of.get(post_id) not in pool:
            what = "decision" if post_id in state.human else "verdict"
            raise RunStateError(
                f"{folder.path} has a {what} on {post_id!r}, which is not in the pool: the folder is damaged,"
                " or the posts are not those that the run began with"
            )


# ---- the grown dataset --------------------------------------------------------------------------------


def grown_rows(corpus: Corpus, state: LoopState, root: Path) -> Iterator[Json]:
    """Yield the grown dataset: labelled posts, people's labels and accepted posts by round, with provenance.

    Image paths are written relative to `root`.
    """

    def by_round(item: tuple[str, Any]) -> tuple[int, int]:
        return item[1].round, corpus.position_of[item[0]]

    for post in (corpus.posts[position] for position in corpus.labelled):
        yield _grown_row(post, root, post.label, {"source": "label"})
    for post_id, used in sorted(state.human.items(), key=by_round):
        provenance = {"source": "human", "round": used.round, **used.given.provenance()}
        post = corpus.posts[corpus.position_of[post_id]]
        yield _grown_row(post, root, used.given.label, provenance)
    for post_id, last in sorted(state.accepted.items(), key=by_round):
        post = corpus.posts[corpus.position_of[post_id]]
        yield _grown_row(post, root, last.verdict.label, _provenance(last))


def human_label_from_json(row: Json) -> tuple[str, str] | None:
    """Return id and label of a line of the grown dataset where people gave it, else None."""
    return (row["id"], row["label"]) if row["provenance"]["source"] == "human" else None


def _grown_row(post: Post, root: Path, label: str | None, provenance: Json) -> Json:
    images = [os.path.relpath(image, root) for image in post.images]
    row: Json = {"id": post.id, "text": post.text, "images": images}
    if images:  # found again wherever the file is carried, if they are still the same
        provenance |= {"pictures": {"folder": str(root), "sha256": [*map(_file_digest, post.images)]}}
    if post.video is not None:
        row["video"] = os.path.relpath(post.video, root)
    if post.process:
        row["process"] = dict(post.process)
    # the split that a post was in is no property of it any more: an accepted post of the pool trains
    row |= {name: _writable(value) for name, value in post.extra.items() if name != SPLIT}
    return row | {"label": label, "provenance": provenance}


@functools.cache  # once a process: the file is written anew after every round
def _file_digest(path: Path) -> str:
    try:
        return digest_of(path)
    except OSError:  # gone since it was encoded: nothing can be found by this
        return ""


def _writable(value: object) -> object:
    """Return a value of a manifest as JSON has it: dates of Parquet and infinite numbers as texts."""
    if isinstance(value, dict):
        return {str(name): _writable(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_writable(one) for one in value]
    plain = (
        value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    )
    return value if plain else str(value)


def _provenance(accepted: LastVerdict) -> Json:
    verdict = accepted.verdict
    last = {role: judgments[-1] for role, judgments in verdict.by_agent().items()}
    agreed = (role for role, judgment in last.items() if judgment.label == verdict.label)
    same = verdict.label == verdict.classifier_label
    return {
        "source": "pseudo-label",
        "round": accepted.round,
        "classifier_probability": verdict.classifier_probability,
        "agents": {
            role: {"probability": one.probability, "step": one.step, "source": one.source}
            for role, one in last.items()
        },
        # without agents the one judgment is the classifier's own: it is named once
        "agreed": list(dict.fromkeys([*(["classifier"] if same else []), *agreed])),
        **({"posterior": verdict.posterior.to_json()} if verdict.posterior else {}),
    }

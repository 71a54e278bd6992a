"""One finished round: its figures, as written to metrics.json and shown to the user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from losses.groups import Group
from selftrain.classifier import TrainingSet
from selftrain.corpus import Corpus, LabelArray
from selftrain.ledger import Ledger, precision
from selftrain.trainer import Model

Json = dict[str, Any]


@dataclass(frozen=True)
class Round:
    """A finished round.

    Attributes:
        figures: The content of metrics.json.
    """

    figures: Json

    @property
    def number(self) -> int:
        """0 is the labels alone."""
        return int(self.figures["round"])

    @property
    def kept(self) -> bool:
        """False when the round was rolled back."""
        return bool(self.figures["kept"])

    @property
    def validation(self) -> Json:
        """Metrics on the validation split, see `metrics.evaluate`."""
        return dict(self.figures["validation"])

    @property
    def test(self) -> Json | None:
        """Metrics on the test split, or None without one."""
        test = self.figures.get("test")
        return dict(test) if test else None

    @property
    def consistent(self) -> int:
        """Candidates that the classifier and both agents agree on."""
        return int(self.figures["consistent"]["posts"])

    @property
    def divergent(self) -> int:
        """Candidates without agreement."""
        return int(self.figures["divergent"]["posts"])

    @property
    def pseudo_label_precision(self) -> float | None:
        """Precision of the round's consistent set, or None where truth is not known."""
        value = self.figures["consistent"]["precision"]
        return None if value is None else float(value)

    def __str__(self) -> str:
        parts = [f"round {self.number:>2}", f"validation macro-F1 {self.validation['macro_f1']:.3f}"]
        if self.test:
            parts.append(f"test {self.test['macro_f1']:.3f}")
        if self.number:
            parts.append(f"consistent {self.consistent}, divergent {self.divergent}")
            if self.pseudo_label_precision is not None:
                parts.append(f"precision {self.pseudo_label_precision:.3f}")
        parts.append("kept" if self.kept else "rolled back")
        if self.figures["simulated"]:
            parts.append("SIMULATED agents")
        return " | ".join(parts)


def trust_lines(finished: Round, before: Round | None) -> Iterator[str]:
    """How good the agents are on posts of known label; nothing where the round before said the same."""
    trusted = finished.figures.get("trust")
    if not trusted or (before is not None and before.figures.get("trust") == trusted):
        return
    for role, agent in trusted["agents"].items():
        value, low, high = (agent["balanced_accuracy"][name] for name in ("value", "low", "high"))
        chance = ", MAY BE GUESSING" if agent["near_chance"] else ""
        yield (
            f"{role} on the labelled posts: balanced accuracy {value:.2f} ({low:.2f} to {high:.2f}),"
            f" {agent['answered']} answered{chance}"
        )
    for pair, kappa in trusted["kappa"].items():
        yield f"agreement of {pair} beyond chance (kappa): {'none' if kappa is None else f'{kappa:.2f}'}"


def cost_lines(finished: Round) -> Iterator[str]:
    """What a round cost, and what came of the cross-review; nothing for agents that cost nothing."""
    cost = finished.figures.get("cost")
    if not cost or not (cost["calls"] or cost["stored"]):
        return
    cached = f" ({cost['cached'] / cost['prompt']:.0%} cached)" if cost["prompt"] else ""
    yield (
        f"{cost['calls']:,} calls and {cost['stored']:,} answers from the store; tokens: {cost['prompt']:,}"
        f" read{cached}, {cost['completion']:,} written; {cost['failed']} without a usable answer"
    )
    for role, agent in finished.figures["agents"].items():
        better, worse = agent["changed_for_better"], agent["changed_for_worse"]
        known = f", {better} for the better and {worse} for the worse" if agent["truth_known"] else ""
        yield f"{role} changed its mind {agent['changed_mind']} times in {agent['reconsidered']}{known}"


def model_figures(model: Model, training: TrainingSet, theta: float | None) -> Json:
    """What was trained on, and how the training went."""
    counts = Counter(training.groups.tolist())
    return {
        "training": {group.name.lower(): counts[int(group)] for group in Group},
        "theta": theta,
        "best_epoch": model.best_epoch,
        "curve": [{"epoch": p.epoch, "macro_f1": p.macro_f1, "loss": p.parts} for p in model.curve],
    }


def verdict_figures(
    corpus: Corpus, positions: Sequence[int], records: Sequence[Mapping[str, Any]], returned: Sequence[int]
) -> Json:
    """Counts and, where truth is known, precision of candidates, consistent and divergent sets."""
    values = {corpus.positive: 1, corpus.negative: 0}
    labels = [values[record["classifier_label"]] for record in records]
    agreed = [bool(record["consistent"]) for record in records]
    return {
        "candidates": _set_figures(corpus, positions, labels),
        "consistent": _set_figures(
            corpus,
            [p for p, yes in zip(positions, agreed, strict=True) if yes],
            [v for v, yes in zip(labels, agreed, strict=True) if yes],
        ),
        "divergent": _set_figures(
            corpus,
            [p for p, yes in zip(positions, agreed, strict=True) if not yes],
            [v for v, yes in zip(labels, agreed, strict=True) if not yes],
        ),
        "returned": [corpus.posts[p].id for p in returned],
        "agents": _agent_figures(corpus, positions, records),
    }


def pseudo_label_figures(corpus: Corpus, ledger: Ledger) -> Json:
    """The pseudo-labels of grown.jsonl: how many, and the share of right ones where truth is known."""
    positions = sorted(ledger.accepted)
    values = [ledger.accepted[position].value for position in positions]
    known = sum(int(corpus.truth[position] >= 0) for position in positions)
    share = precision(positions, values, corpus.truth)
    return {"posts": len(positions), "truth_known": known, "precision": share}


def _set_figures(corpus: Corpus, positions: Sequence[int], labels: Sequence[int]) -> Json:
    counts = Counter(labels)
    return {
        "posts": len(positions),
        "by_class": {corpus.positive: counts[1], corpus.negative: counts[0]},
        "precision": precision(positions, labels, corpus.truth),
    }


def _agent_figures(corpus: Corpus, positions: Sequence[int], records: Sequence[Mapping[str, Any]]) -> Json:
    """For each role: states of its last judgments, changes of mind and which way, how often it was right.

    Which way and how often right are told of posts whose truth is known.
    """
    values = {corpus.positive: 1, corpus.negative: 0}
    figures: dict[str, Counter[str]] = {}
    for position, record in zip(positions, records, strict=True):
        steps: dict[str, list[Mapping[str, Any]]] = {}
        for judgment in record["judgments"]:
            steps.setdefault(judgment["agent"], []).append(judgment)
        for role, judgments in steps.items():
            count = figures.setdefault(role, Counter())
            first, last = judgments[0], judgments[-1]
            count[last["state"]] += 1
            count["reconsidered"] += len(judgments) > 1
            count["changed_mind"] += first["label"] != last["label"]
            truth = int(corpus.truth[position])
            if truth >= 0 and last["label"] is not None:
                count["truth_known"] += 1
                count["right"] += values.get(last["label"]) == truth
            if truth >= 0 and first["label"] != last["label"]:
                # no label is not right either: an agent that finds the right one has changed for the better
                was, now = (values.get(one["label"]) == truth for one in (first, last))
                count["changed_for_better"] += now and not was
                count["changed_for_worse"] += was and not now
    names = (
        "label", "abstain", "failed", "reconsidered", "changed_mind", "changed_for_better",
        "changed_for_worse", "truth_known", "right",
    )  # fmt: skip
    return {role: {name: count[name] for name in names} for role, count in figures.items()}


def labels_known(labels: LabelArray) -> bool:
    """Whether a split can be measured on."""
    return bool(len(labels)) and bool(np.all(labels >= 0))

"""One finished round: its figures, as written to metrics.json and shown to the user."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from losses.groups import Group
from selftrain._util.types import Json, LabelArray
from selftrain.data.corpus import Corpus
from selftrain.errors import RunStateError
from selftrain.models.classifier import TrainingSet
from selftrain.models.trainer import Model
from selftrain.state import Human, Ledger, Pseudo, precision
from selftrain.store.run_dir import RunFolder


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


def replay(folder: RunFolder, corpus: Corpus) -> tuple[Ledger, list[Round]]:
    """The ledger after the finished rounds of `folder`, and those rounds.

    Raises:
        RunStateError: A record that is damaged, or that names a post that the pool does not have.
    """
    try:
        return _replay(folder, corpus)
    except (KeyError, TypeError) as error:
        raise RunStateError(
            f"{folder.path} has a round whose metrics.json or verdicts.jsonl is incomplete ({error!r}): the"
            " folder is damaged"
        ) from error


def _replay(folder: RunFolder, corpus: Corpus) -> tuple[Ledger, list[Round]]:
    position_of = pool_positions(corpus)
    values = {corpus.positive: 1, corpus.negative: 0}
    ledger, rounds = Ledger(), []
    for figures in folder.finished_rounds():
        if figures["round"] and not (folder.round_path(figures["round"]) / "verdicts.jsonl").exists():
            raise RunStateError(f"{folder.round_path(figures['round'])} has no verdicts.jsonl: it is damaged")
        score = float(figures["validation"]["macro_f1"])
        decisions = folder.human(figures["round"])
        ledger = ledger.decided(placed(decisions, position_of, folder), values)
        verdicts = [
            (_position(v["post_id"], position_of, folder), v) for v in folder.verdicts(figures["round"])
        ]
        if figures["kept"]:
            returned = [_position(i, position_of, folder) for i in figures.get("returned", [])]
            ledger = ledger.keep(ledger.merge(verdicts, values, returned), score)
        else:
            ledger = ledger.roll_back(position for position, _ in verdicts)
        rounds.append(Round(figures))
    return ledger, rounds


def pool_positions(corpus: Corpus) -> dict[str, int]:
    """Post id -> position, of the pool."""
    return {corpus.posts[int(p)].id: int(p) for p in corpus.pool}


def placed(
    decisions: Iterable[Mapping[str, Any]], position_of: Mapping[str, int], folder: RunFolder
) -> list[tuple[int, Mapping[str, Any]]]:
    """Rows of human.jsonl with the positions of their posts.

    Raises:
        RunStateError: A post that the pool does not have.
    """
    return [(_position(row["id"], position_of, folder, "decision"), row) for row in decisions]


def _position(post_id: str, position_of: Mapping[str, int], folder: RunFolder, what: str = "verdict") -> int:
    if post_id not in position_of:
        raise RunStateError(
            f"{folder.path} has a {what} on {post_id!r}, which is not in the pool: the folder is damaged, or"
            " the posts are not those that the run began with"
        )
    return position_of[post_id]


def grown_rows(corpus: Corpus, ledger: Ledger, root: Path) -> Iterator[dict[str, Any]]:
    """The grown dataset: labelled posts, then people's labels and accepted posts by round, with provenance.

    Args:
        corpus: The posts.
        ledger: What was accepted.
        root: Image paths are written relative to this folder.
    """
    for position in corpus.labelled:
        row = _post_row(corpus, int(position), root)
        yield row | {"label": corpus.posts[position].label, "provenance": {"source": "label"}}
    for position, human in sorted(ledger.human.items(), key=lambda item: (item[1].round, item[0])):
        row = _post_row(corpus, position, root)
        yield row | {"label": corpus.class_name(human.value), "provenance": _given(human)}
    for position, pseudo in sorted(ledger.accepted.items(), key=lambda item: (item[1].round, item[0])):
        row = _post_row(corpus, position, root)
        yield row | {"label": corpus.class_name(pseudo.value), "provenance": _provenance(pseudo)}


def _post_row(corpus: Corpus, position: int, root: Path) -> dict[str, Any]:
    post = corpus.posts[position]
    images = [os.path.relpath(image, root) for image in post.images]
    row: dict[str, Any] = {"id": post.id, "text": post.text, "images": images}
    if post.process:
        row["process"] = dict(post.process)
    return row


def _given(human: Human) -> dict[str, Any]:
    names = ("reviewers", "contested", "batch", "inclusion", "machine_label")
    return {"source": "human", "round": human.round, **{name: human.record[name] for name in names}}


def _provenance(pseudo: Pseudo) -> dict[str, Any]:
    verdict = pseudo.verdict
    last = {judgment["agent"]: judgment for judgment in verdict["judgments"]}
    return {
        "source": "pseudo-label",
        "round": pseudo.round,
        "classifier_probability": verdict["classifier_probability"],
        "agents": {
            role: {"probability": j["probability"], "step": j["step"], "source": j["source"]}
            for role, j in last.items()
        },
        # without agents the one judgment is the classifier's own: it is named once
        "agreed": list(
            dict.fromkeys(
                ["classifier", *(r for r, j in last.items() if j["label"] == verdict["classifier_label"])]
            )
        ),
    }

"""The loop: select, verify, merge, retrain, validate, keep or roll back; as often as the limits allow.

`self_train` is the whole story; what it calls stands beside it in `stages`, `selection`, `ledger`, `trainer`
and `run.folder`. It is a generator: each finished round is yielded, and whoever stops asking stops the loop.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents.ask.metering import Metered, UsageTotals
from agents.judgment import Accepted, Candidate
from agents.panel import Panel
from agents.trust import OnNearChance, check_agents
from losses.base import RoundLoss
from losses.prior import estimate_prior
from selftrain._util.numeric import sigmoid
from selftrain._util.types import Float32Array, IntArray, Json
from selftrain.data.corpus import Corpus
from selftrain.models.metrics import evaluate
from selftrain.models.trainer import M, Trainer
from selftrain.review.reviewers import People
from selftrain.rounds import (
    Round,
    grown_rows,
    labels_known,
    model_figures,
    placed,
    pool_positions,
    pseudo_label_figures,
    replay,
    verdict_figures,
)
from selftrain.selection import Selection, Shares, select
from selftrain.state import Ledger
from selftrain.store import atomic
from selftrain.store.run_dir import HUMAN, RunFolder
from selftrain.store.scores import Scored, write_scores


class Limits(NamedTuple):
    """When the loop ends.

    Attributes:
        rounds: Most rounds after round 0.
        patience: Rounds rolled back in a row after which it gives up.
        budget: Most candidates verified in all rounds together; None for any number.
    """

    rounds: int = 10
    patience: int = 3
    budget: int | None = None

    def within_budget(self, k: int, judged: int) -> int:
        """`k`, or what the budget leaves of it after `judged` candidates."""
        return k if self.budget is None else min(k, self.budget - judged)


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """Everything that shapes a round; see the recipe for the meaning of each."""

    seed: int = 0
    k: int = 500
    shares: Shares = "equal"
    again: bool = True
    revise: bool = True
    start: str = "pretrained"
    root: Path = Path()
    limits: Limits = field(default_factory=Limits)
    on_near_chance: OnNearChance = "continue"


def self_train(
    corpus: Corpus,
    trainer: Trainer[M],
    panel: Panel,
    *,
    loss: RoundLoss,
    folder: RunFolder,
    settings: LoopSettings,
    people: People | None = None,
) -> Iterator[Round]:
    """Run the loop in `folder`, going on where it stands; rounds finished earlier are yielded first.

    Args:
        corpus: Posts with features.
        trainer: Fits and scores models.
        panel: Judges candidates.
        loss: The loss; its `for_round` fills in what follows from a round's own posts.
        folder: Opened and locked.
        settings: See `LoopSettings`.
        people: Who reviews what the agents cannot agree on; None: nobody. The loop ends before the round for
            which their decisions are missing, see `People.ready`.

    Raises:
        TrainingError, StorageError, AgentError: What was finished is kept; the same call goes on from there.
    """
    # ---- where we stand -----------------------------------------------------------------------------
    ledger, finished = replay(folder, corpus)
    labelled = [corpus.posts[i] for i in corpus.labelled]
    pool = [corpus.posts[i] for i in corpus.pool]
    if finished:
        publish(folder, corpus, ledger, settings.root)
    yield from finished

    # ---- round 0: the labels alone ------------------------------------------------------------------
    if not finished:
        began, path = time.monotonic(), folder.open_round(0)
        training = ledger.training_set(corpus, soft_positive=loss.soft_positive)
        model = trainer.fit(corpus, training, loss=loss, seed=settings.seed, where="round 0", start=None)
        model.save(path / "model.safetensors", {"round": 0})
        figures = measure(trainer, model, corpus, path) | verdict_figures(corpus, [], [], [])
        figures |= model_figures(model, training, None)
        ledger = ledger.keep(ledger, figures["validation"]["macro_f1"])
        yield close_round(
            folder, corpus, ledger, number=0, figures=figures, simulated=panel.simulated, began=began,
            root=settings.root,
        )  # fmt: skip

    judged = sum(int(one.figures["candidates"]["posts"]) for one in finished)
    while why_stop(ledger, corpus, settings, judged) is None:
        number, began = ledger.next_round, time.monotonic()

        # ---- people: labels for posts that the rounds before left divergent ----------------------------
        if people is not None and not people.ready(number):
            return
        path = folder.open_round(number)
        ledger = hear(people, folder, corpus, ledger, path)
        best = trainer.load(folder.round_path(ledger.best_round) / "model.safetensors")

        # ---- select: the most confident open posts; accepted ones it has turned against go back ------
        returned = turned_against(trainer, best, corpus, ledger) if settings.revise else []
        chosen = select(
            trainer.logits(best, corpus, ledger.open_positions(corpus.pool, again=settings.again)),
            settings.limits.within_budget(settings.k, judged), settings.shares,
            positive=corpus.positive, negative=corpus.negative,
        )  # fmt: skip
        candidates = as_candidates(corpus, chosen)
        judged += len(candidates)
        atomic.write_jsonl(path / "candidates.jsonl", (candidate_row(one) for one in candidates))

        # ---- trust: the agents on posts of known label, before the pool is spent on -------------------
        paid_before = spending_of(panel)
        panel.fit(labelled, accepted=as_accepted(corpus, ledger), pool=pool)
        trusted = check_agents(panel, labelled, settings.on_near_chance)
        atomic.write_json(folder.path / "trust.json", trusted)

        # ---- verify: the agents judge alone, then cross-review --------------------------------------
        records = [verdict.to_json() for verdict in panel.verify(candidates)]
        atomic.write_jsonl(path / "verdicts.jsonl", records)

        # ---- merge: consistent posts get soft labels, divergent ones stay unlabelled ----------------
        positions = chosen.positions.tolist()
        values = {corpus.positive: 1, corpus.negative: 0}
        trial = ledger.merge(zip(positions, records, strict=True), values, returned)
        training = trial.training_set(corpus, soft_positive=loss.soft_positive)

        # ---- retrain --------------------------------------------------------------------------------
        trial_loss = loss.for_round(
            training.groups, partial(prior_of_divergent, trainer, best, corpus, trial)
        )
        model = trainer.fit(
            corpus,
            training,
            loss=trial_loss,
            seed=settings.seed + number,
            where=f"round {number}",
            start=best if settings.start == "best" else None,
        )
        model.save(path / "model.safetensors", {"round": number})

        # ---- validate: keep, or roll back ------------------------------------------------------------
        figures = measure(trainer, model, corpus, path) | verdict_figures(
            corpus, positions, records, returned
        )
        figures |= model_figures(model, training, trial_loss.theta)
        figures |= human_figures(people, ledger, number)
        figures |= {"trust": trusted, "cost": spending_of(panel).minus(paid_before).to_json()}
        score = figures["validation"]["macro_f1"]
        ledger = ledger.keep(trial, score) if score > ledger.best_score else ledger.roll_back(positions)
        yield close_round(
            folder, corpus, ledger, number=number, figures=figures, simulated=panel.simulated, began=began,
            root=settings.root,
        )  # fmt: skip

    # ---- what people said since the last round belongs into the grown dataset too --------------------
    if people is not None:
        publish(folder, corpus, hear(people, folder, corpus, ledger), settings.root)


def why_stop(ledger: Ledger, corpus: Corpus, settings: LoopSettings, judged: int = 0) -> str | None:
    """Why there is no further round after `judged` candidates, or None."""
    if ledger.next_round > settings.limits.rounds:
        return f"all {settings.limits.rounds} rounds are done"
    if ledger.rejections >= settings.limits.patience:
        return f"{ledger.rejections} rounds in a row brought no improvement"
    if settings.limits.budget is not None and judged >= settings.limits.budget:
        return f"the budget of {settings.limits.budget} candidates is spent"
    if not len(ledger.open_positions(corpus.pool, again=settings.again)):
        return "no pool post is left to choose from"
    return None


def close_round(
    folder: RunFolder,
    corpus: Corpus,
    ledger: Ledger,
    *,
    number: int,
    figures: Json,
    simulated: bool,
    began: float,
    root: Path,
) -> Round:
    """Make the round final, then move `best` and rewrite the grown dataset."""
    figures = {
        "round": number,
        "kept": ledger.best_round == number,
        "simulated": simulated,
        **figures,
        "grown": len(corpus.labelled) + len(ledger.human) + len(ledger.accepted),
        "pseudo_labels": pseudo_label_figures(corpus, ledger),
        "seconds": round(time.monotonic() - began, 3),
    }
    folder.close_round(number, figures)
    publish(folder, corpus, ledger, root)
    return Round(figures)


def publish(folder: RunFolder, corpus: Corpus, ledger: Ledger, root: Path) -> None:
    """Bring `best` and `grown.jsonl` in line with the finished rounds."""
    folder.publish(ledger.best_round, grown_rows(corpus, ledger, root))


def spending_of(panel: Panel) -> UsageTotals:
    """What the panel has cost so far in this process; agents that cost nothing have spent nothing."""
    return panel.usage() if isinstance(panel, Metered) else UsageTotals()


def measure(trainer: Trainer[M], model: M, corpus: Corpus, path: Path) -> Json:
    """Metrics on the validation split and, where its labels are known, on the test split.

    The scores that they come from are kept in the round's folder `path`: curves and intervals need them.
    """
    splits = {"validation": corpus.validation}
    if labels_known(corpus.labels[corpus.test]):
        splits["test"] = corpus.test
    scored = {
        name: Scored(
            [corpus.posts[i].id for i in positions],
            corpus.labels[positions],
            _logits(trainer, model, corpus, positions),
        )
        for name, positions in splits.items()
    }
    write_scores(path, scored, positive=corpus.positive, negative=corpus.negative)
    return {name: evaluate(one.labels, one.logits) for name, one in scored.items()}


def _logits(trainer: Trainer[M], model: M, corpus: Corpus, positions: IntArray) -> Float32Array:
    parts = [logits for _, logits in trainer.logits(model, corpus, positions)]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def turned_against(trainer: Trainer[M], model: M, corpus: Corpus, ledger: Ledger) -> list[int]:
    """Accepted positions whose pseudo-label the model no longer gives: they are consistent no more."""
    accepted = np.array(sorted(ledger.accepted), dtype=np.int64)
    values = np.array([ledger.accepted[int(p)].value for p in accepted], dtype=np.int8)
    logits = _logits(trainer, model, corpus, accepted)
    return [int(p) for p in accepted[(logits > 0) != (values == 1)]]


def prior_of_divergent(trainer: Trainer[M], model: M, corpus: Corpus, ledger: Ledger) -> float:
    """Share of positives among the divergent posts: they are a selected set, so it is estimated."""
    divergent = np.array(sorted(ledger.divergent), dtype=np.int64)
    if not len(divergent):
        return 0.5  # no divergent post, no unlabelled part: any value gives the same loss
    training_prior = float((corpus.labels[corpus.validation] == 1).mean())
    return estimate_prior(sigmoid(_logits(trainer, model, corpus, divergent)), training_prior)


def as_candidates(corpus: Corpus, chosen: Selection) -> list[Candidate]:
    """The chosen posts as the agents see them: with the classifier's label and its probability."""
    odds = sigmoid(np.abs(chosen.logits))
    return [
        Candidate(corpus.posts[position], corpus.class_name(int(logit > 0)), float(probability))
        for position, logit, probability in zip(chosen.positions, chosen.logits, odds, strict=True)
    ]


def candidate_row(candidate: Candidate) -> Json:
    """A line of candidates.jsonl."""
    return {"id": candidate.post.id, "label": candidate.label, "probability": round(candidate.probability, 6)}


def as_accepted(corpus: Corpus, ledger: Ledger) -> Sequence[Accepted]:
    """The pool posts that the agents may learn from, pseudo-labels first.

    People's labels count as much as labels do, but agents are neither calibrated nor measured on them: these
    are posts on which they could not agree.
    """
    learned = [
        Accepted(corpus.posts[position], corpus.class_name(pseudo.value))
        for position, pseudo in sorted(ledger.accepted.items())
    ]
    return learned + [
        Accepted(corpus.posts[position], corpus.class_name(human.value), weight=1.0)
        for position, human in sorted(ledger.human.items())
    ]


def hear(
    people: People | None, folder: RunFolder, corpus: Corpus, ledger: Ledger, path: Path | None = None
) -> Ledger:
    """The ledger with the decisions that no round has used yet; the same one where there are none.

    Args:
        people: Who decides; None: nobody.
        folder: The run.
        corpus: Its posts.
        ledger: After the rounds so far.
        path: The open folder of the round that uses them, where they are written; None: no round does.

    Raises:
        LedgerError: The reviews cannot be read.
        RunStateError: A decision on a post that is not in the pool.
    """
    if people is None:
        return ledger
    used = {corpus.posts[p].id: corpus.class_name(human.value) for p, human in ledger.human.items()}
    said = people.answers(used)
    if not said:
        return ledger
    decisions = placed(said, pool_positions(corpus), folder)
    if path is not None:
        atomic.write_jsonl(path / HUMAN, said)
    return ledger.decided(decisions, {corpus.positive: 1, corpus.negative: 0})


def human_figures(people: People | None, ledger: Ledger, number: int) -> dict[str, Any]:
    """People's labels in round `number`: all, and those that it was the first to use."""
    if people is None:
        return {}
    new = sum(human.round == number for human in ledger.human.values())
    return {"human": {"posts": len(ledger.human), "new": new}}

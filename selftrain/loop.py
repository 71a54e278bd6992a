"""The loop: select, verify, merge, retrain, validate, keep or roll back; as often as the limits allow.

`self_train` is the whole story; what it decides stands in `state`, what it measures in `rounds`, what it
chooses in `selection`. It is a generator: each finished round is yielded, and whoever stops asking stops the
loop.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from agents.ask.metering import Metered, UsageTotals
from agents.judgment import Accepted, Candidate, Verdict
from agents.panel import Panel, verdicts_of
from agents.trust import Answers, OnNearChance, Trust, check_agents
from losses.against_rest import AgainstRest
from losses.base import RoundLoss
from losses.prior import BOUNDS, estimate_prior
from selftrain import rounds
from selftrain._util.numeric import decide, log_odds, sigmoid
from selftrain._util.plugins import name_of
from selftrain._util.types import Float32Array, FloatArray, IntArray
from selftrain.data.corpus import Corpus, TrainingSet
from selftrain.engine.mapping import StageRun
from selftrain.errors import DecisionError, RunStateError, TrainingError
from selftrain.models.calibration import fit_calibration
from selftrain.models.metrics import evaluate
from selftrain.models.trainer import CrossFit, Fit, M, Model, Trainer, logits_at
from selftrain.review.reviewers import Reviewers
from selftrain.selection import Selection, Selector, selected
from selftrain.state import LoopState, RoundLimits, Start
from selftrain.store import atomic, checksums
from selftrain.store.run_dir import HUMAN, MODEL, REVISED, RunFolder
from selftrain.store.scores import Scored, read_scores, write_scores
from selftrain.verification.rules import Decided, Judged, Unanimous, VerdictRule


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """Everything that shapes a round; see the recipe for the meaning of each."""

    seed: int = 0
    retract_flipped: bool = True
    start: Start = "pretrained"
    root: Path = Path()
    limits: RoundLimits = field(default_factory=RoundLimits)
    on_near_chance: OnNearChance = "continue"
    folds: int = 5


def self_train(
    corpus: Corpus,
    trainer: Trainer[M],
    panel: Panel,
    *,
    selector: Selector,
    loss: RoundLoss,
    folder: RunFolder,
    settings: LoopSettings,
    rule: VerdictRule | None = None,
    reviewers: Reviewers | None = None,
    before: Sequence[StageRun] = (),
) -> Iterator[rounds.RoundResult]:
    """Run the loop in `folder`, opened and locked, going on where it stands; earlier rounds come first.

    See the protocols `Trainer`, `Panel`, `Selector`, `RoundLoss` and `Reviewers`. Without a `rule` it is
    `Unanimous()`; without reviewers nobody is asked. The first round that is finished now says what was done
    `before`, too.

    Raises:
        TrainingError, StorageError, AgentError: What was finished is kept; the same call goes on from there.
    """
    # ---- where we stand: the state follows from the finished rounds ----------------------------------
    rule = rule or Unanimous()
    class_loss = AgainstRest((loss,) * len(corpus.columns))
    cross_fit = CrossFit(trainer, corpus, settings.folds)
    state, finished = rounds.replay(folder)
    rounds.check_pool(corpus, state, folder)
    if finished:
        publish(folder, corpus, state, settings.root)
    yield from finished

    # ---- round 0: the labels alone ------------------------------------------------------------------
    if not finished:
        this, before = OpenRound(corpus, folder, 0, before), ()
        training = state.training_set(corpus, soft_positive=loss.soft_positive)
        fit = Fit(training, class_loss, settings.seed, "round 0")
        model, validation = validated(trainer, cross_fit, corpus, fit, start=None)
        measured = this.measure(trainer, model, training, validation, rule)
        state = state.keep(state)
        yield this.close(state, settings.root, training, model, measured, simulated=panel.simulated)

    while state.why_stop(settings.limits, len(corpus.pool)) is None:
        number, seed = state.next_round, settings.seed + state.next_round

        # ---- people: labels for posts that the rounds before left divergent ----------------------------
        if reviewers is not None and not reviewers.ready(number):
            return
        this, before = OpenRound(corpus, folder, number, before), ()
        state = apply_human_labels(reviewers, folder, corpus, state, this.path)
        best = trainer.load(folder.round_path(state.best_round) / MODEL)

        # ---- select: whom the agents judge; accepted posts whose label flipped go back -----------------
        retract = settings.retract_flipped and rule.retracts
        flipped = flipped_posts(trainer, best, corpus, state) if retract else []
        scored = trainer.logits(best, corpus, pool := open_positions(state, corpus, settings.limits))
        most = state.budget_left(settings.limits)
        chosen = selected(selector, scored, among=pool, most=most, classes=corpus.classes, seed=seed)
        candidates = this.write_candidates(chosen, len(pool))

        # ---- trust: the agents learn, and are measured on the labels, before the pool is spent on ------
        paid_before = usage_of(panel)
        trusted, answers = fit_agents(panel, corpus, state, settings.on_near_chance)
        checksums.write_json(folder.path / "trust.json", trusted.to_json())

        # ---- verify: the agents judge alone, then cross-review; then what they say is put together -----
        judged = Judged(
            corpus, state, verdicts_of(panel, candidates), answers,
            partial(left_out, cross_fit, corpus, class_loss, settings.seed),
            partial(logits_at, trainer, best, corpus),
        )  # fmt: skip
        decision = rule.decide(judged)
        verdicts, revised = this.write_verdicts(decision)

        # ---- merge: consistent posts get soft labels, divergent ones stay unlabelled ----------------
        trial = state.merge(verdicts, flipped, revised)
        training = trial.training_set(corpus, soft_positive=loss.soft_positive)

        # ---- retrain: with the loss as this round's posts fill it in ----------------------------------
        priors = partial(priors_of_divergent, trainer, best, corpus, trial)
        trial_loss = class_loss.for_round(training.groups, priors, trial.evidence_weight)
        fit = Fit(training, trial_loss, seed, f"round {number}")
        start = best if settings.start == "best" else None
        model, validation = validated(trainer, cross_fit, corpus, fit, start=start)

        # ---- validate: keep, or roll back ------------------------------------------------------------
        measured = this.measure(trainer, model, training, validation, rule)
        kept = rule.keeps(validation, this.validation_of(state.best_round))
        new = sum(used.round == number for used in state.human.values())
        human = None if reviewers is None else rounds.HumanCounts(len(state.human), new)
        state = state.keep(trial) if kept else state.roll_back(verdicts)
        yield this.close(
            state, settings.root, training, model, measured, kept=kept, simulated=panel.simulated,
            verdicts=verdicts, flipped=flipped, loss=trial_loss, human=human, trust=trusted,
            gains=decision.gains, cost=rounds.Cost(**usage_of(panel).minus(paid_before).to_json()),
        )  # fmt: skip

    # ---- what people decided since the last round belongs into the grown dataset too ------------------
    if reviewers is not None:
        publish(folder, corpus, apply_human_labels(reviewers, folder, corpus, state), settings.root)


class Measured(NamedTuple):
    """Metrics of a round's model on validation, and on test where its labels are known; `score` decides."""

    validation: rounds.SplitMetrics
    test: rounds.SplitMetrics | None
    score: float


def left_out(
    cross_fit: CrossFit, corpus: Corpus, loss: AgainstRest, seed: int, state: LoopState
) -> tuple[TrainingSet, Float32Array]:
    """Return whom a classifier learns from in a state, and their logits by models that did not."""
    training = state.training_set(corpus, soft_positive=loss.soft_positive)
    known = posterior_priors(state, corpus) or even_priors(corpus)
    filled = loss.for_round(training.groups, lambda: known, state.evidence_weight)
    number = max(state.best_round, 0)
    return training, cross_fit(Fit(training, filled, seed + number, f"round {number}"))


def validated(
    trainer: Trainer[M], cross_fit: CrossFit, corpus: Corpus, fit: Fit, *, start: M | None
) -> tuple[M, Scored]:
    """Train a model; return it, calibrated, and its logits on posts of known label that it did not see.

    These are the validation posts. Where there are none, every labelled post is left out once, and the model
    is calibrated on what the others' models say of it.
    """
    model = trainer.fit(corpus, fit.training, loss=fit.loss, seed=fit.seed, where=fit.where, start=start)
    positions, labels = corpus.validation, corpus.labels[corpus.validation]
    if len(positions):
        logits = logits_at(trainer, model, corpus, positions)
    else:
        known = fit.training.labelled
        positions, labels, raw = fit.training.positions[known], fit.training.labels, cross_fit(fit)[known]
        calibration = fit_calibration(raw, labels)
        model, logits = trainer.calibrate(model, calibration), calibration(raw)
    if not np.isfinite(logits).all():
        raise TrainingError(
            f"{fit.where}: {name_of(trainer)} gave logits that are not finite of posts that rounds are"
            " compared on. Lower its learning rate"
        )
    return model, Scored([post.id for post in corpus.posts_at(positions)], labels, logits)


CUT_POSTS = 2000
"""Pool posts, evenly drawn, that a model's cut is fitted on: a share is known to a hundredth."""


class OpenRound:
    """A round that is under way: its folder, emptied first, and what is written there."""

    def __init__(self, corpus: Corpus, folder: RunFolder, number: int, before: Sequence[StageRun]) -> None:
        self._corpus, self._folder, self._number = corpus, folder, number
        self._began = self._noted = time.monotonic()
        self._stages = list(before)
        self.path = folder.open_round(number)

    def _note(self, stage: str, posts: int) -> None:
        """Take down what this process did since the note before."""
        now = time.monotonic()
        self._stages.append(StageRun.at(stage, posts, now - self._noted, ()))
        self._noted = now

    def write_candidates(self, chosen: Selection, scored: int) -> list[Candidate]:
        """Write and return the posts chosen, as the agents see them: with the classifier's label."""
        corpus, probs = self._corpus, sigmoid(log_odds(chosen.logits).max(1))
        candidates = [
            Candidate(corpus.posts[position], corpus.classes[number], float(prob))
            for position, number, prob in zip(chosen.positions, decide(chosen.logits), probs, strict=True)
        ]
        rows = (
            {"id": one.post.id, "label": one.label, "probability": round(one.probability, 6)}
            for one in candidates
        )
        atomic.write_jsonl(self.path / "candidates.jsonl", rows)
        self._note("select", scored)
        return candidates

    def write_verdicts(self, decision: Decided) -> tuple[list[Verdict], list[Verdict]]:
        """Write the verdicts on candidates and on earlier posts; return them as a resumed run reads them."""
        files = {"verdicts.jsonl": decision.verdicts, REVISED: decision.revised}
        written = []
        for name, verdicts in files.items():
            records = [verdict.to_json() for verdict in verdicts]
            if records or name != REVISED:
                atomic.write_jsonl(self.path / name, records)
            written.append([Verdict.from_json(record) for record in records])
        self._note("verify", len(decision.verdicts))
        return written[0], written[1]

    def measure(
        self, trainer: Trainer[M], model: M, training: TrainingSet, validation: Scored, rule: VerdictRule
    ) -> Measured:
        """Save the round's model; return its metrics on validation and test.

        The scores that they come from are kept too: curves and intervals need them.
        """
        self._note("train", len(training.positions))
        corpus, step = self._corpus, max(1, len(self._corpus.pool) // CUT_POSTS)
        cut = rule.cut(len(corpus.classes), lambda: logits_at(trainer, model, corpus, corpus.pool[::step]))
        model.save(self.path / MODEL, {"round": self._number, "cut": cut})
        scored = {"validation": validation}
        if rounds.labels_known(corpus.labels[corpus.test]):
            scored["test"] = Scored(
                [post.id for post in corpus.posts_at(corpus.test)],
                corpus.labels[corpus.test],
                logits_at(trainer, model, corpus, corpus.test),
            )
        scored = {name: one._replace(predicted=decide(one.logits, cut)) for name, one in scored.items()}
        write_scores(self.path, scored, corpus.classes)
        metrics, *test = (evaluate(one.labels, one.logits, one.predicted) for one in scored.values())
        return Measured(metrics, test[0] if test else None, rule.score(validation))

    def validation_of(self, number: int) -> Scored:
        """Return what the model of an earlier round said of the posts that rounds are compared on."""
        path = self._folder.round_path(number)
        found = (read_scores(path, self._corpus.classes) or {}).get("validation")
        if found is None:
            raise RunStateError(f"{path} has no scores of its validation posts: the folder is damaged")
        return found

    def close(
        self,
        state: LoopState,
        root: Path,
        training: TrainingSet,
        model: Model,
        measured: Measured,
        *,
        simulated: bool,
        kept: bool = True,
        verdicts: Sequence[Verdict] = (),
        flipped: Sequence[str] = (),
        loss: AgainstRest | None = None,
        human: rounds.HumanCounts | None = None,
        trust: Trust | None = None,
        gains: Mapping[str, rounds.AgentGain] | None = None,
        cost: rounds.Cost | None = None,
    ) -> rounds.RoundResult:
        """Make the round final, then move `best` and rewrite the grown dataset; return what was recorded.

        `state` is that after the round, `loss` as the round's posts filled it in; the rest see `RoundResult`.
        """
        corpus = self._corpus
        self._note("measure", len(corpus.validation) + len(corpus.test))
        found = [] if loss is None else [one.theta for one in loss.losses]
        thetas = [None if one is None else float(one) for one in found]
        theta = dict(zip([corpus.classes[k] for k in corpus.columns], thetas, strict=False))
        result = rounds.RoundResult(
            number=self._number, kept=kept, score=measured.score, simulated=simulated,
            validation=measured.validation, test=measured.test, sets=rounds.candidate_sets(corpus, verdicts),
            flipped=tuple(flipped), agents=rounds.agent_counts(corpus, verdicts),
            training=rounds.group_counts(corpus, training), theta=theta, best_epoch=model.best_epoch,
            curve=tuple(rounds.CurvePoint(one.epoch, one.macro_f1, one.parts) for one in model.curve),
            human=human, trust=trust, gains=gains or {}, cost=cost,
            grown=len(corpus.labelled) + len(state.human) + len(state.accepted),
            pseudo_labels=rounds.pseudo_labels(corpus, state),
            seconds=round(time.monotonic() - self._began, 3), stages=tuple(self._stages),
        )  # fmt: skip
        record = result.to_json()
        self._folder.close_round(self._number, record)
        publish(self._folder, corpus, state, root)
        return rounds.RoundResult.from_json(record)


def publish(folder: RunFolder, corpus: Corpus, state: LoopState, root: Path) -> None:
    """Bring `best` and `grown.jsonl` in line with the finished rounds."""
    folder.publish(state.best_round, rounds.grown_rows(corpus, state, root))


def fit_agents(
    panel: Panel, corpus: Corpus, state: LoopState, on_near_chance: OnNearChance
) -> tuple[Trust, Answers]:
    """Let the agents learn from what is known so far; return how good they are on the labels, and why.

    NearChanceError: an agent may be guessing and `on_near_chance` is "stop".
    """
    labelled = list(corpus.posts_at(corpus.labelled))
    accepted = []
    for post in corpus.posts_at(corpus.positions_of(state.accepted)):
        verdict = state.accepted[post.id].verdict
        sure = 1.0 if verdict.posterior is None else verdict.posterior.probability
        accepted.append(Accepted(post, verdict.label, target=sure))
    # people's labels count as much as labels do, but agents are neither calibrated nor measured on them:
    # these are posts on which they could not agree
    for post in corpus.posts_at(corpus.positions_of(state.human)):
        accepted.append(Accepted(post, state.human[post.id].given.label, weight=1.0))
    panel.fit(labelled, accepted=accepted, pool=corpus.posts_at(corpus.pool))
    return check_agents(panel, labelled, on_near_chance)


def usage_of(panel: Panel) -> UsageTotals:
    """Return what the panel has cost so far in this process; nothing for agents that cost nothing."""
    return panel.usage() if isinstance(panel, Metered) else UsageTotals()


def open_positions(state: LoopState, corpus: Corpus, limits: RoundLimits) -> IntArray:
    """Return the pool posts that may be chosen now."""
    closed = corpus.positions_of(state.closed(limits))
    return corpus.pool[~np.isin(corpus.pool, closed)]


def flipped_posts(trainer: Trainer[M], model: M, corpus: Corpus, state: LoopState) -> list[str]:
    """Return accepted posts whose pseudo-label the model no longer gives: they are consistent no more."""
    accepted = corpus.positions_of(state.accepted)
    given = decide(logits_at(trainer, model, corpus, accepted))
    post_ids = [post.id for post in corpus.posts_at(accepted)]
    return [
        post_id
        for post_id, number in zip(post_ids, given.tolist(), strict=True)
        if corpus.classes[number] != state.accepted[post_id].verdict.label
    ]


def priors_of_divergent(trainer: Trainer[M], model: M, corpus: Corpus, state: LoopState) -> Sequence[float]:
    """Estimate the shares [C] of classes among the divergent posts: they are a selected set."""
    divergent = corpus.positions_of(state.divergent)
    if not len(divergent):
        return even_priors(corpus)  # no unlabelled part: any value gives the same loss
    if (known := posterior_priors(state, corpus)) is not None:
        return known
    checked = corpus.labels[corpus.validation if len(corpus.validation) else corpus.labelled]
    probs = sigmoid(log_odds(logits_at(trainer, model, corpus, divergent)))
    found = np.array([estimate_prior(probs[:, k], float((checked == k).mean())) for k in corpus.columns])
    # estimated one class at a time, several do not add up
    return _bounded(found / found.sum() if len(found) > 1 else found)


def posterior_priors(state: LoopState, corpus: Corpus) -> list[float] | None:
    """Return the same [C] as posteriors have them; None where the divergent posts have none."""
    means = state.divergent_priors([corpus.classes[k] for k in corpus.columns])
    return None if means is None else _bounded(np.array(means))


def _bounded(priors: FloatArray) -> list[float]:
    """Return priors [C] that a loss can use: several add up to 1, one leaves another class the rest."""
    priors = np.clip(priors, *BOUNDS)
    return [float(one) for one in (priors / priors.sum() if len(priors) > 1 else priors)]


def even_priors(corpus: Corpus) -> list[float]:
    """Return the priors [C] of classes that are equally common."""
    return [1 / len(corpus.classes)] * len(corpus.columns)


def apply_human_labels(
    reviewers: Reviewers | None,
    folder: RunFolder,
    corpus: Corpus,
    state: LoopState,
    path: Path | None = None,
) -> LoopState:
    """Return the state with the decisions that no round has used yet; the same one where there are none.

    They are written to `path`, the open folder of the round that uses them; None: no round does.
    DecisionError: a label that is no class.
    """
    if reviewers is None:
        return state
    used = {post_id: one.given.label for post_id, one in state.human.items()}
    labels = list(reviewers.answers(used) or ())
    for one in labels:
        if one.label not in corpus.classes:
            raise DecisionError(
                f"{name_of(reviewers)} labels {one.post_id!r} as {one.label!r}: expected one of"
                f" {list(corpus.shown)}"
            )
    if not labels:
        return state
    changed = state.apply_human_labels(labels)
    rounds.check_pool(corpus, changed, folder)
    if path is not None:
        atomic.write_jsonl(path / HUMAN, (label.to_json() for label in labels))
    return changed

"""How verdicts become labels: by unanimity, as the article does, or by a posterior of all that is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from agents.judgment import Judgment, Posterior, Verdict, opinions
from selftrain._util.numeric import log_probs
from selftrain._util.types import Float32Array, IntArray
from selftrain.data.corpus import Corpus, TrainingSet
from selftrain.errors import RecipeError
from selftrain.models.calibration import fit_cut
from selftrain.models.metrics import evaluate, log_likelihoods
from selftrain.rounds import AgentGain
from selftrain.state import LoopState
from selftrain.store.scores import Scored
from selftrain.verification.posterior import (
    Beliefs,
    FittedPosterior,
    agent_gains,
    beliefs_of,
    fit_posterior,
)


class Judged(NamedTuple):
    """What a rule decides on."""

    corpus: Corpus  # the posts
    state: LoopState  # before the round, people's labels used
    verdicts: Sequence[Verdict]  # on the round's candidates
    # role -> what it said alone of each labelled post, in their order, without having learned from it
    answers: Mapping[str, Sequence[Judgment]]
    # gives whom a classifier learns from in a state, and logits of these posts, each by a model that did not
    # learn from it
    left_out: Callable[[LoopState], tuple[TrainingSet, Float32Array]]
    # gives the best classifier's calibrated logits [n, K] of posts that it did not learn from
    predict: Callable[[IntArray], Float32Array]


class Decided(NamedTuple):
    """What came of a round's verdicts."""

    verdicts: Sequence[Verdict]  # on the round's candidates, as they count
    revised: Sequence[Verdict] = ()  # new verdicts on posts of earlier rounds
    # role -> what its answers add to what the classifier, as far as the rule asks it, and the other agents
    # know
    gains: Mapping[str, AgentGain] = {}


class VerdictRule(Protocol):
    """Decides which posts are consistent, and with which target they are learned."""

    def score(self, validation: Scored) -> float:
        """Return how good a model is by what it says of posts that it did not learn from; more is better."""
        ...

    def keeps(self, trial: Scored, best: Scored) -> bool:
        """Return whether a round is kept: what its model, and the best one so far, say of such posts.

        The posts are the same, but for those that people have labelled since.
        """
        ...

    @property
    def retracts(self) -> bool:
        """Whether accepted posts whose label the classifier no longer gives are unlabelled again."""
        ...

    def cut(self, classes: int, pool: Callable[[], Float32Array]) -> tuple[float, ...] | None:
        """Return what is added to each of K classes' log-probability before a model decides; None: nothing.

        `pool` gives the model's calibrated logits [B, K] of some posts of the pool.
        """
        ...

    def decide(self, judged: Judged) -> Decided:
        """Return the verdicts as they count.

        Raises:
            AgentError, TrainingError: What was needed for it could not be had.
        """
        ...


@dataclass(frozen=True)
class Unanimous:
    """The article's rule: a post is consistent where both agents repeat the classifier's label.

    It is learned with that label, softened, and given up when the classifier changes its mind.

    Source: "Multi-Agent VLMs Guided Self-Training with PNU Loss" (arXiv 2511.13759).
    """

    retracts = True

    def score(self, validation: Scored) -> float:
        """Return the macro-F1."""
        return evaluate(validation.labels, validation.logits).macro_f1

    def keeps(self, trial: Scored, best: Scored) -> bool:
        """Return whether the macro-F1 has risen."""
        return self.score(trial) > self.score(best)

    def cut(self, classes: int, pool: Callable[[], Float32Array]) -> None:
        """Return None: the likeliest class is predicted."""

    def decide(self, judged: Judged) -> Decided:
        """Return the verdicts as they are."""
        corpus, roles = judged.corpus, tuple(judged.answers)
        labels = corpus.labels[corpus.labelled].astype(np.int64)
        known = len(corpus.classes)
        said = list(zip(*judged.answers.values(), strict=True))
        nothing = np.zeros((len(labels), known))  # the classifier is not asked about posts that taught it
        gains = agent_gains(beliefs_of(corpus.classes, nothing, said), labels, roles, known) if said else {}
        return Decided(judged.verdicts, gains=gains)


WORSE_BY = 1.645
"""Standard errors by which a round must be worse to be rolled back: a one-sided test at 5 %."""


@dataclass(frozen=True)
class PosteriorRule:
    """A post is consistent where the posterior of its most probable class reaches `threshold`, in [.5, 1].

    All judged posts are judged anew in every round: early labels that were wrong move as the classifier and
    what is known of the agents do (`selftrain.verification.posterior`). Posts below it are divergent:
    unlabelled in the loss, and people may be asked. RecipeError: a threshold outside.
    """

    threshold: float = 0.5

    retracts = False  # every posterior is computed anew in every round

    def __post_init__(self) -> None:
        if not 0.5 <= self.threshold <= 1:
            raise RecipeError(f"threshold is {self.threshold}: expected a probability in [0.5, 1]")

    def cut(self, classes: int, pool: Callable[[], Float32Array]) -> tuple[float, ...] | None:
        """Return the cut of the highest expected macro-F1 of two classes; of more None, the likeliest class.

        Rounds are not compared by what is decided. Of more than two classes nothing but a temperature is
        calibrated, and a cut that trusts their shares costs more than it brings (docs/experiments.md).
        """
        return fit_cut(pool()) if classes == 2 else None

    def score(self, validation: Scored) -> float:
        """Return the mean log-likelihood of the labels, in nats: less noisy than macro-F1."""
        return float(log_likelihoods(validation.labels, validation.logits).mean())

    def keeps(self, trial: Scored, best: Scored) -> bool:
        """Return whether the log-likelihood has not fallen by more than chance would have it.

        On a hundred labels a better model seems worse in one of three rounds; so a round that the agents have
        taught something is rolled back only where a paired test on the same posts says that it has done harm.
        """
        known = {post_id: place for place, post_id in enumerate(best.ids)}
        shared = [(place, known[post_id]) for place, post_id in enumerate(trial.ids) if post_id in known]
        new, old = np.array(shared, np.int64).T
        gain = (
            log_likelihoods(trial.labels, trial.logits)[new] - log_likelihoods(best.labels, best.logits)[old]
        )
        return bool(gain.mean() >= -WORSE_BY * gain.std(ddof=1) / len(gain) ** 0.5)

    def decide(self, judged: Judged) -> Decided:
        """Return every judged post's verdict with its posterior.

        The first one has a classifier that knows the labels, and what earlier rounds made of the agents. Once
        it is there, classifiers learn from all judged posts but those that they are then asked about; where
        these are right about the labelled posts beyond what the agents know, the second one counts.
        """
        earlier = {
            post_id: last.verdict
            for post_id, last in judged.state.last_verdicts.items()
            if post_id not in judged.state.human
        }
        verdicts = list({**earlier, **{one.post_id: one for one in judged.verdicts}}.values())
        first = _fitted(judged, verdicts, judged.state)
        decided = self._decided(judged, verdicts, first.posterior)
        new, revised = decided
        second = _fitted(judged, verdicts, judged.state.merge(new, (), revised)).posterior
        if second.classifier_share:
            decided = self._decided(judged, verdicts, second, second.classifier_share)
        gains = agent_gains(first.labelled, first.labels, tuple(judged.answers), len(judged.corpus.classes))
        return Decided(*decided, gains)

    def _decided(
        self,
        judged: Judged,
        verdicts: Sequence[Verdict],
        posterior: FittedPosterior,
        classifier_share: float = 0.0,
    ) -> tuple[list[Verdict], list[Verdict]]:
        """Return the verdicts with their posteriors: those on candidates, and on posts of earlier rounds."""
        classes = judged.corpus.classes
        decided = {
            verdict.post_id: replace(
                verdict,
                posterior=Posterior(
                    probs=dict(zip(classes, found.probs, strict=True)),
                    log_odds=found.log_odds,
                    evidence=dict(zip(classes, found.evidence, strict=True)),
                    threshold=self.threshold,
                    weight=posterior.weight,
                ),
            )
            for verdict, found in zip(verdicts, posterior.evidence(classifier_share), strict=True)
        }
        new = [decided.pop(one.post_id) for one in judged.verdicts]
        return new, list(decided.values())


class _Fitted(NamedTuple):
    """A posterior, and the labelled posts that it was fitted on."""

    posterior: FittedPosterior
    labelled: Beliefs
    labels: IntArray  # [n] classes of the labelled posts


def _fitted(judged: Judged, verdicts: Sequence[Verdict], learned: LoopState) -> _Fitted:
    """Fit the posterior of judged posts, by what classifiers say that learn from the others as in a state."""
    corpus, roles = judged.corpus, tuple(judged.answers)
    training, left_out = judged.left_out(learned)
    positions = np.array([corpus.position_of[one.post_id] for one in verdicts], np.int64)
    logits = _unseen_logits(positions, training, left_out, judged.predict)
    labels = training.labels.astype(np.int64)
    own = log_probs(left_out[training.labelled])
    labelled = beliefs_of(corpus.classes, own, _labelled_answers(judged, roles))
    answers = [_alone(one, roles) for one in verdicts]
    said = beliefs_of(corpus.classes, log_probs(logits), answers)
    return _Fitted(fit_posterior(labelled, labels, said, roles, len(corpus.classes)), labelled, labels)


def _unseen_logits(
    positions: IntArray,
    training: TrainingSet,
    left_out: Float32Array,
    predict: Callable[[IntArray], Float32Array],
) -> Float32Array:
    """Return logits [B, K] of judged posts, by models that did not learn from them."""
    place = {position: number for number, position in enumerate(training.positions.tolist())}
    learned = np.isin(positions, training.positions)
    logits = np.empty((len(positions), left_out.shape[1]), np.float32)
    logits[learned] = left_out[[place[position] for position in positions[learned].tolist()]]
    if not learned.all():
        logits[~learned] = predict(positions[~learned])
    return logits


def _alone(verdict: Verdict, roles: Sequence[str]) -> list[Judgment | None]:
    """Return what each role said alone, as all that is said of labelled posts is.

    Who has heard the classifier's label brings it in a second time; a case made on demand is no opinion.
    """
    given = verdict.by_agent()
    return [opinions(given[role])[0] if role in given else None for role in roles]


def _labelled_answers(judged: Judged, roles: Sequence[str]) -> list[list[Judgment | None]]:
    """What each role said of the labelled posts, then of those that people labelled."""
    rows = zip(*(judged.answers[role] for role in roles), strict=True)
    labelled: list[list[Judgment | None]] = [list(row) for row in rows] or [
        [] for _ in judged.corpus.labelled
    ]
    for position in judged.corpus.positions_of(judged.state.human):
        last = judged.state.last_verdicts.get(judged.corpus.posts[int(position)].id)
        labelled.append([None] * len(roles) if last is None else _alone(last.verdict, roles))
    return labelled

"""What classifier and agents know about a post, put together: a posterior over its classes.

q(y) is proportional to p(y|x)^a P(s|y)^c e^(g l(y)) e^b(y): p is the classifier without the post in its
training set, s the joint state of the agents' answers (a class each, no label, or no usable answer), and
P(s|y) a table learned from the labelled posts and, softly, from q itself. That is Dawid and Skene (1979) with
a classifier as the prior (Raykar et al., JMLR 2010); the table is joint, so that agents which err together
are not counted twice. The exponents a and c and the offsets b are fitted on the labelled posts, each of them
left out of what is said of it, and pulled towards (1/2, 1, 0): classifier and agents err on the same posts,
so that what the classifier says is worth less than it claims.

An agent may say how probable each class is besides. What its word alone is worth stands in the table, so only
the rest counts: l is the log-probability less its mean over the posts of the same answer (within "hateful",
is this one surer than most?). Its weight g is fitted like the others, pulled towards 0, and stays 0 unless
labelled posts that were left out become more probable by it. A probability that is always too high needs no
threshold then: the mean takes care of it.

Shape legend: ``n`` labelled posts, ``m`` judged posts, ``A`` agents, ``K`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp, softmax

from agents.errors import JudgmentError
from agents.judgment import Judgment, State
from selftrain._util.types import BoolArray, FloatArray, IntArray
from selftrain.rounds import AgentGain

# ---- constants, chosen on HateBiasNet and HateXplain, confirmed on TweetEval hate and MAMI ---------------

SOFT_WEIGHT = 0.2  # a judged post in the tables, beside a labelled one
JOINT_POSTS = 10.0  # posts by which the joint table is pulled towards the product of the agents' own tables
OWN_POSTS = 10.0  # posts by which an agent's own table is pulled towards "says nothing"
EXPONENTS = (0.5, 1.0)  # of classifier and agents, before the labelled posts are asked
PULL_POSTS = 20.0  # how strongly the others stay there: classifier's exponent, offsets, grades (at 0)
AGENTS_PULL_POSTS = 4.0  # and the agents' exponent: less, since agents that know nothing should not be heard
HELD_OUT_FOLDS = 5  # parts in which labelled posts are left out to see whether something helps
CLIP = 4.0  # log-probability ratios of the classifier beyond this are not believed
FULL_WEIGHT_AT = 1 / 3  # of the uncertainty: agents that remove so much make posts that count as labels
STEPS = 8  # of expectation maximisation; q moves by less than .01 after


class Beliefs(NamedTuple):
    """Posts with what is known of them."""

    # [n, K] the classifier's log-probabilities, by models that did not learn from the post
    log_probs: FloatArray
    states: IntArray  # [n, A] each agent's answer: 0..K-1 a class, K no label, K + 1 no usable answer
    # [n, A, K] log-probability that each agent gives each class, NaN where it gives none; None: no agent
    # gives any
    stated: FloatArray | None = None


def beliefs_of(
    classes: Sequence[str], log_probs: FloatArray, answers: Sequence[Sequence[Judgment | None]]
) -> Beliefs:
    """Return what classifier (log-probabilities [n, K]) and agents (answers [n, A]) say, in numbers.

    JudgmentError: a label that is none of the classes.
    """
    numbers = {name: number for number, name in enumerate(classes)} | {None: len(classes)}

    def state(judgment: Judgment | None) -> int:
        if judgment is None or judgment.state is State.FAILED:
            return len(classes) + 1
        if judgment.label not in numbers:
            raise JudgmentError(
                f"agent {judgment.agent!r} says {judgment.label!r} of a post: expected one of"
                f" {', '.join(map(repr, classes))}, or no label"
            )
        return numbers[judgment.label]

    nothing = (np.nan,) * len(classes)
    width = len(answers[0]) if answers else 0
    states = [[state(one) for one in row] for row in answers]
    stated = [[(one and one.log_probs(classes)) or nothing for one in row] for row in answers]
    return Beliefs(
        log_probs,
        np.array(states, np.int64).reshape(len(answers), width),
        np.array(stated, np.float64).reshape(len(answers), width, len(classes)),
    )


@dataclass(frozen=True)
class StateCounts:
    """Weighted counts of joint states by class, from which P(s|y) follows.

    Where a joint state has been seen often, its own frequency counts; where seldom, the product of the
    agents' own tables, and where these have seen little too, the agent's frequency of such answers whatever
    the class, which says nothing.
    """

    states: IntArray  # [n, A] of the posts that are counted
    weights: FloatArray  # [n, K] how much each counts for each class

    @cached_property
    def totals(self) -> FloatArray:
        """[K] the weight of each class."""
        return np.asarray(self.weights.sum(0))

    def log_likelihood(
        self, states: IntArray, agents: Sequence[int], own: FloatArray | None = None
    ) -> FloatArray:
        """Return log P(s|y) [B, K] of what some agents answered, `states` [B, A].

        `own` [B, K] is what the posts themselves have contributed to the counts, to be taken out again.
        """
        taken = np.zeros((len(states), len(self.totals))) if own is None else own
        totals = self.totals - taken
        product = np.ones_like(taken)
        for agent in agents:
            seen, overall = self._matching(states, (agent,))
            product *= (seen - taken + OWN_POSTS * overall) / (totals + OWN_POSTS)
        if len(agents) == 1:
            return np.log(product)
        seen, _ = self._matching(states, tuple(agents))
        return np.asarray(np.log((seen - taken + JOINT_POSTS * product) / (totals + JOINT_POSTS)))

    def _matching(self, states: IntArray, agents: tuple[int, ...]) -> tuple[FloatArray, FloatArray]:
        """Weights [B, K] of the counted posts with the same answers, and their share [B, 1] of all."""
        kinds, where = np.unique(
            np.concatenate([self.states, states])[:, agents], axis=0, return_inverse=True
        )
        where = where.reshape(-1)
        sums = np.zeros((len(kinds), len(self.totals)))
        np.add.at(sums, where[: len(self.states)], self.weights)
        seen = sums[where[len(self.states) :]]
        # half a post, spread evenly, keeps a state that nobody was counted in from being impossible
        share = (seen.sum(1, keepdims=True) + 0.5 / len(kinds)) / (self.totals.sum() + 0.5)
        return seen, share


class Weights(NamedTuple):
    """How classifier and agents are weighed against each other."""

    # classifier, agents: exponents
    classifier: float
    agents: float
    grades: FloatArray  # [A] what a nat of the agent's own sureness is worth; 0: its word alone counts
    offsets: FloatArray  # [K]


class Evidence(NamedTuple):
    """One post's posterior and where it comes from."""

    label: int  # index of the most probable class
    probs: tuple[float, ...]  # [K] the posterior q
    # party -> what it added to the log-odds of the label over the runner-up, which the shares add up to:
    # "classifier", "base rate", and the agents by role. An agent's share is its Shapley value: what two
    # agents say alike is halved between them
    log_odds: Mapping[str, float]
    # [K] what the post is learned with, adding up to 1: what the agents' answers alone say, P(s|y)^c, and a
    # share of what the classifier says
    evidence: tuple[float, ...]


@dataclass(frozen=True)
class FittedPosterior:
    """The posterior of the judged posts, and what it was made of."""

    probs: FloatArray  # [m, K] q
    information: float  # share of the classes' uncertainty that the agents' answers remove, in [0, 1]
    weights: Weights
    counts: StateCounts
    judged: Said
    roles: tuple[str, ...]

    @property
    def weight(self) -> float:
        """Weight of a judged post beside a labelled one, in [0, 1]: who knows nothing teaches nothing."""
        return min(1.0, self.information / FULL_WEIGHT_AT)

    @property
    def classifier_share(self) -> float:
        """How much of its word a classifier that has learned from judged posts may teach, in [0, 1].

        Nothing where it is worth no more than is presumed of one that repeats the agents' errors, all of it
        where its own errors are independent of theirs.
        """
        return float(np.clip((self.weights.classifier - EXPONENTS[0]) / (1 - EXPONENTS[0]), 0.0, 1.0))

    def evidence(self, classifier_share: float = 0.0) -> list[Evidence]:
        """Return each judged post's posterior with the log-odds that every party added."""
        classifier = self.weights.classifier * self.judged.log_probs
        agents = self.weights.agents * self._shapley() + _graded(self.weights, self.judged.leanings)
        # the agents' parts add up to all that they say, and q is that with what the classifier adds
        said = agents.sum(0)
        shares = softmax(said + classifier_share * (np.log(self.probs) - said), axis=1)
        order = np.argsort(-self.probs, axis=1, kind="stable")
        label, second = order[:, 0], order[:, 1]
        rows = np.arange(len(label))
        parts = {
            "classifier": classifier[rows, label] - classifier[rows, second],
            **{
                role: agents[number][rows, label] - agents[number][rows, second]
                for number, role in enumerate(self.roles)
            },
            "base rate": self.weights.offsets[label] - self.weights.offsets[second],
        }
        return [
            Evidence(
                int(label[row]),
                tuple(map(float, self.probs[row])),
                {party: float(values[row]) for party, values in parts.items()},
                tuple(map(float, shares[row])),
            )
            for row in rows
        ]

    def _shapley(self) -> FloatArray:
        """[A, m, K] each agent's share of log P(s|y): its mean gain over all orders of being heard."""
        count = len(self.roles)
        shares = np.zeros((count, *self.probs.shape))
        before: dict[tuple[int, ...], FloatArray] = {(): np.zeros_like(self.probs)}
        for size in range(count):
            # how many of the orders begin with these agents, before the next one is heard
            weight = 1 / (count * math.comb(count - 1, size))
            heard = {
                some: self.counts.log_likelihood(self.judged.states, some)
                for some in combinations(range(count), size + 1)
            }
            for some, likelihood in heard.items():
                for agent in some:
                    shares[agent] += weight * (likelihood - before[tuple(a for a in some if a != agent)])
            before = heard
        return shares


def fit_posterior(
    labelled: Beliefs, labels: IntArray, judged: Beliefs, roles: Sequence[str], classes: int
) -> FittedPosterior:
    """Return the posterior of judged posts, m >= 0, from labelled ones, n >= 1, of classes `labels` [n].

    Without agents q is the classifier's own probability, tempered.
    """
    agents = tuple(range(len(roles)))
    known = np.eye(classes)[labels]
    own, pool = _prepared(labelled, judged, classes)
    soft = np.zeros((len(pool.states), classes))  # at first the labelled posts alone fill the tables
    graded: tuple[int, ...] | None = None
    for _ in range(STEPS):
        counts = StateCounts(
            np.concatenate([own.states, pool.states]), np.concatenate([known, SOFT_WEIGHT * soft])
        )
        left_out = counts.log_likelihood(own.states, agents, own=known)
        if graded is None:
            graded = helpful_grades(own, left_out, labels)
        weights = _fit_weights(own, left_out, labels, graded)
        said = counts.log_likelihood(pool.states, agents)
        soft = softmax(_combined(weights, pool, said), axis=1)
    information = _information(counts, weights, np.concatenate([own.leanings, pool.leanings]))
    return FittedPosterior(soft, information, weights, counts, pool, tuple(roles))


# ---- what is said, made comparable ----------------------------------------------------------------------


class Said(NamedTuple):
    """What `Beliefs` say, bounded, and freed of what the tables know already."""

    log_probs: FloatArray  # [n, K] the classifier's, centred
    states: IntArray  # [n, A]
    # [n, A, K] the agents' log-probabilities less their mean in the same state; 0 where an agent gives none
    leanings: FloatArray

    def rows(self, chosen: BoolArray) -> Said:
        """Return some of the posts."""
        return Said(self.log_probs[chosen], self.states[chosen], self.leanings[chosen])


def _prepared(labelled: Beliefs, judged: Beliefs, classes: int) -> tuple[Said, Said]:
    """Return both made comparable; what is usual in a state is what it is over all posts together."""
    states = np.concatenate([labelled.states, judged.states])
    leanings = np.concatenate(
        [
            np.full((*one.states.shape, classes), np.nan) if one.stated is None else _clipped(one.stated)
            for one in (labelled, judged)
        ]
    )
    for agent, column in enumerate(states.T):
        for state in np.unique(column):
            here = (column == state) & ~np.isnan(leanings[:, agent]).any(1)
            leanings[here, agent] -= leanings[here, agent].mean(0) if here.any() else 0.0
    leanings = np.nan_to_num(leanings, nan=0.0)
    cut = len(labelled.states)
    return (
        Said(_clipped(labelled.log_probs), labelled.states, leanings[:cut]),
        Said(_clipped(judged.log_probs), judged.states, leanings[cut:]),
    )


def _clipped(log_probs: FloatArray) -> FloatArray:
    """Log-probabilities centred by post, no class further than `CLIP` / 2 from the centre."""
    centred = log_probs - log_probs.mean(-1, keepdims=True)
    return np.asarray(np.clip(centred, -CLIP / 2, CLIP / 2))


# ---- how they are weighed -------------------------------------------------------------------------------


def _graded(weights: Weights, leanings: FloatArray) -> FloatArray:
    """[A, n, K] what the agents' own sureness adds."""
    return np.asarray(weights.grades[:, None, None] * leanings.swapaxes(0, 1))


def _combined(weights: Weights, said: Said, tables: FloatArray) -> FloatArray:
    """Return unnormalised log q [n, K]; `tables` is log P(s|y)."""
    graded = _graded(weights, said.leanings).sum(0)
    return np.asarray(
        weights.classifier * said.log_probs + weights.agents * tables + graded + weights.offsets
    )


def helpful_grades(said: Said, tables: FloatArray, labels: IntArray) -> tuple[int, ...]:
    """Return the agents whose probabilities make labelled posts that were left out more probable.

    `tables` [n, K] is log P(s|y), each post left out.
    """
    rows = np.arange(len(labels))

    def held_out(agents: tuple[int, ...]) -> float:
        return float(_held_out(said, tables, labels, agents)[rows, labels].sum())

    chosen: tuple[int, ...] = ()
    stating = [agent for agent in range(said.states.shape[1]) if np.ptp(said.leanings[:, agent]) > 1e-9]
    best = held_out(chosen) if stating else 0.0
    for agent in stating:
        found = held_out((*chosen, agent))
        if found > best:
            chosen, best = (*chosen, agent), found
    return chosen


def _held_out(said: Said, tables: FloatArray, labels: IntArray, graded: tuple[int, ...]) -> FloatArray:
    """Log q [n, K] of labelled posts, each by weights that were fitted on the other folds."""
    fold = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        fold[members] = np.arange(len(members)) % HELD_OUT_FOLDS
    log_q = np.empty_like(tables)
    for number in range(HELD_OUT_FOLDS):
        out = fold == number
        weights = _fit_weights(said.rows(~out), tables[~out], labels[~out], graded)
        log_q[out] = log_softmax(_combined(weights, said.rows(out), tables[out]), axis=1)
    return log_q


def held_out_log_probs(labelled: Beliefs, labels: IntArray, classes: int) -> FloatArray:
    """Return log q [n, K] of labelled posts by tables, theirs alone, and weights without their labels."""
    said, _ = _prepared(labelled, Beliefs(labelled.log_probs[:0], labelled.states[:0]), classes)
    known, agents = np.eye(classes)[labels], tuple(range(labelled.states.shape[1]))
    tables = StateCounts(said.states, known).log_likelihood(said.states, agents, own=known)
    return _held_out(said, tables, labels, helpful_grades(said, tables, labels))


def _fit_weights(said: Said, tables: FloatArray, labels: IntArray, graded: Sequence[int]) -> Weights:
    """Exponents, grades of some agents, and offsets by penalised maximum likelihood on the labelled posts."""
    rows, (agents, classes) = np.arange(len(labels)), said.leanings.shape[1:]
    chosen = list(graded)
    leanings = said.leanings[:, chosen]
    start = np.array([*EXPONENTS, *np.zeros(len(chosen) + classes)])
    # two classes have one free offset, written twice with opposite signs: half the pull each
    pull = np.array([PULL_POSTS, AGENTS_PULL_POSTS, *np.full(len(chosen), PULL_POSTS)])
    pull = np.concatenate([pull, np.full(classes, 2 * PULL_POSTS)])
    known = np.eye(classes)[labels]

    def weights_of(theta: FloatArray) -> Weights:
        grades = np.zeros(agents)
        grades[chosen] = theta[2:-classes]
        return Weights(float(theta[0]), float(theta[1]), grades, theta[-classes:])

    def objective(theta: FloatArray) -> tuple[float, FloatArray]:
        log_q = log_softmax(_combined(weights_of(theta), said, tables), axis=1)
        wrong = np.exp(log_q) - known
        moved = theta - start
        value = -log_q[rows, labels].sum() + 0.5 * (pull * moved**2).sum()
        by_agent = np.einsum("nk,nak->a", wrong, leanings)
        slope = np.array([(wrong * said.log_probs).sum(), (wrong * tables).sum(), *by_agent, *wrong.sum(0)])
        return float(value), slope + pull * moved

    # the tables turn a contrary agent round; nothing else may
    bounds = [(0.0 if place == 1 else None, None) for place in range(len(start))]
    return weights_of(minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds).x)


def _information(counts: StateCounts, weights: Weights, leanings: FloatArray) -> float:
    """Mutual information of answers and class, as a share of the class's entropy; 0 without agents."""
    agents = tuple(range(counts.states.shape[1]))
    if not agents:
        return 0.0
    prior = counts.totals / counts.totals.sum()
    said = counts.log_likelihood(counts.states, agents) + _graded(weights, leanings).sum(0)
    log_joint = said + np.log(prior)
    log_given = log_joint - logsumexp(log_joint, axis=1, keepdims=True)
    gain = (np.exp(log_given) * (log_given - np.log(prior))).sum(1)
    entropy = -float((prior * np.log(prior)).sum())
    # every post stands for its state once: the labelled and the judged ones are all the states there are
    return float(np.clip(gain.mean() / entropy, 0.0, 1.0))


# ---- what an agent's answers add: a reason to ask it, or not to ------------------------------------------

# With s_a the agent's answer, the mutual information I(s_a; y | s_others, p) is the mean of log q(y) with the
# agent less log q(y) without it, over posts of known label. Labelled posts are left out of the tables and of
# the weights that are used on them, so an agent that adds nothing has a gain about 0, or a little below.


def agent_gains(
    labelled: Beliefs, labels: IntArray, roles: Sequence[str], classes: int
) -> dict[str, AgentGain]:
    """Return role -> what its answer adds to the classifier's and the other agents'.

    Log-probabilities that are all alike stand for a classifier that is not known yet. `labels` [n] are the
    classes 0..K-1 of the labelled posts, n >= 2.
    """
    agents = tuple(range(len(roles)))
    rows = np.arange(len(labels))

    def right(heard: tuple[int, ...]) -> FloatArray:
        part = Beliefs(
            labelled.log_probs, labelled.states[:, heard],
            None if labelled.stated is None else labelled.stated[:, heard],
        )  # fmt: skip
        return held_out_log_probs(part, labels, classes)[rows, labels] / math.log(2)

    whole = right(agents)
    gains = {}
    for agent, role in enumerate(roles):
        without = right(tuple(other for other in agents if other != agent))
        gain = whole - without
        reach = 1.96 * float(gain.std(ddof=1)) / math.sqrt(len(gain))
        mean = float(gain.mean())
        gains[role] = AgentGain(mean, mean - reach, mean + reach, -float(without.mean()))
    return gains

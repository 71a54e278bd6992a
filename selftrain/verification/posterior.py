"""What classifier and agents know about a post, put together: a posterior over its classes.

q(y) is proportional to p(y|x)^a P(s|y)^c e^b(y): p is the classifier without the post in its training set, s
the joint state of the agents' answers (a class each, no label, or no usable answer), and P(s|y) a table
learned from the labelled posts and, softly, from q itself. That is Dawid and Skene (1979) with a classifier
as the prior (Raykar et al., JMLR 2010); the table is joint, so that agents which err together are not counted
twice. The exponents a and c and the offsets b are fitted on the labelled posts, each of them left out of what
is said of it, and pulled towards (1/2, 1, 0): classifier and agents err on the same posts, so that what the
classifier says is worth less than it claims.

Shape legend: ``n`` labelled posts, ``m`` judged posts, ``A`` agents, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp, softmax

from selftrain._util.types import FloatArray, IntArray

# ---- constants, chosen on HateBiasNet and HateXplain, confirmed on TweetEval hate and MAMI ---------------

SOFT_WEIGHT = 0.2  # a judged post in the tables, beside a labelled one
JOINT_POSTS = 10.0  # posts by which the joint table is pulled towards the product of the agents' own tables
OWN_POSTS = 10.0  # posts by which an agent's own table is pulled towards "says nothing"
EXPONENTS = (0.5, 1.0)  # of classifier and agents, before the labelled posts are asked
PULL_POSTS = 20.0  # how strongly the classifier's exponent and the offsets stay there
AGENTS_PULL_POSTS = 4.0  # and the agents' exponent: less, since agents that know nothing should not be heard
CLIP = 4.0  # log-probability ratios of the classifier beyond this are not believed
FULL_WEIGHT_AT = (
    1 / 3
)  # agents that remove a third of the uncertainty make posts that count as much as labels
STEPS = 8  # of expectation maximisation; q moves by less than .01 after


class Beliefs(NamedTuple):
    """Posts with what is known of them.

    Attributes:
        log_probs: [n, K] the classifier's log-probabilities, by models that did not learn from the post.
        states: [n, A] each agent's answer: 0..K-1 a class, K no label, K + 1 no usable answer.
    """

    log_probs: FloatArray
    states: IntArray


@dataclass(frozen=True)
class StateCounts:
    """Weighted counts of joint states by class, from which P(s|y) follows.

    Where a joint state has been seen often, its own frequency counts; where seldom, the product of the
    agents' own tables, and where these have seen little too, the agent's frequency of such answers whatever
    the class, which says nothing.

    Attributes:
        states: [n, A] of the posts that are counted.
        weights: [n, K] how much each counts for each class.
    """

    states: IntArray
    weights: FloatArray

    @cached_property
    def totals(self) -> FloatArray:
        """[K] the weight of each class."""
        return np.asarray(self.weights.sum(0))

    def log_likelihood(
        self, states: IntArray, agents: Sequence[int], own: FloatArray | None = None
    ) -> FloatArray:
        """Return log P(s|y) [B, K] of the answers of some agents.

        Args:
            states: [B, A].
            agents: Which columns are heard.
            own: [B, K] what the posts themselves have contributed to the counts, to be taken out again; None:
                nothing.
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
    """How classifier and agents are weighed against each other: exponents and offsets [K]."""

    classifier: float
    agents: float
    offsets: FloatArray


class Evidence(NamedTuple):
    """One post's posterior and where it comes from.

    Attributes:
        label: Index of the most probable class.
        probs: [K] the posterior q.
        log_odds: Party -> what it added to the log-odds of the label over the runner-up, which the shares add
            up to: "classifier", "base rate", and the agents by role. An agent's share is its Shapley value:
            what two agents say alike is halved between them.
        evidence: [K] what the agents' answers alone say: P(s|y)^c as shares that add up to 1.
    """

    label: int
    probs: tuple[float, ...]
    log_odds: Mapping[str, float]
    evidence: tuple[float, ...]


@dataclass(frozen=True)
class FittedPosterior:
    """The posterior of the judged posts, and what it was made of.

    Attributes:
        probs: [m, K] q.
        information: Share of the classes' uncertainty that the agents' answers remove, in [0, 1].
        weight: How much a judged post counts in training beside a labelled one, in [0, 1]: it follows
            `information`, so that agents who know nothing teach nothing.
    """

    probs: FloatArray
    information: float
    weights: Weights
    counts: StateCounts
    judged: Beliefs
    roles: tuple[str, ...]

    @property
    def weight(self) -> float:
        return min(1.0, self.information / FULL_WEIGHT_AT)

    def evidence(self) -> list[Evidence]:
        """Return each judged post's posterior with the log-odds that every party added."""
        classifier = self.weights.classifier * self.judged.log_probs
        agents = self.weights.agents * self._shapley()
        shares = softmax(agents.sum(0), axis=1)  # the agents' parts add up to all that they say
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
        heard: dict[tuple[int, ...], FloatArray] = {(): np.zeros_like(self.probs)}
        shares = np.zeros((count, *self.probs.shape))
        orders = list(permutations(range(count)))
        for order in orders:
            for place, agent in enumerate(order):
                before, after = tuple(sorted(order[:place])), tuple(sorted(order[: place + 1]))
                if after not in heard:
                    heard[after] = self.counts.log_likelihood(self.judged.states, after)
                shares[agent] += (heard[after] - heard[before]) / len(orders)
        return shares


def fit_posterior(
    labelled: Beliefs, labels: IntArray, judged: Beliefs, roles: Sequence[str], classes: int
) -> FittedPosterior:
    """Return the posterior of the judged posts.

    Args:
        labelled: The posts of known label, n >= 1.
        labels: [n] their classes, 0..K-1.
        judged: The judged posts, m >= 0.
        roles: Names of the A agents; none: q is the classifier's own probability, tempered.
        classes: K, at least 2.
    """
    agents = tuple(range(len(roles)))
    known = np.eye(classes)[labels]
    judged = Beliefs(_clipped(judged.log_probs), judged.states)
    own_log_probs = _clipped(labelled.log_probs)
    soft = np.zeros((len(judged.states), classes))  # at first the labelled posts alone fill the tables
    for _ in range(STEPS):
        counts = StateCounts(
            np.concatenate([labelled.states, judged.states]), np.concatenate([known, SOFT_WEIGHT * soft])
        )
        left_out = counts.log_likelihood(labelled.states, agents, own=known)
        weights = _fit_weights(own_log_probs, left_out, labels)
        said = counts.log_likelihood(judged.states, agents)
        soft = softmax(_combined(weights, judged.log_probs, said), axis=1)
    return FittedPosterior(soft, _information(counts, agents), weights, counts, judged, tuple(roles))


def _combined(weights: Weights, log_probs: FloatArray, said: FloatArray) -> FloatArray:
    return np.asarray(weights.classifier * log_probs + weights.agents * said + weights.offsets)


def _fit_weights(log_probs: FloatArray, said: FloatArray, labels: IntArray) -> Weights:
    """Exponents and offsets by penalised maximum likelihood on the labelled posts."""
    rows, classes = np.arange(len(labels)), log_probs.shape[1]
    start = np.array([*EXPONENTS, *np.zeros(classes)])
    # two classes have one free offset, written twice with opposite signs: half the pull each
    pull = np.array([PULL_POSTS, AGENTS_PULL_POSTS, *np.full(classes, 2 * PULL_POSTS)])
    known = np.eye(classes)[labels]

    def objective(theta: FloatArray) -> tuple[float, FloatArray]:
        scores = _combined(Weights(theta[0], theta[1], theta[2:]), log_probs, said)
        log_q = log_softmax(scores, axis=1)
        wrong = np.exp(log_q) - known
        moved = theta - start
        value = -log_q[rows, labels].sum() + 0.5 * (pull * moved**2).sum()
        slope = np.array([(wrong * log_probs).sum(), (wrong * said).sum(), *wrong.sum(0)])
        return float(value), slope + pull * moved

    free = (None, None)
    bounds = [free, (0, None), *[free] * classes]  # the tables turn a contrary agent round; nothing else may
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return Weights(float(found[0]), float(found[1]), found[2:])


def _information(counts: StateCounts, agents: tuple[int, ...]) -> float:
    """Mutual information of joint state and class, as a share of the class's entropy; 0 without agents."""
    if not agents:
        return 0.0
    prior = counts.totals / counts.totals.sum()
    log_joint = counts.log_likelihood(counts.states, agents) + np.log(prior)
    log_given = log_joint - logsumexp(log_joint, axis=1, keepdims=True)
    gain = (np.exp(log_given) * (log_given - np.log(prior))).sum(1)
    entropy = -float((prior * np.log(prior)).sum())
    # every post stands for its state once: the labelled and the judged ones are all the states there are
    return float(np.clip(gain.mean() / entropy, 0.0, 1.0))


def _clipped(log_probs: FloatArray) -> FloatArray:
    """Log-probabilities centred by post, no class further than `CLIP` / 2 from the centre."""
    centred = log_probs - log_probs.mean(1, keepdims=True)
    return np.asarray(np.clip(centred, -CLIP / 2, CLIP / 2))

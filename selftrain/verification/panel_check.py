"""What is known of a panel before a run, where asking it costs nothing: does it answer, and are two worth it.

An agent that hardly ever answers teaches nothing, and it is better to hear of it before the rounds than after
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from agents.judgment import State
from agents.panel import Panel
from agents.trust import Answers, Trust, trust
from selftrain._util.types import FloatArray
from selftrain.data.corpus import Corpus
from selftrain.rounds import AgentGain, gain_lines
from selftrain.verification.posterior import agent_gains, beliefs_of

HARDLY = 0.05
"""An agent that answers a smaller share of the posts than this is useless."""
LOOKED_AT = 500
"""Pool posts that are asked about besides the labelled ones."""
LEARNED_FROM = 2_000
"""Pool posts from which agents that learn learn here: enough to see whether they answer."""


@dataclass(frozen=True)
class PanelCheck:
    """What agents said of the labelled posts and of some pool posts."""

    trust: Trust  # how good they are on the labelled posts
    answered: Mapping[str, int]  # role -> posts that got a label
    failed: Mapping[str, int]  # role -> posts without any answer
    looked_at: int  # of so many
    asked: int  # most posts that the run asks each agent about
    advice: str  # what to do about an agent that hardly answers, for this kind of agents
    # gives `gains`: a run that only warns does without a classifier to measure them by
    measure_gains: Callable[[], Mapping[str, AgentGain]]

    @cached_property
    def gains(self) -> Mapping[str, AgentGain]:
        """What each agent adds to the others and to a classifier."""
        return self.measure_gains()

    def warnings(self) -> Iterator[str]:
        """Yield a sentence for each agent that is useless, with what to do."""
        for role, count in self.answered.items():
            if count < HARDLY * self.looked_at:
                how = "failed" if self.failed[role] > self.looked_at / 2 else "abstained"
                yield (
                    f"{role} gave a label to {count:,} of {self.looked_at:,} posts that it was asked about"
                    f" before the run, {how} on most of them, and is useless so: {self.advice}"
                )

    def lines(self, cap: int | None = None) -> Iterator[str]:
        """Yield what to know before a run, for people to read; nothing is paid for, so no `cap` matters."""
        yield from self.warnings()
        for role, agent in self.trust.agents.items():
            value, low, high = agent.balanced
            yield (
                f"{role}: gives {self.answered[role] / self.looked_at:.0%} of the posts a label, balanced"
                f" accuracy on the labelled ones {value:.2f} ({low:.2f} to {high:.2f})"
            )
        calls = self.asked * len(self.answered)
        yield f"posts asked about: at most {self.asked:,}; answers, before cross-review: {calls:,}"
        yield from gain_lines(self.gains)


def check_panel(panel: Panel, corpus: Corpus, *, asked: int, advice: str, seed: int = 0) -> PanelCheck:
    """Ask agents that cost nothing about the labelled posts and a sample of the pool.

    The panel is begun anew for this: it is fitted here. Raises AgentError as it does.
    """
    draw = np.random.RandomState(seed)
    sample = corpus.pool[draw.permutation(len(corpus.pool))[:LEARNED_FROM]]
    labelled, pool = ([corpus.posts[i] for i in positions] for positions in (corpus.labelled, sample))
    panel.fit(labelled, pool=pool)
    figures, answers = trust(panel, labelled)
    more = panel.predict_out_of_fold(pool[:LOOKED_AT])
    said = {role: [*answers[role], *more[role]] for role in answers}
    return PanelCheck(
        trust=figures,
        answered={role: sum(one.label is not None for one in given) for role, given in said.items()},
        failed={role: sum(one.state is State.FAILED for one in given) for role, given in said.items()},
        looked_at=len(labelled) + len(pool[:LOOKED_AT]),
        asked=asked,
        advice=advice,
        measure_gains=partial(_gains, answers, corpus, seed),
    )


def _gains(answers: Answers, corpus: Corpus, seed: int) -> dict[str, AgentGain]:
    rows = list(zip(*answers.values(), strict=True))
    labels = corpus.labels[corpus.labelled].astype(np.int64)
    known = beliefs_of(corpus.classes, _plain_classifier(corpus, seed), rows)
    return agent_gains(known, labels, tuple(answers), len(corpus.classes))


def _plain_classifier(corpus: Corpus, seed: int) -> FloatArray:
    """Log-probabilities [n, K] of the labelled posts by logistic regression on the features, out of fold.

    For what a second agent adds it is close enough to the run's classifier, and it takes no time.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    labels = corpus.labels[corpus.labelled]
    folds = min(5, int(np.bincount(labels, minlength=len(corpus.classes)).min()))
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    model = LogisticRegression(C=10, max_iter=1000)
    probs = cross_val_predict(model, corpus.rows(corpus.labelled), labels, cv=parts, method="predict_proba")
    return np.asarray(np.log(np.maximum(probs, 1e-9)))

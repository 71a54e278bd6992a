"""What an agent's answers add to what classifier and the other agents know: a reason to ask it, or not to.

With s_a the agent's answer, the mutual information I(s_a; y | s_others, p) is the mean of log q(y) with the
agent less log q(y) without it, over posts of known label. Labelled posts are left out of the tables and of
the weights that are used on them, so an agent that adds nothing has a gain about 0, or a little below.

Shape legend: ``n`` labelled posts, ``A`` agents, ``K`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from selftrain._util.types import FloatArray, IntArray
from selftrain.rounds import AgentGain
from selftrain.verification.posterior import Beliefs, held_out_log_probs


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

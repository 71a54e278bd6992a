"""Parts of a third party, as small as they can be: an agent, a trainer, people.

The other kinds are the examples of docs/extending.md. This module imports nothing but `selftrain`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import selftrain as st
from selftrain import agents


class Words:
    """An agent that knows some words of the positive class; in doubt it stays with what it said."""

    simulated = False

    def __init__(self, role, words, classes):
        self.role, self.words, self.classes = role, words, classes

    def judge(self, posts):
        return [self._judgment(post, 0) for post in posts]

    def reconsider(self, candidates, own, other):
        return [self._judgment(candidate.post, 1) for candidate in candidates]

    def describe(self):
        return {"role": self.role, "source": "words"}

    def _judgment(self, post, step):
        label = self.classes[0 if any(word in post.text.lower() for word in self.words) else 1]
        return agents.Judgment(self.role, step, agents.State.LABEL, label, 0.75, "by its words", "words")


class Means:
    """A model: the difference of two class means, as a direction."""

    curve, best_epoch = (), 0

    def __init__(self, direction, middle):
        self.direction, self.middle = direction, middle

    def save(self, file, metadata):
        record = {"direction": self.direction.tolist(), "middle": float(self.middle), **metadata}
        file.write_text(json.dumps(record))


class NearestMean:
    """A trainer of `Means`; it reads hard labels alone."""

    def __init__(self, sharpness=10.0):
        self.sharpness = sharpness

    def fit(self, corpus, training, *, loss, seed, where, start):
        rows, targets = corpus.rows(training.positions), training.targets[:, 0]
        up, down = rows[targets > 0.5].mean(0), rows[targets < 0.5].mean(0)
        return Means(up - down, (up @ up - down @ down) / 2)

    def logits(self, model, corpus, positions):
        rows = corpus.rows(positions)
        positive = self.sharpness * (rows @ model.direction - model.middle)
        yield positions, np.stack([np.zeros_like(positive), positive], axis=1).astype(np.float32)

    def calibrate(self, model, calibration):
        return model  # its sharpness is all that it knows

    def load(self, file):
        record = json.loads(Path(file).read_text())
        return Means(np.array(record["direction"], np.float32), record["middle"])


class Desk:
    """People who label a few doubtful posts of each round; `for_run` gives them the run to look at."""

    def __init__(self, label, most=2):
        self.label, self.most = label, most

    def for_run(self, run):
        return DeskOfRun(self, run.folder)


class DeskOfRun:
    def __init__(self, desk, folder):
        self.desk, self.folder = desk, folder

    def ready(self, number):
        return True

    def answers(self, used):
        finished = range(self.folder.finished())
        verdicts = [one for number in finished for one in self.folder.verdicts(number)[-20:]]
        doubtful = [one.post_id for one in verdicts if one.doubtful]
        asked = dict.fromkeys(doubtful[: self.desk.most * len(finished)])
        return [st.HumanLabel(one, self.desk.label, ("desk",)) for one in asked if one not in used]

    def close(self):
        pass

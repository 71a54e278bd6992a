"""Fakes for the loop: posts without features, a model whose quality a script decides, a panel of one mind."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
from class_helpers import both

from agents.judgment import Judgment, State, Verdict
from backbones.base import FeatureLayout
from losses.pnu import PNULoss
from selftrain import loop
from selftrain.data.corpus import UNKNOWN, Corpus
from selftrain.data.posts import Post
from selftrain.selection import TopK
from selftrain.state import RoundLimits
from selftrain.store import atomic
from selftrain.store.run_dir import RunFolder
from selftrain.verification.rules import Unanimous

VALIDATION = 20


class MemoryRows:
    """Features in memory, eight columns of words."""

    layout = FeatureLayout(8, 0)

    def __init__(self, values):
        self.values = values

    def rows(self, positions):
        return self.values[np.asarray(positions)]


def turns(sizes, classes):
    """The classes of all posts, one after the other: a label each."""
    return (np.arange(sum(sizes)) % len(classes)).astype(np.int16)


def corpus_of(sizes, classes, rows=None):
    """Posts labelled in `turns`; positions count on from labelled over validation and pool to test."""
    truth = turns(sizes, classes)
    parts = [np.arange(a, b, dtype=np.int64) for a, b in pairwise(np.cumsum((0, *sizes)))]
    labels = truth.copy()
    labels[parts[2]] = UNKNOWN
    posts = [
        Post(id=f"p{i}", text=f"text {i}", label=None if labels[i] < 0 else classes[truth[i]])
        for i in range(len(truth))
    ]
    table = None if rows is None else MemoryRows(rows)
    return Corpus(posts, table, *parts, labels, truth, classes)


def make_corpus(pool=30, labelled=6, test=0):
    """Posts of two classes, without features."""
    return corpus_of((labelled, VALIDATION, pool, test), ("ham", "spam"))


def written(folder):
    """Every file that decides what follows, but for the seconds, and what took them where."""
    apart = {"seconds": 0, "stages": []}
    metrics = [json.loads(file.read_text()) | apart for file in sorted(folder.rglob("metrics.json"))]
    return {file.relative_to(folder): file.read_text() for file in sorted(folder.rglob("*.jsonl"))}, metrics


def chance(*key):
    """A number in [0, 1) that depends on the key alone."""
    return int.from_bytes(sha256(repr(key).encode()).digest()[:8], "big") / 2**64


@dataclass(frozen=True)
class ScriptedModel:
    """Right on so many validation posts; on the pool each round has a mind of its own."""

    right: int
    number: int
    curve = ()
    best_epoch = 1

    def save(self, file, metadata):
        atomic.write_json(file, {"right": self.right, "number": self.number, **metadata})


class ScriptedTrainer:
    """Round n becomes a model that is right on script[n] of the validation posts."""

    def __init__(self, script, spread=2.0):
        self.script, self.spread = script, spread
        self.trainings = {}
        self.starts = {}

    def fit(self, corpus, training, *, loss, seed, where, start):
        number = int(where.removeprefix("round "))
        self.trainings[number], self.starts[number] = training, start
        return ScriptedModel(self.script[number], number)

    def logits(self, model, corpus, positions):
        for part in np.array_split(positions, max(1, len(positions) // 7)):
            sign = np.where(corpus.truth[part] == 1, 1.0, -1.0)
            noise = np.array([self.spread * (2 * chance(model.number, int(p)) - 1) for p in part])
            value = sign + noise.reshape(-1)
            first = int(corpus.validation[0])
            scored = (part >= first) & (part < first + VALIDATION)
            value[scored] = np.where(part[scored] - first < model.right, 1, -1) * sign[scored]
            yield part, both(value)

    def load(self, file):
        record = json.loads(Path(file).read_text())
        return ScriptedModel(record["right"], record["number"])


class HashPanel:
    """Two agents of one mind: they agree with the classifier on a share of posts that the id decides."""

    def __init__(self, agreement=0.6, simulated=False):
        self.agreement, self.simulated = agreement, simulated
        self.asked = []
        self.lessons = []

    def fit(self, labelled, *, accepted=(), pool=()):
        self.lessons.append([(one.post.id, one.label) for one in accepted])

    def verify(self, candidates):
        self.asked.append([one.post.id for one in candidates])
        return [self._verdict(one) for one in candidates]

    def _verdict(self, one):
        agreed = chance("panel", one.post.id, one.label) < self.agreement
        judgments = tuple(
            Judgment(role, 0, State.LABEL, one.label, 0.9, "seen", "fake")
            if agreed
            else Judgment(role, 0, State.ABSTAIN, None, None, "unsure", "fake")
            for role in ("reviewer", "user")
        )
        return Verdict(one.post.id, one.label, one.probability, judgments)

    def predict_out_of_fold(self, labelled):
        return {}

    def describe(self):
        return {"protocol": "fake"}


def settings(tmp_path, *, rounds=5, patience=9, budget=None, reselect_divergent=True, **kwargs):
    limits = RoundLimits(rounds, patience, budget, reselect_divergent)
    return loop.LoopSettings(limits=limits, root=tmp_path, **kwargs)


def run(folder, corpus, script, panel=None, *, trainer=None, **kwargs):
    """All rounds of a loop in `folder`."""
    return list(rounds_of(folder, corpus, script, panel, trainer=trainer, **kwargs))


def rounds_of(folder, corpus, script, panel=None, *, trainer=None, shares="equal", rule=None, **kwargs):
    return loop.self_train(
        corpus,
        trainer or ScriptedTrainer(script),
        panel or HashPanel(),
        selector=TopK(6, shares),
        loss=PNULoss(),
        folder=RunFolder(folder),
        settings=settings(folder, **kwargs),
        rule=rule or Unanimous(),
    )


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]

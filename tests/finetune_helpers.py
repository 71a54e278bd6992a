"""A backbone of a few hundred weights, and posts that a bag of words separates."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from class_helpers import column
from torch import nn

from backbones.base import Encoded, EncodeFailure, FeatureLayout
from losses import Group
from selftrain.data.corpus import Corpus, TrainingSet
from selftrain.data.posts import Post

VOCABULARY = ["rose", "lily", "iron", "zinc", "the", "old", "new", "near"]
WIDTH = 6


class WordsModule(nn.Module):
    """Counts of words [B, 8] to rows [B, WIDTH + 2]: a hidden layer, a projection, two flags."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(len(VOCABULARY), 16)
        self.project = nn.Linear(16, WIDTH)
        self.dropped = nn.Dropout(0.1)
        self.register_buffer("offset", torch.tensor([0.25]))

    def forward(self, inputs):
        states = self.dropped(torch.tanh(self.hidden(inputs["counts"] + self.offset)))
        flags = torch.tensor([1.0, 0.0]).expand(len(states), 2)
        return torch.cat([nn.functional.normalize(self.project(states), dim=1), flags], dim=1)


class WordsBackbone:
    """As `backbones.base.Backbone`, from one fixed draw; a text of "broken" cannot be encoded."""

    name = "words"
    layout = FeatureLayout(WIDTH, 0)

    def __init__(self, draw=7):
        with torch.random.fork_rng():
            torch.manual_seed(draw)
            self.module = WordsModule()
        self.collated = []

    def fingerprint(self):
        digest = hashlib.sha256()
        for name, value in sorted(self.module.state_dict().items()):
            digest.update(name.encode() + value.numpy().tobytes())
        return digest.hexdigest()

    def collate(self, posts, *, train=False):
        self.collated.append((tuple(post.id for post in posts), train))
        counts = [[float(post.text.split().count(word)) for word in VOCABULARY] for post in posts]
        return {"counts": torch.tensor(counts)}

    def encode(self, posts, *, batch_size=64, workers=0, progress=False):
        training = self.module.training
        self.module.eval()
        with torch.inference_mode():
            rows = self.module(self.collate(posts)).numpy().copy()
        self.module.train(training)
        broken = [index for index, post in enumerate(posts) if post.text == "broken"]
        rows[broken] = np.nan
        return Encoded(rows, tuple(EncodeFailure(index, "no words") for index in broken))

    def lora_targets(self):
        return ["hidden"]


def words_corpus(labelled=12, validation=8, pool=20, seed=0):
    """Positive posts are of flowers, negative ones of metals; half of the words say nothing."""
    generator = np.random.default_rng(seed)
    posts, labels = [], []
    for number in range(labelled + validation + pool):
        value = number % 2
        telling = VOCABULARY[:2] if value else VOCABULARY[2:4]
        words = [*generator.choice(telling, 1), *generator.choice(VOCABULARY[4:], 3)]
        posts.append(Post(f"p{number}", " ".join(words)))
        labels.append(value)
    truth = np.array(labels, np.int8)
    shown = truth.copy()
    shown[labelled + validation :] = -1
    parts = np.split(np.arange(len(posts)), [labelled, labelled + validation])
    return Corpus(tuple(posts), None, *parts, np.empty(0, np.int64), shown, truth, ("metal", "flower"))


def words_training(corpus, agreed=3, divergent=2):
    """Labels, then `agreed` posts of each class and `divergent` ones of the pool."""
    positions, groups = list(corpus.labelled), [int(1 - corpus.labels[i]) for i in corpus.labelled]
    pool = iter(corpus.pool)
    for _ in range(2 * agreed):
        position = next(pool)
        positions.append(position)
        groups.append(Group.AGREED_POSITIVE if corpus.truth[position] else Group.AGREED_NEGATIVE)
    for _ in range(divergent):
        positions.append(next(pool))
        groups.append(Group.DIVERGENT)
    group_array = np.array(groups, np.int64)
    targets = np.where(group_array == Group.AGREED_POSITIVE, 0.67, 0.33).astype(np.float32)
    return TrainingSet(np.array(positions, np.int64), column(group_array), column(targets))

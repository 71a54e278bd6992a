"""Predictors without a model, for whom a text is its score and who can be held back; an application."""

from __future__ import annotations

import threading

import numpy as np
from starlette.testclient import TestClient

from backbones.errors import ImageError
from backbones.images import open_image
from selftrain.models.predictor import Prediction, ValidationScores
from selftrain.serving.app import Measures, Service, build_app
from selftrain.serving.batching import Batcher
from selftrain.serving.intake import Scratch


class TextPredictor:
    """A post whose text is a number has it as positive probability; "fail" has none; "raise" is a fault."""

    kind, name, positive = "classifier", "texts", "yes"
    classes = ("yes", "no")
    fingerprint = "f" * 64
    picture_side = None
    threshold = None

    def __init__(self, validation=None):
        self.calls = []
        self._validation = validation

    def predict(self, posts):
        self.calls.append([post.text for post in posts])
        if any(post.text == "raise" for post in posts):
            raise ArithmeticError("asked to fail")
        return [self._one(post) for post in posts]

    def _one(self, post):
        if post.text == "fail" or any(not path.exists() for path in post.images):
            return Prediction(post.id, reason=f"cannot read {post.images[0] if post.images else 'it'}")
        try:
            prob = min(max(float(post.text), 0.0), 1.0)
        except ValueError:
            prob = 0.5
        label = "yes" if prob > 0.5 else "no"
        both = {"yes": prob, "no": 1 - prob}
        return Prediction(post.id, label, both, {"many": {"a": 0.25, "b": 0.75}})

    def validation(self):
        return self._validation


class HeldPredictor(TextPredictor):
    """Waits in every call after the first (the one before readiness) until it is let go."""

    def __init__(self):
        super().__init__()
        self.entered = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def predict(self, posts):
        if self.calls:
            self.entered.release()
            assert self.go.acquire(timeout=30)
        return super().predict(posts)


def validation_of(labels, probs):
    return ValidationScores(np.array(labels, np.int8), np.array(probs, np.float64))


class PicturePredictor(TextPredictor):
    """Opens the pictures of a post as a model would: none that arrives large is small to it."""

    picture_side = 224

    def predict(self, posts):
        unreadable = {}
        for post in posts:
            try:
                for path in post.images:
                    open_image(path, target_size=self.picture_side).resize((224, 224))
            except ImageError as error:
                unreadable[post.id] = str(error)
        found = super().predict(posts)
        return [one._replace(reason=unreadable.get(one.id, one.reason)) for one in found]


class Served:
    """An application around a model."""

    def __init__(self, root, predictor, limits, key, load):
        self.predictor, self.measures, self.scratch = predictor, Measures(), Scratch(root)
        self.loaded = threading.Event()
        self.batcher = Batcher(
            lambda: predictor, max_batch=4, max_wait=0, max_queue=8, observe=self.measures.batch
        )
        self.service = Service(self.batcher, self.scratch, self.measures, limits=limits, key=key)
        self.client = TestClient(build_app(self.service), base_url="http://localhost")
        if load:
            self.load()

    def load(self):
        self.batcher.start(self.loaded.set)
        assert self.loaded.wait(30)

    def measured(self):
        """Prometheus' lines as a table."""
        lines = self.measures.text().decode().splitlines()
        return {k: float(v) for k, _, v in (line.rpartition(" ") for line in lines if line[0] != "#")}

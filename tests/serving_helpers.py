"""Predictors without a model: what a text says is its score, and what happens can be held back."""

from __future__ import annotations

import threading

import numpy as np

from backbones.errors import ImageError
from backbones.images import open_image
from selftrain.models.predictor import Prediction, ValidationScores


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

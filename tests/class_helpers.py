"""Logits of two classes as models give them, from those of the positive one."""

import numpy as np


def both(logits):
    """[B, 2] with a 0 for the negative class."""
    positive = np.asarray(logits, np.float32)
    return np.stack([np.zeros_like(positive), positive], axis=1)


def column(values):
    """[B, 1], as groups and targets of two classes."""
    return np.asarray(values)[:, None]

"""Training with the ACT loss: machine labels for all posts, human labels for a reviewed sample, K classes.

Shape legend: ``M`` training posts, ``V`` validation posts, ``D`` width of a feature row, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from backbones.base import Backbone, Encodable, FeatureLayout
from losses.act import act_cross_entropy
from selftrain._util.types import Float32Array, IntArray
from selftrain.errors import TrainingError
from selftrain.models.act_model import ACTModel, rows_of
from selftrain.models.calibration import fit_temperature
from selftrain.models.head import HeadSettings, fit_head, fit_scaling


class ACTTrainer:
    """Trains a classifier of K classes on machine labels and a few human ones, with the ACT loss.

    The loss is that of a fully human-labelled set in the mean, however wrong the machine's labels are, where
    every post had a chance of review; see `losses.act`.

    Args:
        classes: K names, two or more.
        backbone: Turns posts into feature rows; None: rows are given.
        positive: The class that is looked for, by thresholds; None: the first.
        settings: Of the head and its training.
        power: lambda of the loss, >= 0; 1 is the published one, 0 uses the human labels alone.
        seed: Of the initial weights and of dropout.
        batch_size, workers: Handed to the backbone.

    Raises:
        TrainingError: Fewer than two classes, one of them twice, or a positive one that is none of them.

    Example::

        trainer = ACTTrainer(("rude", "kind"), backbone=backbone)
        model = trainer.fit(posts, machine, human, inclusion, validation=(checked, labels))
        model.predict(more_posts)
        model.save(Path("model"))
    """

    def __init__(
        self,
        classes: Sequence[str],
        *,
        backbone: Backbone | None = None,
        positive: str | None = None,
        settings: HeadSettings | None = None,
        power: float = 1.0,
        seed: int = 0,
        batch_size: int = 64,
        workers: int = 0,
    ) -> None:
        self.classes = tuple(classes)
        self.positive = self.classes[0] if positive is None and self.classes else str(positive)
        named = not isinstance(classes, str) and all(isinstance(one, str) for one in self.classes)
        if (
            not named
            or len(set(self.classes)) < max(2, len(self.classes))
            or self.positive not in self.classes
        ):
            raise TrainingError(
                f"classes {classes!r}, positive {positive!r}: expected two or more different names in a list,"
                " and one of them"
            )
        self.backbone, self.settings = backbone, settings or HeadSettings()
        self.power, self.seed, self.batch_size, self.workers = power, seed, batch_size, workers

    def fit(
        self,
        data: Sequence[Encodable] | Float32Array,
        machine: Sequence[str],
        human: Sequence[str | None],
        inclusion: npt.ArrayLike,
        *,
        validation: tuple[Sequence[Encodable] | Float32Array, Sequence[str]],
        layout: FeatureLayout | None = None,
    ) -> ACTModel:
        """Train, keep the epoch with the best macro-F1 on the validation posts, calibrate on them.

        Args:
            data: M posts, or feature rows [M, D].
            machine: [M] the machine's labels. Of a post that nobody but people labelled: theirs.
            human: [M] people's labels, None where nobody looked or could tell.
            inclusion: pi [M], the probability with which each post was sent to review, in (0, 1] where
                somebody looked; 1 for posts that were labelled by people without a draw.
            validation: Posts or rows [V] of trusted labels, and those.
            layout: Of rows that are given; None: not known.

        Raises:
            TrainingError: No post to train or validate on, a label that is no class, rows or labels of
                different lengths, posts without a backbone or that cannot be encoded.
            BatchError: A probability outside [0, 1], or 0 where somebody looked.
            NonFiniteLossError: A NaN or infinite loss, with the epoch and every part.
        """
        pi = np.array(inclusion, dtype=np.float64).reshape(-1)  # a copy: torch reads not every array in place
        checked, truth = validation
        lengths = [len(data), len(machine), len(human), len(pi)]
        if len(set(lengths)) > 1 or len(checked) != len(truth):
            raise TrainingError(
                f"{lengths[0]} posts, {lengths[1]} machine labels, {lengths[2]} human labels (or None),"
                f" {lengths[3]} probabilities; {len(checked)} validation posts, {len(truth)} labels: expected"
                " as many of each"
            )
        reviewed = np.array([label is not None for label in human], dtype=bool)
        given = [one if one is not None else other for one, other in zip(human, machine, strict=True)]
        labels = (self._indices(machine), self._indices(given), reviewed, pi)
        validation_labels = self._indices(truth)
        rows, checked_rows = (
            rows_of(one, self.backbone, self.batch_size, self.workers) for one in (data, checked)
        )
        if not len(rows) or not len(checked_rows) or rows.shape[1] != checked_rows.shape[1]:
            raise TrainingError(
                f"ACT training: rows of shape {rows.shape} to train on and {checked_rows.shape} to validate"
                " on: expected at least one of each, of one width"
            )
        known = tuple(map(torch.from_numpy, labels))
        classifier = fit_head(
            rows, lambda z: act_cross_entropy(z, *known, power=self.power), checked_rows, validation_labels,
            scaling=fit_scaling(rows, self.backbone.layout if self.backbone is not None else layout),
            settings=self.settings, seed=self.seed, classes=self.classes, where="ACT training",
            calibrate=fit_temperature,
        )  # fmt: skip
        return ACTModel(
            classifier, self.positive, self.backbone, batch_size=self.batch_size, workers=self.workers
        )

    def _indices(self, labels: Sequence[str]) -> IntArray:
        unknown = sorted({str(label) for label in labels} - set(self.classes))
        if unknown:
            raise TrainingError(f"the label {unknown[0]!r} is no class: expected one of {list(self.classes)}")
        return np.array([self.classes.index(label) for label in labels], dtype=np.int64)

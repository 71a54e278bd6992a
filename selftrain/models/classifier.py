"""A trained head with its calibration: trained on feature rows, saved and loaded.

Shape legend: ``M`` training posts, ``V`` validation posts, ``B`` posts, ``D`` width of a feature row, ``K``
classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from losses.base import ClassLoss, LossOutput
from selftrain._util.numeric import decide
from selftrain._util.types import Float32Array, IntArray, Json, LabelArray
from selftrain.data.corpus import TrainingSet
from selftrain.errors import NonFiniteLossError, RunStateError
from selftrain.models.calibration import Calibration, fit_calibration, probabilities
from selftrain.models.head import Head, HeadSettings, Scaling, logits_of, train_layers
from selftrain.models.metrics import macro_f1
from selftrain.models.model_file import read_model, write_model
from selftrain.models.train_loop import EpochResult, best_epoch

FORMAT, CLASSES_FORMAT = "selftrain-head-1", "selftrain-classes-2"
"""Of a file whose head computes one logit for two classes, and of one with a logit a class."""
FORMATS = (FORMAT, CLASSES_FORMAT)


@dataclass(frozen=True)
class HeadClassifier:
    """A trained head with its calibration."""

    head: Head  # in evaluation mode, on the CPU
    calibration: Calibration  # from the validation posts
    settings: HeadSettings  # as it was built
    curve: tuple[EpochResult, ...] = ()  # validation macro-F1 and loss parts over the epochs
    best_epoch: int = 0  # the epoch whose weights these are
    # k names, in the order of the logits; none where one computed logit tells two classes apart
    classes: tuple[str, ...] = ()

    def logits(self, rows: Float32Array) -> Float32Array:
        """Return calibrated logits [B, K] of rows [B, D]."""
        return self.calibration(logits_of(self.head, rows))

    def probabilities(self, rows: Float32Array) -> Float32Array:
        """Return calibrated probabilities [B, K] of rows [B, D]."""
        return np.asarray(probabilities(self.logits(rows)), dtype=np.float32)

    def predict(self, rows: Float32Array) -> IntArray:
        """Return the class of each row [B]: its column."""
        return decide(self.logits(rows))

    def save(self, file: Path, metadata: Mapping[str, Any]) -> None:
        """Write safetensors, with settings, calibration and `metadata` in the header."""
        own: Json = {"settings": self.settings._asdict(), "calibration": self.calibration._asdict()}
        kind: Json = (
            {"format": CLASSES_FORMAT, "classes": self.classes} if self.classes else {"format": FORMAT}
        )
        write_model(file, dict(metadata) | own | kind, self.head.state_dict())


def load_head(file: Path, formats: Sequence[str] = FORMATS) -> tuple[HeadClassifier, Json]:
    """Load a saved head, and the metadata that it was saved with; RunStateError: no head of these formats."""
    tensors, header = read_model(file, formats)
    try:
        settings = HeadSettings(**header.pop("settings"))
        classes = tuple(header.pop("classes", ()))
        scaling = Scaling(*(tensors[name].numpy() for name in Scaling._fields))
        head = Head(scaling, settings.kind, settings.hidden, settings.dropout, len(classes) or 1)
        head.load_state_dict(tensors)
        calibration = Calibration(**header.pop("calibration"))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunStateError(f"{file} is incomplete ({error}): its folder is damaged") from error
    return HeadClassifier(head.eval(), calibration, settings, classes=classes), header


def train_head(
    rows: Float32Array,
    training: TrainingSet,
    validation_rows: Float32Array,
    validation_labels: LabelArray,
    *,
    scaling: Scaling,
    loss: ClassLoss,
    settings: HeadSettings,
    seed: int,
    classes: Sequence[str] = (),
    start: HeadClassifier | None = None,
    where: str = "training",
) -> HeadClassifier:
    """Train a head on rows [M, D] of `training.positions`; see `fit_head`.

    Without validation posts there is nothing to choose an epoch by, or to calibrate on: the last epoch
    counts, its macro-F1 is that on the labels themselves, and the logits are left as they are.
    """
    groups, targets = torch.from_numpy(training.groups), torch.from_numpy(training.targets)
    validated, chosen = bool(len(validation_labels)), settings
    if not validated:
        validation_rows, validation_labels = rows[training.labelled], training.labels
        chosen = settings._replace(evaluate_every=settings.epochs)
    fitted = fit_head(
        rows, lambda logits: loss(logits, groups, targets), validation_rows, validation_labels,
        scaling=scaling, settings=chosen, seed=seed, classes=classes, start=start, where=where,
    )  # fmt: skip
    return fitted if validated else replace(fitted, calibration=Calibration(), settings=settings)


def fit_head(
    rows: Float32Array,
    loss: Callable[[Tensor], LossOutput],
    validation_rows: Float32Array,
    validation_labels: LabelArray | IntArray,
    *,
    scaling: Scaling,
    settings: HeadSettings,
    seed: int,
    classes: Sequence[str] = (),
    start: HeadClassifier | None = None,
    where: str = "training",
) -> HeadClassifier:
    """Train a head on all rows at once, keep the epoch with the best validation macro-F1, calibrate it.

    Full batches: every group's mean is over the whole group, as the risks are written, and a few thousand
    rows are one small matrix product.

    Args:
        rows, loss: Rows [M, D], and the loss of their logits [M, K].
        validation_rows, validation_labels: [V, D] and [V] classes.
        scaling: Of the rows; a head given as `start` keeps its own.
        seed: Of the initial weights and of dropout.
        classes: K names; none for a head that computes one logit for two.
        start: Go on from this head rather than from new weights.
        where: Said in an error ("round 3").

    Raises:
        NonFiniteLossError: A NaN or infinite loss, with the epoch and every part.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if start is not None:
            scaling = Scaling(*(getattr(start.head, name).numpy() for name in Scaling._fields))
            kind, hidden, dropout, *_ = start.settings
            settings = settings._replace(kind=kind, hidden=hidden, dropout=dropout)
        head = Head(scaling, settings.kind, settings.hidden, settings.dropout, len(classes) or 1)
        if start is not None:
            head.load_state_dict(start.head.state_dict())
        prepared = head.prepare(torch.from_numpy(validation_rows))
        curve = train_layers(
            head, head.prepare(torch.from_numpy(rows)), prepared, loss=loss,
            score=lambda logits: macro_f1(validation_labels, decide(logits.numpy())),
            settings=settings, where=where,
        )  # fmt: skip
    with torch.inference_mode():
        raw = head.read(prepared).numpy()
    if not np.isfinite(raw).all():  # the last step's own doing: no loss was computed after it
        raise NonFiniteLossError(
            f"{where}: the trained head gives logits that are not finite. Lower classifier.learning_rate"
        )
    calibration = fit_calibration(raw[:, -(len(classes) or 1) :], validation_labels)
    return HeadClassifier(head, calibration, settings, curve, best_epoch(curve).epoch, tuple(classes))

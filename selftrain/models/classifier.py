"""The classifier's head: trained on feature rows with a PNU loss, calibrated, saved and loaded.

Shape legend: ``M`` training posts, ``V`` validation posts, ``D`` width of a feature row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from losses.base import RoundLoss
from selftrain._util.types import Float32Array, LabelArray
from selftrain.data.corpus import TrainingSet
from selftrain.errors import NonFiniteLossError, RunStateError
from selftrain.models.calibration import Calibration, fit_calibration
from selftrain.models.head import Head, HeadSettings, Scaling, train_layers
from selftrain.models.metrics import macro_f1
from selftrain.models.model_file import read_model, write_model
from selftrain.models.train_loop import EpochResult, best_epoch

FORMAT = "selftrain-head-1"


@dataclass(frozen=True)
class HeadClassifier:
    """A trained head with its calibration.

    Attributes:
        head: In evaluation mode, on the CPU.
        calibration: From the validation posts.
        settings: As it was built.
        curve: Validation macro-F1 and loss parts over the epochs.
        best_epoch: The epoch whose weights these are.
    """

    head: Head
    calibration: Calibration
    settings: HeadSettings
    curve: tuple[EpochResult, ...] = ()
    best_epoch: int = 0

    @torch.inference_mode()
    def logits(self, rows: Float32Array) -> Float32Array:
        """Calibrated logits [B] of the positive class for feature rows [B, D]."""
        return self.calibration(self.head(torch.from_numpy(rows)).numpy())

    def save(self, file: Path, metadata: Mapping[str, Any]) -> None:
        """Safetensors, with settings, calibration and `metadata` in the header."""
        own = {"settings": self.settings._asdict(), "calibration": self.calibration._asdict()}
        write_model(file, dict(metadata) | {"format": FORMAT} | own, self.head.state_dict())


def load_head(file: Path) -> tuple[HeadClassifier, dict[str, Any]]:
    """A saved head and the metadata that it was saved with.

    Raises:
        RunStateError: Missing, damaged, or not a head of this format.
    """
    tensors, header = read_model(file, [FORMAT])
    try:
        settings = HeadSettings(**header.pop("settings"))
        scaling = Scaling(*(tensors[name].numpy() for name in Scaling._fields))
        head = Head(scaling, settings.kind, settings.hidden, settings.dropout)
        head.load_state_dict(tensors)
        calibration = Calibration(**header.pop("calibration"))
    except (KeyError, TypeError, RuntimeError) as error:
        raise RunStateError(f"{file} is incomplete ({error}): the run folder is damaged") from error
    return HeadClassifier(head.eval(), calibration, settings), header


def train_head(
    rows: Float32Array,
    training: TrainingSet,
    validation_rows: Float32Array,
    validation_labels: LabelArray,
    *,
    scaling: Scaling,
    loss: RoundLoss,
    settings: HeadSettings,
    seed: int,
    start: HeadClassifier | None = None,
    where: str = "training",
) -> HeadClassifier:
    """Train a head on all rows at once, keep the epoch with the best validation macro-F1, calibrate it.

    Full batches: every group's mean is over the whole group, as the risks are written, and a few thousand
    rows are one small matrix product.

    Args:
        rows: [M, D] feature rows of `training.positions`.
        training: Groups and targets of those rows.
        validation_rows: [V, D].
        validation_labels: [V], 1 for the positive class.
        scaling: Of the rows; a head given as `start` keeps its own.
        loss: The loss.
        settings: See `HeadSettings`.
        seed: Of the initial weights and of dropout.
        start: Go on from this head rather than from new weights.
        where: Said in an error ("round 3").

    Raises:
        NonFiniteLossError: A NaN or infinite loss, with the epoch and every part.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = (
            Head(scaling, settings.kind, settings.hidden, settings.dropout) if start is None else _copy(start)
        )
        prepared = head.prepare(torch.from_numpy(validation_rows))
        groups, targets = torch.from_numpy(training.groups), torch.from_numpy(training.targets)
        curve = train_layers(
            head, head.prepare(torch.from_numpy(rows)), prepared,
            loss=lambda logits: loss(logits, groups, targets),
            score=lambda logits: macro_f1(validation_labels, (logits.numpy() > 0).astype(np.int8)),
            settings=settings, where=where,
        )  # fmt: skip
    with torch.inference_mode():
        raw = head.read(prepared).numpy()
    if not np.isfinite(raw).all():  # the last step's own doing: no loss was computed after it
        raise NonFiniteLossError(
            f"{where}: the trained head gives logits that are not finite. Lower classifier.learning_rate"
        )
    calibration = fit_calibration(raw, validation_labels)
    return HeadClassifier(head, calibration, settings, curve, best_epoch(curve).epoch)


def _copy(start: HeadClassifier) -> Head:
    scaling = Scaling(*(getattr(start.head, name).numpy() for name in Scaling._fields))
    head = Head(scaling, start.settings.kind, start.settings.hidden, start.settings.dropout)
    head.load_state_dict(start.head.state_dict())
    return head

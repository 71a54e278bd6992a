"""The classifier's head: trained on feature rows with a PNU loss, calibrated, saved and loaded.

Shape legend: ``M`` training posts, ``V`` validation posts, ``D`` width of a feature row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from backbones.base import FeatureLayout
from losses.pnu import PNULoss
from selftrain.calibration import Calibration, fit_calibration
from selftrain.errors import NonFiniteLossError, RunStateError, TrainingError
from selftrain.metrics import macro_f1
from selftrain.model_file import read_model, write_model

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
LabelArray = npt.NDArray[np.int8]


class TrainingSet(NamedTuple):
    """What a model learns from, as positions in the corpus.

    Attributes:
        positions: [M] positions of the posts.
        groups: [M] `losses.groups.Group` values.
        targets: [M] soft targets in [0, 1], read for agreed posts.
    """

    positions: IntArray
    groups: npt.NDArray[np.int64]
    targets: FloatArray


FORMAT = "selftrain-head-1"


class HeadSettings(NamedTuple):
    """How a head is built and trained; the defaults come from the ablation in docs/experiments.md."""

    kind: str = "mlp"
    hidden: int = 32
    dropout: float = 0.3
    epochs: int = 40
    learning_rate: float = 0.01
    weight_decay: float = 1e-3
    evaluate_every: int = 5


class Progress(NamedTuple):
    """One evaluated epoch: mean loss parts since the last one, and the validation macro-F1."""

    epoch: int
    parts: dict[str, float]
    macro_f1: float


class Scaling(NamedTuple):
    """How a head reads feature rows.

    Attributes:
        columns: [C] columns that vary at all; the others (an absent modality, say) are not read.
        mean: [C] mean of each.
        scale: [C] one factor a block, so that text and image speak equally loud whatever their widths.
    """

    columns: IntArray
    mean: FloatArray
    scale: FloatArray


class Head(nn.Module):
    """Feature rows [B, D] to logits [B]; the rows are centred and scaled as `Scaling` says."""

    columns: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, scaling: Scaling, kind: str, hidden: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("columns", torch.from_numpy(scaling.columns))
        self.register_buffer("mean", torch.from_numpy(scaling.mean))
        self.register_buffer("scale", torch.from_numpy(scaling.scale))
        width = len(scaling.columns)
        self.layers: nn.Module
        if kind == "mlp":
            self.layers = nn.Sequential(
                nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, 1)
            )
        else:
            linear = nn.Linear(width, 1)
            # from zero the first steps are those of ridge regression: no luck of the draw
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
            self.layers = linear

    def prepare(self, rows: Tensor) -> Tensor:
        """Rows [B, D] as the layers read them [B, C]."""
        return (rows[:, self.columns] - self.mean) * self.scale

    def forward(self, rows: Tensor) -> Tensor:
        logits: Tensor = self.layers(self.prepare(rows)).squeeze(-1)
        return logits


BLOCK_NORM = 10.0  # root mean square length of a centred block; sets how far a step of the optimiser goes


def fit_scaling(rows: FloatArray, layout: FeatureLayout) -> Scaling:
    """Constants of feature rows [N, D]; no label is looked at, so the pool's rows serve best.

    Raises:
        TrainingError: No column varies: the posts all look the same to the backbone.
    """
    deviation = rows.std(0)
    scale = np.zeros(rows.shape[1], np.float32)
    for block in (layout.text, layout.image):
        length = float(np.sqrt((deviation[block] ** 2).sum()))
        if length > 1e-6:
            scale[block] = BLOCK_NORM / length
    for flag in (layout.has_text, layout.has_image):
        scale[flag] = 1.0
    columns = np.flatnonzero((deviation > 1e-6) & (scale > 0)).astype(np.int64)
    if not len(columns):
        raise TrainingError(
            f"the features of {len(rows)} posts are all the same: there is nothing to learn from"
        )
    return Scaling(columns, rows.mean(0)[columns].astype(np.float32), scale[columns])


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
    curve: tuple[Progress, ...] = ()
    best_epoch: int = 0

    @torch.inference_mode()
    def logits(self, rows: FloatArray) -> FloatArray:
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
    rows: FloatArray,
    training: TrainingSet,
    validation_rows: FloatArray,
    validation_labels: LabelArray,
    *,
    scaling: Scaling,
    loss: PNULoss,
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
        loss: The PNU loss.
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
        curve, best = _descend(
            head, head.prepare(torch.from_numpy(rows)), training, prepared, validation_labels,
            loss=loss, settings=settings, where=where,
        )  # fmt: skip
    head.layers.load_state_dict(best)
    head.eval()
    with torch.inference_mode():
        raw = head.layers(prepared).squeeze(-1).numpy()
    if not np.isfinite(raw).all():  # the last step's own doing: no loss was computed after it
        raise NonFiniteLossError(
            f"{where}: the trained head gives logits that are not finite. Lower classifier.learning_rate"
        )
    chosen = max(curve, key=lambda progress: progress.macro_f1)
    calibration = fit_calibration(raw, validation_labels)
    return HeadClassifier(head, calibration, settings, tuple(curve), chosen.epoch)


def _copy(start: HeadClassifier) -> Head:
    scaling = Scaling(*(getattr(start.head, name).numpy() for name in Scaling._fields))
    head = Head(scaling, start.settings.kind, start.settings.hidden, start.settings.dropout)
    head.load_state_dict(start.head.state_dict())
    return head


def _descend(
    head: Head,
    prepared: Tensor,
    training: TrainingSet,
    validation: Tensor,
    validation_labels: LabelArray,
    *,
    loss: PNULoss,
    settings: HeadSettings,
    where: str,
) -> tuple[list[Progress], dict[str, Tensor]]:
    """AdamW with cosine decay on prepared rows; the curve, and the layers' weights of its best epoch.

    Of equally good epochs the first counts.
    """
    groups, targets = torch.from_numpy(training.groups), torch.from_numpy(training.targets)
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    watch = LossWatch(where)
    curve: list[Progress] = []
    best_score, best = -1.0, head.layers.state_dict()
    for epoch in range(1, settings.epochs + 1):
        head.train()
        output = loss(head.layers(prepared).squeeze(-1), groups, targets)
        watch.add(epoch, output.loss, output.parts)
        optimizer.zero_grad()
        output.loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if epoch % settings.evaluate_every and epoch != settings.epochs:
            continue
        head.eval()
        with torch.inference_mode():
            predicted = head.layers(validation).squeeze(-1).numpy() > 0
        score = macro_f1(validation_labels, predicted.astype(np.int8))
        curve.append(Progress(epoch, watch.mean(), score))
        if score > best_score:
            best_score = score
            best = {name: value.clone() for name, value in head.layers.state_dict().items()}
    return curve, best


class LossWatch:
    """Adds up loss parts between two evaluations, and stops the run at a loss that is not finite."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.sums: dict[str, float] = {}
        self.steps = 0

    def add(self, step: int, loss: Tensor, parts: Mapping[str, Tensor]) -> None:
        """Take in one step.

        Raises:
            NonFiniteLossError: With the place, the step and every part.
        """
        values = {"loss": float(loss.detach())} | {name: float(part) for name, part in parts.items()}
        if not np.isfinite(values["loss"]):
            listed = ", ".join(f"{name} {value:g}" for name, value in values.items())
            raise NonFiniteLossError(
                f"{self.where}, step {step}: the loss is {values['loss']} ({listed}). Lower"
                " classifier.learning_rate; if it stays, look for NaN in the features with `selftrain check`"
            )
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps += 1

    def mean(self) -> dict[str, float]:
        """Mean parts since the last call."""
        result = {name: value / max(self.steps, 1) for name, value in self.sums.items()}
        self.sums, self.steps = {}, 0
        return result

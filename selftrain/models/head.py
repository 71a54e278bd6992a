"""The head on feature rows, for two classes or more: scaled, built, trained, calibrated, saved and loaded.

Shape legend: ``M`` training posts, ``V`` validation posts, ``B`` posts, ``D`` width of a feature row, ``C``
columns that are read, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.base import FeatureLayout
from losses.base import ClassLoss, LossOutput
from selftrain._util.numeric import decide
from selftrain._util.types import Float32Array, IntArray, Json, LabelArray
from selftrain.data.corpus import TrainingSet
from selftrain.errors import NonFiniteLossError, RunStateError, TrainingError
from selftrain.models.calibration import Calibration, fit_calibration, probabilities, read_calibration
from selftrain.models.metrics import macro_f1
from selftrain.models.model_file import read_model, write_model
from selftrain.models.train_loop import EpochResult, Pace, StepLoss, best_epoch, train_epochs

HeadKind = Literal["linear", "mlp"]
FORMAT, CLASSES_FORMAT = "selftrain-head-2", "selftrain-classes-3"
"""Of a file whose head computes one logit for two classes, and of one with a logit a class."""
FORMATS = (FORMAT, CLASSES_FORMAT)
ADVICE = (
    "Lower classifier.learning_rate; if it stays, look for NaN in the features with `selftrain data check`"
)
_ROWS_AT_ONCE = 64
BLOCK_NORM = 10.0  # root mean square length of a centred block; sets how far a step of the optimiser goes


class HeadSettings(NamedTuple):
    """How a head is built and trained; the defaults come from the ablation in docs/experiments.md."""

    kind: str = "mlp"
    hidden: int = 32
    dropout: float = 0.3
    epochs: int = 40
    learning_rate: float = 0.01
    weight_decay: float = 1e-3
    evaluate_every: int = 5


class Scaling(NamedTuple):
    """How a head reads feature rows."""

    columns: IntArray  # [C] columns that vary at all; the others (an absent modality, say) are not read
    mean: Float32Array  # [C] mean of each
    # [C] one factor a block, so that text and image speak equally loud whatever their widths
    scale: Float32Array


class Head(nn.Module):
    """Feature rows [B, D] to logits [B, K]; the rows are centred and scaled as `Scaling` says.

    One output tells two classes apart: it is the second one's logit, beside a 0 for the first.
    """

    columns: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, scaling: Scaling, kind: str, hidden: int, dropout: float, outputs: int = 1) -> None:
        super().__init__()
        self.register_buffer("columns", torch.from_numpy(scaling.columns))
        self.register_buffer("mean", torch.from_numpy(scaling.mean))
        self.register_buffer("scale", torch.from_numpy(scaling.scale))
        width = len(scaling.columns)
        self.layers: nn.Module
        if kind == "mlp":
            self.layers = nn.Sequential(
                nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, outputs)
            )
        else:
            linear = nn.Linear(width, outputs)
            # from zero the first steps are those of ridge regression: no luck of the draw
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
            self.layers = linear

    def prepare(self, rows: Tensor) -> Tensor:
        """Rows [B, D] as the layers read them [B, C]."""
        return (rows[:, self.columns] - self.mean) * self.scale

    def forward(self, rows: Tensor) -> Tensor:
        return self.read(self.prepare(rows))

    def read(self, prepared: Tensor) -> Tensor:
        """Logits [B, K] of rows that `prepare` gave."""
        logits: Tensor = self.layers(prepared)
        return F.pad(logits, (1, 0)) if logits.shape[-1] == 1 else logits


@torch.inference_mode()
def logits_of(head: Head, rows: Float32Array) -> Float32Array:
    """Return raw logits [B, K] of rows [B, D] by a head in evaluation mode, each whatever stands beside it.

    How a product rounds hangs on its number of rows: it is `_ROWS_AT_ONCE` always, zeros behind the last.
    RunStateError: the head reads columns that these rows do not have.
    """
    if (last := int(head.columns.max())) >= rows.shape[1]:
        raise RunStateError(
            f"the classifier reads column {last} of a post's features, and these have {rows.shape[1]}: it is"
            " damaged, or they were made with another backbone"
        )
    device = head.mean.device
    padded = np.pad(rows, ((0, -len(rows) % _ROWS_AT_ONCE), (0, 0)))
    parts = torch.from_numpy(padded).to(device).split(_ROWS_AT_ONCE)  # type: ignore[no-untyped-call]
    found: Float32Array = torch.cat([head(part) for part in parts]).cpu().numpy()[: len(rows)]
    return found


def fit_scaling(rows: Float32Array, layout: FeatureLayout | None) -> Scaling:
    """Constants of feature rows [N, D]; no label is looked at, so the pool's rows serve best.

    Without a layout, all columns are one block. TrainingError: no column varies.
    """
    deviation = rows.std(0)
    scale = np.zeros(rows.shape[1], np.float32)
    for block in (slice(None),) if layout is None else (layout.text, layout.image):
        length = float(np.sqrt((deviation[block] ** 2).sum()))
        if length > 1e-6:
            scale[block] = BLOCK_NORM / length
    for flag in () if layout is None else (layout.has_text, layout.has_image):
        scale[flag] = 1.0
    columns = np.flatnonzero((deviation > 1e-6) & (scale > 0)).astype(np.int64)
    if not len(columns):
        raise TrainingError(
            f"the features of {len(rows)} posts are all the same: there is nothing to learn from"
        )
    return Scaling(columns, rows.mean(0)[columns].astype(np.float32), scale[columns])


# ---- with its calibration -----------------------------------------------------------------------------


@dataclass(frozen=True)
class HeadClassifier:
    """A trained head with its calibration."""

    head: Head  # in evaluation mode, on the CPU
    calibration: Calibration  # from the validation posts
    settings: HeadSettings  # as it was built
    curve: tuple[EpochResult, ...] = ()  # validation macro-F1 and loss parts over the epochs
    best_epoch: int = 0  # the epoch whose weights these are
    # K names, in the order of the logits; none where one computed logit tells two classes apart
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
        # before so much is allocated
        outputs = len(classes) or 1
        check_head(tensors, settings.kind, settings.hidden, outputs)
        with torch.random.fork_rng(devices=[]):  # drawn, and written over: whoever opens it draws as before
            head = Head(scaling, settings.kind, settings.hidden, settings.dropout, outputs)
        head.load_state_dict(tensors)
        calibration = read_calibration(header, outputs)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunStateError(f"{file} is incomplete ({error}): its folder is damaged") from error
    return HeadClassifier(head.eval(), calibration, settings, classes=classes), header


def check_head(tensors: Mapping[str, Tensor], kind: str, hidden: int, outputs: int) -> None:
    """Refuse, with a ValueError, tensors that make no head, or none of what is said of them."""
    layers = {"mlp": ("layers.0.weight", "layers.3.bias"), "linear": ("layers.weight", "layers.bias")}
    first, last = layers[kind]
    if missing := [name for name in (*Scaling._fields, first, last) if name not in tensors]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    columns, mean, scale = (tensors[name] for name in Scaling._fields)
    if kind == "mlp" and len(tensors[first]) != hidden:
        raise ValueError("its header says another width than its weights have")
    if len(tensors[last]) != outputs:
        raise ValueError("its header says another number of outputs than its weights have")
    if columns.dtype != torch.int64 or columns.ndim != 1 or not len(columns) or (columns < 0).any():
        raise ValueError("its columns are no numbers of columns")
    if not columns.shape == mean.shape == scale.shape:
        raise ValueError("its columns, means and scales are of different lengths")


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


class _FullBatch:
    """A `Stepper` whose one batch an epoch is all rows: every group's mean is over the whole group."""

    def __init__(
        self, head: Head, prepared: Tensor, loss: Callable[[Tensor], LossOutput], score: Callable[[], float]
    ) -> None:
        self.model, self.best = head, head.layers.state_dict()
        self._prepared, self._loss, self._score = prepared, loss, score

    def batches(self, epoch: int, skip: int) -> Generator[Tensor, None, None]:
        yield self._prepared

    def gradients(self, batch: Tensor) -> StepLoss:
        output = self._loss(self.model.read(batch))
        losses = StepLoss.of(output)
        output.loss.backward()  # type: ignore[no-untyped-call]
        return losses

    @torch.inference_mode()
    def evaluate(self) -> dict[str, Any]:
        self.model.eval()
        return {"macro_f1": self._score()}

    def keep_best(self) -> None:
        self.best = {name: value.clone() for name, value in self.model.layers.state_dict().items()}

    def advice(self, batch: Tensor) -> str:
        return ADVICE


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
    calibrate: Callable[[Float32Array, LabelArray | IntArray], Calibration] = fit_calibration,
) -> HeadClassifier:
    """Train a head on all rows at once, keep the epoch with the best validation macro-F1, calibrate it.

    Full batches: every group's mean is over the whole group, as the risks are written, and a few thousand
    rows are one small matrix product.

    Of rows [M, D] and [V, D]; `loss` is that of the logits [M, K]. Without K `classes` the head computes one
    logit for two. It goes on from `start`, with that head's scaling, rather than from new weights.

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
        watched = head.prepare(torch.from_numpy(validation_rows))
        stepper = _FullBatch(
            head, head.prepare(torch.from_numpy(rows)), loss,
            lambda: macro_f1(validation_labels, decide(head.read(watched).numpy())),
        )  # fmt: skip
        optimizer = torch.optim.AdamW(
            head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        curve = train_epochs(
            stepper, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs),
            Pace(epochs=settings.epochs, evaluate_every=settings.evaluate_every), where=where,
        )  # fmt: skip
    head.layers.load_state_dict(stepper.best)
    head.eval()
    with torch.inference_mode():
        raw = head.read(watched).numpy()
    if not np.isfinite(raw).all():  # the last step's own doing: no loss was computed after it
        raise NonFiniteLossError(
            f"{where}: the trained head gives logits that are not finite. Lower classifier.learning_rate"
        )
    calibration = calibrate(raw, validation_labels)
    return HeadClassifier(head, calibration, settings, curve, best_epoch(curve).epoch, tuple(classes))

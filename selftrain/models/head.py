"""The head on feature rows, for two classes or more: how it is scaled, built and trained.

Shape legend: ``M`` training posts, ``B`` posts, ``D`` width of a feature row, ``C`` columns that are read,
``K`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.base import FeatureLayout
from losses.base import LossOutput
from selftrain._util.types import Float32Array, IntArray
from selftrain.errors import TrainingError
from selftrain.models.train_loop import EpochResult, StepLoss, train_epochs

HeadKind = Literal["linear", "mlp"]


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


_ROWS_AT_ONCE = 64


@torch.inference_mode()
def logits_of(head: Head, rows: Float32Array) -> Float32Array:
    """Return raw logits [B, K] of rows [B, D] by a head in evaluation mode, each whatever stands beside it.

    How a product rounds hangs on its number of rows: it is `_ROWS_AT_ONCE` always, zeros behind the last.
    """
    device = head.mean.device
    padded = np.pad(rows, ((0, -len(rows) % _ROWS_AT_ONCE), (0, 0)))
    parts = torch.from_numpy(padded).to(device).split(_ROWS_AT_ONCE)  # type: ignore[no-untyped-call]
    found: Float32Array = torch.cat([head(part) for part in parts]).cpu().numpy()[: len(rows)]
    return found


BLOCK_NORM = 10.0  # root mean square length of a centred block; sets how far a step of the optimiser goes


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


ADVICE = (
    "Lower classifier.learning_rate; if it stays, look for NaN in the features with `selftrain data check`"
)


class _FullBatch:
    """A `Stepper` whose one batch an epoch is all rows: every group's mean is over the whole group."""

    def __init__(
        self,
        head: Head,
        prepared: Tensor,
        validation: Tensor,
        loss: Callable[[Tensor], LossOutput],
        score: Callable[[Tensor], float],
    ) -> None:
        self.model = head
        self.best = head.layers.state_dict()
        self._prepared, self._validation, self._loss, self._score = prepared, validation, loss, score

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
        return {"macro_f1": self._score(self.model.read(self._validation))}

    def keep_best(self) -> None:
        self.best = {name: value.clone() for name, value in self.model.layers.state_dict().items()}

    def advice(self, batch: Tensor) -> str:
        return ADVICE


def train_layers(
    head: Head,
    prepared: Tensor,
    validation: Tensor,
    *,
    loss: Callable[[Tensor], LossOutput],
    score: Callable[[Tensor], float],
    settings: HeadSettings,
    where: str,
) -> tuple[EpochResult, ...]:
    """Train a head on prepared rows, AdamW with cosine decay; its best epoch's weights end up in it.

    Args:
        head: Trained in place, in evaluation mode afterwards.
        prepared: [M, C] rows to train on.
        validation: [V, C] rows to validate on.
        loss: Of the logits of `prepared`.
        score: Macro-F1 of the logits of `validation`.
        settings: How.
        where: Said in an error.

    Returns:
        The evaluated epochs.

    Raises:
        NonFiniteLossError: A NaN or infinite loss, with the epoch and every part.
    """
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    stepper = _FullBatch(head, prepared, validation, loss, score)
    curve = train_epochs(
        stepper, optimizer, schedule,
        epochs=settings.epochs, evaluate_every=settings.evaluate_every, where=where,
    )  # fmt: skip
    head.layers.load_state_dict(stepper.best)
    head.eval()
    return curve

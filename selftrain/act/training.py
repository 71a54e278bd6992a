"""A head for K classes, trained on feature rows with the ACT loss, calibrated, saved and loaded.

It reads rows as the loop's head does (`models.classifier`) and is kept beside it: that one has one logit
and learns from divergent posts, this one has K and learns from machine and human labels.

Shape legend: ``M`` training posts, ``V`` validation posts, ``D`` width of a feature row, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from losses.act import act_cross_entropy
from selftrain._util.types import BoolArray, Float32Array, FloatArray, IntArray
from selftrain.errors import NonFiniteLossError, RunStateError, TrainingError
from selftrain.models.head import Head, HeadSettings, Progress, Scaling, descend
from selftrain.models.metrics import macro_f1_of_classes
from selftrain.models.model_file import read_model, write_model

FORMAT = "selftrain-classes-1"


class ACTSet(NamedTuple):
    """Labels of the training posts, as class indices in [0, K).

    Attributes:
        machine: [M] machine labels.
        human: [M] human labels where reviewed, anything elsewhere.
        reviewed: [M] delta.
        inclusion: [M] pi.
    """

    machine: IntArray
    human: IntArray
    reviewed: BoolArray
    inclusion: FloatArray


def labelled_set(labels: IntArray) -> ACTSet:
    """Labels that are all trusted alike: with them the ACT loss is the cross-entropy."""
    nobody = np.zeros(len(labels), dtype=bool)
    return ACTSet(labels, labels, nobody, np.ones(len(labels)))


@dataclass(frozen=True)
class ClassesModel:
    """A trained head for K classes.

    Attributes:
        head: In evaluation mode, on the CPU.
        classes: Names, in the order of the logits.
        temperature: Fitted on the validation posts; logits are divided by it.
        settings: As it was built.
        curve: Validation macro-F1 and loss parts over the epochs.
        best_epoch: The epoch whose weights these are.
    """

    head: Head
    classes: tuple[str, ...]
    temperature: float
    settings: HeadSettings
    curve: tuple[Progress, ...] = ()
    best_epoch: int = 0

    @torch.inference_mode()
    def probabilities(self, rows: Float32Array) -> Float32Array:
        """Calibrated probabilities [B, K] of feature rows [B, D]."""
        logits = self.head(torch.from_numpy(rows)) / self.temperature
        return np.asarray(torch.softmax(logits, dim=1).numpy(), dtype=np.float32)

    def predict(self, rows: Float32Array) -> IntArray:
        """Class indices [B]."""
        return np.asarray(self.probabilities(rows).argmax(1), dtype=np.int64)

    def save(self, file: Path, metadata: Mapping[str, Any]) -> None:
        """Safetensors, with classes, settings, temperature and `metadata` in the header."""
        own = {
            "classes": list(self.classes),
            "settings": self.settings._asdict(),
            "temperature": self.temperature,
        }
        write_model(file, dict(metadata) | {"format": FORMAT} | own, self.head.state_dict())


def load_classes_model(file: Path) -> tuple[ClassesModel, dict[str, Any]]:
    """A saved model and the metadata that it was saved with.

    Raises:
        RunStateError: Missing, damaged, or not a model of this format.
    """
    tensors, header = read_model(file, [FORMAT])
    try:
        settings, classes = HeadSettings(**header.pop("settings")), tuple(header.pop("classes"))
        scaling = Scaling(*(tensors[name].numpy() for name in Scaling._fields))
        head = Head(scaling, settings.kind, settings.hidden, settings.dropout, len(classes))
        head.load_state_dict(tensors)
        temperature = float(header.pop("temperature"))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunStateError(f"{file} is incomplete ({error}): it is damaged") from error
    return ClassesModel(head.eval(), classes, temperature, settings), header


def train_classes(
    rows: Float32Array,
    labels: ACTSet,
    validation_rows: Float32Array,
    validation_labels: IntArray,
    *,
    classes: Sequence[str],
    scaling: Scaling,
    settings: HeadSettings,
    seed: int,
    power: float = 1.0,
    where: str = "training",
) -> ClassesModel:
    """Train on all rows at once, keep the epoch with the best validation macro-F1, fit a temperature.

    Args:
        rows: [M, D] feature rows of the training posts.
        labels: Their labels, human and machine; `labelled_set` for plain ones.
        validation_rows: [V, D].
        validation_labels: [V], trusted.
        classes: K names, in the order of the indices.
        scaling: Of the rows, see `selftrain.models.classifier.fit_scaling`.
        settings: See `HeadSettings`.
        seed: Of the initial weights and of dropout.
        power: lambda of the ACT loss.
        where: Said in an error.

    Raises:
        TrainingError: No training or no validation post, or fewer than two classes.
        NonFiniteLossError: A NaN or infinite loss, with the epoch and every part.
        BatchError: Labels or inclusion probabilities that the loss refuses.
    """
    if len(classes) < 2 or not len(rows) or not len(validation_rows):
        raise TrainingError(
            f"{where}: {len(rows)} posts to train on, {len(validation_rows)} to validate on, {len(classes)}"
            " classes: expected at least one of each, two classes"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(scaling, settings.kind, settings.hidden, settings.dropout, len(classes))
        prepared = head.prepare(torch.from_numpy(validation_rows))
        machine, human, reviewed, inclusion = map(torch.from_numpy, labels)
        curve, best = descend(
            head, head.prepare(torch.from_numpy(rows)), prepared,
            loss=lambda z: act_cross_entropy(z, machine, human, reviewed, inclusion, power=power),
            score=lambda z: macro_f1_of_classes(validation_labels, z.argmax(1).numpy()),
            settings=settings, where=where,
        )  # fmt: skip
    head.layers.load_state_dict(best)
    head.eval()
    with torch.inference_mode():
        logits = head.read(prepared)
    if not bool(torch.isfinite(logits).all()):  # the last step's own doing: no loss was computed after it
        raise NonFiniteLossError(
            f"{where}: the trained head gives logits that are not finite. Lower the learning rate"
        )
    temperature = fit_temperature(logits.double(), torch.from_numpy(validation_labels))
    chosen = max(curve, key=lambda progress: progress.macro_f1)
    return ClassesModel(head, tuple(classes), temperature, settings, tuple(curve), chosen.epoch)


_TEMPERATURES = (0.05, 20.0)
_PRIOR_POSTS = 20.0


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """T of softmax(z / T) with the least cross-entropy on [V, K] logits, pulled towards 1, in [.05, 20].

    The pull is that of twenty posts: a handful of validation posts cannot make a model sure of itself.
    """
    from scipy.optimize import minimize_scalar

    def objective(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        loss = float(F.cross_entropy(scaled, labels, reduction="sum"))
        return loss + _PRIOR_POSTS / 8 * log_temperature**2

    low, high = np.log(_TEMPERATURES)
    return float(np.exp(minimize_scalar(objective, bounds=(low, high), method="bounded").x))

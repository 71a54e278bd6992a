"""A fine-tuned classifier: weights and calibration, saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from selftrain.errors import RunStateError
from selftrain.models.calibration import Calibration
from selftrain.models.finetune_network import Architecture
from selftrain.models.model_file import opened_model, read_model, write_model
from selftrain.models.train_loop import EpochResult

FORMATS: dict[str, str] = {"full": "selftrain-full-1", "lora": "selftrain-lora-1"}


@dataclass(frozen=True, eq=False)
class FinetunedClassifier:
    """A fitted network's weights with their calibration. Live networks are the trainer's: they fill a GPU.

    Attributes:
        weights: What `Network.portable` gave, on the CPU.
        architecture: Of the network that they belong to.
        pretrained: Fingerprint of the backbone that training began from.
        calibration: From the validation posts.
        curve: Validation macro-F1 and loss parts over the epochs.
        best_epoch: The epoch whose weights these are.
    """

    weights: Mapping[str, Tensor]
    architecture: Architecture
    pretrained: str
    calibration: Calibration
    curve: tuple[EpochResult, ...] = ()
    best_epoch: int = 0

    def save(self, file: Path, metadata: Mapping[str, Any]) -> None:
        """Safetensors, written atomically; all but the weights goes into the header, with `metadata`.

        Raises:
            StorageError: The disk is full or refuses.
        """
        own = {
            "format": FORMATS[self.architecture.mode],
            "architecture": self.architecture._asdict(),
            "pretrained": self.pretrained,
            "calibration": self.calibration._asdict(),
        }
        write_model(file, dict(metadata) | own, self.weights)


def read_format(file: Path) -> str:
    """Which kind of model a file holds: "selftrain-head-1", "selftrain-full-1" or "selftrain-lora-1".

    Reads the header alone, however large the file.

    Raises:
        RunStateError: Missing, damaged, or no model of selftrain.
    """
    with opened_model(file) as (_, header):
        found = header.get("format")
    if not isinstance(found, str):
        raise RunStateError(f"{file} names no format in its header: it is no model of selftrain")
    return found


def load_finetuned(file: Path) -> tuple[FinetunedClassifier, dict[str, Any]]:
    """A saved model and the metadata that it was saved with; no backbone is needed to read it.

    Raises:
        RunStateError: Missing, damaged, or of another format.
    """
    weights, header = read_model(file, list(FORMATS.values()))
    try:
        model = FinetunedClassifier(
            weights,
            Architecture(**header.pop("architecture")),
            header.pop("pretrained"),
            Calibration(**header.pop("calibration")),
        )
    except (KeyError, TypeError) as error:
        raise RunStateError(
            f"the header of {file} is incomplete ({error}): the run folder is damaged"
        ) from error
    return model, header

"""A run's best model, opened once: the backbone, the head and the calibration that turn posts into logits.

Shape legend: ``B`` posts, ``D`` width of a feature row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from selftrain._util.types import Float32Array
from selftrain.config import Recipe
from selftrain.errors import RunMismatchError, RunStateError, TrainingError
from selftrain.models.calibration import Calibration
from selftrain.models.classifier import load_head
from selftrain.models.finetune_network import Network
from selftrain.models.finetuned import load_finetuned, read_format
from selftrain.models.head import Head
from selftrain.models.pretrained import build_backbone, finetuning_backbone
from selftrain.store.run_dir import RunFolder

if TYPE_CHECKING:
    from backbones.base import Backbone, Encodable, Encoded


class Classes(NamedTuple):
    """The names of the two classes of a run."""

    positive: str
    negative: str


@dataclass(frozen=True, eq=False)
class BestModel:
    """Posts to calibrated logits.

    Attributes:
        folder: The run.
        recipe: As the run resolved it.
        classes: Names of the classes.
        file: The weights of the best round.
        backbone: Pretrained; where `network` is set, with the fine-tuned weights in it.
        head: In evaluation mode, on the backbone's device.
        calibration: From the validation posts.
        network: Backbone and head as they were fine-tuned; None where the head alone was trained.
    """

    folder: RunFolder
    recipe: Recipe
    classes: Classes
    file: Path
    backbone: Backbone
    head: Head
    calibration: Calibration
    network: Network | None
    pretrained: str

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of weights, pretrained backbone and class names."""
        with self.file.open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
        parts = {"weights": weights, "backbone": self.pretrained, "classes": list(self.classes)}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def encode(self, posts: Sequence[Encodable]) -> Encoded:
        """Feature rows [B, D], computed and not cached; NaN, and a reason, for posts that cannot be encoded.

        Raises:
            TrainingError: The device is out of memory.
        """
        section = self.recipe.backbone
        try:
            with nullcontext() if self.network is None else self.network.autocast():
                return self.backbone.encode(posts, batch_size=section.batch_size, workers=section.workers)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"the device ran out of memory over {len(posts)} posts, {section.batch_size} images at once:"
                " free some of it, or choose another device"
            ) from error

    @torch.inference_mode()
    def classify(self, rows: Float32Array) -> Float32Array:
        """Calibrated logits [B] of the positive class for feature rows [B, D]."""
        device = self.head.mean.device
        return self.calibration(self.head(torch.from_numpy(rows).to(device)).cpu().numpy())


def open_best(folder: RunFolder) -> BestModel:
    """The model of the last kept round, on this machine's backbone.

    Raises:
        RunStateError: No run, no finished round, or a damaged folder.
        RunMismatchError: This machine's backbone is not the one that the run was trained with.
        BackboneError: The backbone's weights are missing or damaged.
    """

    recipe, classes = stored_recipe(folder), stored_classes(folder)
    file = folder.round_path(folder.best_round()) / "model.safetensors"
    if read_format(file) == "selftrain-head-1":
        backbone = build_backbone(recipe)
        pretrained = folder.environment().identity["backbone"]
        _check_same(folder, backbone, pretrained)
        model = load_head(file)[0]
        return BestModel(
            folder, recipe, classes, file, backbone, model.head, model.calibration, None, pretrained
        )
    return _open_finetuned(folder, recipe, classes, file)


def _open_finetuned(folder: RunFolder, recipe: Recipe, classes: Classes, file: Path) -> BestModel:
    """Cached features are the pretrained backbone's: a fine-tuned one encodes for itself."""
    model = load_finetuned(file)[0]
    backbone = finetuning_backbone(recipe)
    _check_same(folder, backbone, model.pretrained)
    network = Network(backbone, model.architecture)
    network.put(model.weights)
    assert network.head is not None, "put attaches it"
    network.eval()
    return BestModel(
        folder, recipe, classes, file, backbone, network.head, model.calibration, network, model.pretrained
    )


def stored_recipe(folder: RunFolder) -> Recipe:
    """The recipe of a run folder.

    Raises:
        RunStateError: No run folder, or its recipe.toml was changed into something else.
    """
    from pydantic import ValidationError

    try:
        return Recipe.model_validate(folder.recipe())
    except ValidationError as error:
        raise RunStateError(
            f"{folder.recipe_path} does not describe a recipe any more ({error.error_count()} faults):"
            " restore the file as the run wrote it"
        ) from error


def stored_classes(folder: RunFolder) -> Classes:
    """The names of the classes, as the run wrote them down.

    Raises:
        RunStateError: They are not there.
    """
    return Classes(*folder.class_names())


def _check_same(folder: RunFolder, backbone: Backbone, expected: str) -> None:
    found = backbone.fingerprint()
    if found != expected:
        raise RunMismatchError(
            f"{folder.path} was trained on features of the backbone {expected[:12]}, here {backbone.name!r}"
            f" is {found[:12]}: its weights, libraries or number format differ. Use the versions that"
            f" {folder.path / 'environment.json'} lists, on the same kind of device, or train again"
        )

"""A run's best model: the backbone, the head and the calibration that turn posts into probabilities.

Shape legend: ``B`` posts, ``D`` width of a feature row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from backbones.base import Backbone, Encodable, Encoded
from selftrain._util.numeric import decide_shown
from selftrain._util.types import Float32Array
from selftrain.config import Recipe, stored_recipe
from selftrain.data.features import encode, extract_features
from selftrain.data.posts import Post, check_posts
from selftrain.data.preparation import cache_folder
from selftrain.errors import ServingError
from selftrain.models import finetune_network, predictor
from selftrain.models.calibration import Calibration, probabilities
from selftrain.models.finetune_network import Network, load_finetuned
from selftrain.models.head import FORMATS, Head, load_head, logits_of
from selftrain.models.model_file import check_format, read_format
from selftrain.models.pretrained import build_backbone, finetuning_backbone
from selftrain.store.run_dir import RunFolder
from selftrain.store.scores import numbered

_CHUNK = 256  # posts whose rows are held at once; the backbone takes its own batches out of them
_CACHED_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class RunPredictor:
    """The model of the last kept round; a `Predictor`."""

    folder: RunFolder  # the run
    recipe: Recipe  # as the run resolved it
    classes: tuple[str, ...]  # K names, the positive one first
    file: Path  # the weights of the best round
    backbone: Backbone  # pretrained; where `network` is set, with the fine-tuned weights in it
    head: Head  # in evaluation mode, on the backbone's device
    calibration: Calibration  # from the validation posts
    # [K] what is added to each class's log-probability before it decides, in the order of `classes`; None:
    # nothing
    cut: tuple[float, ...] | None
    # backbone and head as they were fine-tuned; None where the head alone was trained
    network: Network | None
    pretrained: str  # fingerprint of the pretrained backbone
    # take features from the run's cache and keep new ones there. Only where `network` is None, since cached
    # features are the pretrained backbone's, and for posts with distinct ids
    cached: bool = False
    progress: bool = False  # draw a bar over features that are computed for the cache

    kind = "classifier"
    calibrated = True
    threshold = None

    @classmethod
    def load(cls, path: Path) -> RunPredictor:
        """Open the best model of a run folder on this machine's backbone.

        Raises:
            RunStateError, RunMismatchError: No finished round, or a damaged folder; another backbone.
            BackboneError: The backbone's weights are missing or damaged.
            ServingError: The run has a trainer of its own.
        """
        folder = RunFolder(path)
        recipe, classes = stored_recipe(folder), folder.class_names()
        file = folder.round_path(folder.best_round()) / "model.safetensors"
        if not recipe.classifier.built_in:
            raise ServingError(
                f"{folder.path} was trained by {recipe.classifier.part}, a trainer of its own, which alone"
                f" knows what its models are: open {file} with its `load`"
            )
        kind = read_format(file)
        check_format(file, kind, (*FORMATS, *finetune_network.FORMATS.values()))
        if kind in FORMATS:
            backbone, network = build_backbone(recipe), None
            pretrained = folder.environment().identity["backbone"]
            predictor.check_backbone(backbone, pretrained, folder.path)
            trained, header = load_head(file)
            head, calibration = trained.head, trained.calibration
        else:
            tuned, header = load_finetuned(file)
            backbone, pretrained = finetuning_backbone(recipe), tuned.pretrained
            predictor.check_backbone(backbone, pretrained, folder.path)
            network = Network(backbone, tuned.architecture)
            network.put(tuned.weights)
            network.eval()
            assert network.head is not None, "put attaches it"
            head, calibration = network.head, tuned.calibration
        # the loop numbers the positive class last
        cut = None if header.get("cut") is None else (header["cut"][-1], *header["cut"][:-1])
        return cls(folder, recipe, classes, file, backbone, head, calibration, cut, network, pretrained)

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.path.resolve().name

    @property
    def positive(self) -> str:
        """The class that is looked for."""
        return self.classes[0]

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of weights, pretrained backbone and class names."""
        with self.file.open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
        parts = {"weights": weights, "backbone": self.pretrained, "classes": list(self.classes)}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def picture_side(self) -> int | None:
        """What the backbone shrinks pictures to, where it tells."""
        return getattr(self.backbone, "picture_side", None)

    def with_cache(self) -> RunPredictor | None:
        """See `Caching`."""
        return None if self.network is not None else replace(self, cached=True)

    def predict(self, posts: Sequence[Post]) -> list[predictor.Prediction]:
        """See `Predictor.predict`; raises CacheError too where features are cached."""
        if not self.cached:
            return predictor.in_chunks(self._predict, posts, _CHUNK)
        check_posts(posts)
        section = self.recipe.backbone
        table = extract_features(
            posts, self.backbone, cache_folder(section),
            batch_size=section.batch_size, workers=section.workers, progress=self.progress,
        )  # fmt: skip
        found: list[predictor.Prediction] = []
        for positions, rows in table.chunks(_CACHED_CHUNK):
            part = [posts[position] for position in positions]
            reasons = {i: table.failed[post.id] for i, post in enumerate(part) if post.id in table.failed}
            found += self._from_rows(part, rows, reasons)
        return found

    def validation(self) -> predictor.ValidationScores | None:
        """Return the best round's; None for a run that is older than the file they are in."""
        return predictor.stored_validation(self.file.parent, numbered(self.classes), self.positive)

    def encode(self, posts: Sequence[Encodable]) -> Encoded:
        """Compute feature rows [B, D], not cached; NaN, and a reason, for posts that cannot be encoded."""
        section = self.recipe.backbone
        with nullcontext() if self.network is None else self.network.autocast():
            return encode(self.backbone, posts, section.batch_size, section.workers)

    def classify(self, rows: Float32Array) -> Float32Array:
        """Return calibrated logits [B, K] for feature rows [B, D], in the order of `classes`."""
        logits = self.calibration(logits_of(self.head, rows))
        return np.roll(logits, 1, axis=1)  # the loop numbers the positive class last

    def _predict(self, posts: Sequence[Post]) -> list[predictor.Prediction]:
        encoded = self.encode(posts)
        return self._from_rows(posts, encoded.rows, {one.index: one.reason for one in encoded.failures})

    def _from_rows(
        self, posts: Sequence[Post], rows: Float32Array, reasons: dict[int, str]
    ) -> list[predictor.Prediction]:
        logits = self.classify(rows)
        # by the logits, as the loop does: probabilities next to each other may round to the same
        return predictor.from_probs(
            posts, self.classes, probabilities(logits), decide_shown(logits, self.cut), reasons
        )

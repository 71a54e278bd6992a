"""A classifier of K classes in a folder of its own: what ACT training makes, and predict, serve, filter open.

MODEL/
├── model.safetensors   the head; its header names classes, backbone and calibration
├── act.json            what it learned from, and how good it is on posts of known label
└── scores.jsonl        the scores of those posts, for thresholds

Shape legend: ``B`` posts, ``D`` width of a feature row, ``K`` classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from backbones import load_backbone
from backbones.base import Backbone, Encodable
from selftrain._util.types import Float32Array, IntArray
from selftrain.data.features import encode
from selftrain.data.posts import Post
from selftrain.errors import RunStateError, TrainingError
from selftrain.models import predictor
from selftrain.models.head import CLASSES_FORMAT, HeadClassifier, load_head
from selftrain.store import checksums
from selftrain.store.scores import FILE as SCORES
from selftrain.store.scores import Scored, write_scores

MODEL_FILE = "model.safetensors"
_CHUNK = 256  # posts whose rows are held at once; the backbone takes its own batches out of them
_SURE = 1e-7


class BackboneChoice(NamedTuple):
    """How `backbones.load_backbone` makes a backbone again, and the fingerprint that it must have."""

    name: str
    options: Mapping[str, str | int | float | bool | None]
    fingerprint: str


@dataclass(frozen=True, eq=False)
class ACTModel:
    """Posts, or feature rows, to probabilities of K classes; a `Predictor` where it has a backbone."""

    classifier: HeadClassifier  # the trained head
    positive: str  # the class that is looked for; thresholds are about it
    # makes the rows of posts; None: the model was trained on rows, and takes nothing else
    backbone: Backbone | None = None
    folder: Path | None = None  # where it was loaded from or saved to; None: nowhere yet
    # batch_size, workers: handed to the backbone
    batch_size: int = 64
    workers: int = 0

    kind = "classifier"
    calibrated = True
    threshold = None

    # ---- what it gives --------------------------------------------------------------------------------

    def probabilities(self, data: Sequence[Encodable] | Float32Array) -> Float32Array:
        """Return calibrated probabilities [B, K] of posts or of feature rows [B, D]; raises as `rows_of`."""
        return self.classifier.probabilities(rows_of(data, self.backbone, self.batch_size, self.workers))

    def predict_labels(self, data: Sequence[Encodable] | Float32Array) -> list[str]:
        """Return the likeliest class of each post or row [B]. Raises as `probabilities`."""
        return [self.classes[index] for index in self.probabilities(data).argmax(1)]

    @property
    def name(self) -> str:
        """Of its folder."""
        return "" if self.folder is None else self.folder.resolve().name

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the probabilities."""
        return self.classifier.classes

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of weights, calibration, backbone and class names."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.classifier.head.state_dict().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        backbone = "" if self.backbone is None else self.backbone.fingerprint()
        parts = [list(self.classes), self.positive, self.classifier.calibration, backbone]
        digest.update(json.dumps(parts).encode())
        return digest.hexdigest()

    # ---- as a predictor -------------------------------------------------------------------------------

    @property
    def picture_side(self) -> int | None:
        """What the backbone shrinks pictures to, where it tells."""
        return getattr(self.backbone, "picture_side", None)

    def predict(self, posts: Sequence[Post]) -> list[predictor.Prediction]:
        """See `selftrain.models.predictor.Predictor.predict`; TrainingError too without a backbone."""
        return predictor.in_chunks(self._predict, posts, _CHUNK)

    def validation(self) -> predictor.ValidationScores | None:
        """Return the stored scores of the validation posts; None where none were stored."""
        if self.folder is None:
            return None
        return predictor.stored_validation(self.folder, self.classes, self.positive)

    def _predict(self, posts: Sequence[Post]) -> list[predictor.Prediction]:
        if self.backbone is None:
            raise TrainingError(_NO_BACKBONE)
        encoded = encode(self.backbone, posts, self.batch_size, self.workers)
        probs = self.classifier.probabilities(encoded.rows)
        reasons = {one.index: one.reason for one in encoded.failures}
        return predictor.from_probs(posts, self.classes, probs, probs.argmax(1), reasons)

    # ---- its folder -----------------------------------------------------------------------------------

    def save(
        self,
        folder: Path | str,
        *,
        backbone: Mapping[str, Any] | None = None,
        record: Mapping[str, Any] | None = None,
        measured: Mapping[str, tuple[Sequence[str], IntArray, Float32Array]] | None = None,
    ) -> ACTModel:
        """Write the folder, `act.json` last, over what is there; return the model, which knows its folder.

        Args:
            backbone: `name` and the other keyword arguments of `backbones.load_backbone`, so that `load` can
                make it again; None: whoever loads gives one.
            record: JSON values for act.json: what was learned from, and how good it is.
            measured: "validation" and "test" -> ids [B], class indices [B], probabilities [B, K].
        """
        folder, options = Path(folder), dict(backbone or {})
        fingerprint = "" if self.backbone is None else self.backbone.fingerprint()
        choice = BackboneChoice(options.pop("name", ""), options, fingerprint)
        folder.mkdir(parents=True, exist_ok=True)
        checksums.note(folder, {}, instead_of="")
        self.classifier.save(folder / MODEL_FILE, {"positive": self.positive, "backbone": choice._asdict()})
        scored = {
            split: Scored(ids, labels.astype(np.int16), np.log(probs.clip(_SURE, 1)))
            for split, (ids, labels, probs) in (measured or {}).items()
        }
        write_scores(folder, scored, self.classes)
        made = {name: checksums.digest_of(folder / name) for name in (MODEL_FILE, SCORES)}
        checksums.note(folder, made)
        checksums.write_json(folder / predictor.ACT_FILE, {"classes": list(self.classes), **(record or {})})
        return ACTModel(self.classifier, self.positive, self.backbone, folder, self.batch_size, self.workers)

    @classmethod
    def load(
        cls, folder: Path | str, *, backbone: Backbone | None = None, device: str = "auto", workers: int = 0
    ) -> ACTModel:
        """Load what `save` wrote, with its backbone: the one given, or made anew, on `device`.

        Raises:
            RunStateError, RunMismatchError: No such folder, or a damaged one; another backbone.
            BackboneError: The backbone's weights are missing or damaged.
        """
        folder = Path(folder)
        classifier, header = load_head(folder / MODEL_FILE, [CLASSES_FORMAT])
        try:
            positive, made = str(header["positive"]), dict(header["backbone"])
            choice = msgspec.convert([made[name] for name in BackboneChoice._fields], BackboneChoice)
            if backbone is None and choice.name:
                backbone = load_backbone(choice.name, **{**choice.options, "device": device})
        except (KeyError, TypeError, msgspec.ValidationError) as error:
            raise RunStateError(
                f"{folder / MODEL_FILE} does not say how it reads posts ({error}): it is damaged"
            ) from error
        if backbone is not None and choice.fingerprint:
            predictor.check_backbone(backbone, choice.fingerprint, folder)
        return cls(classifier, positive, backbone, folder, workers=workers)


_NO_BACKBONE = (
    "there is no backbone to make feature rows of posts: give rows [B, D], a NumPy array, or the backbone"
    " when the model is trained or loaded"
)


def rows_of(
    data: Sequence[Encodable] | Float32Array,
    backbone: Backbone | None,
    batch_size: int = 64,
    workers: int = 0,
) -> Float32Array:
    """Return feature rows [B, D]: as given, or computed from posts; TrainingError: that cannot be done."""
    if isinstance(data, np.ndarray):
        width = None if backbone is None else backbone.layout.width
        if data.ndim != 2 or width not in (None, data.shape[1]):
            raise TrainingError(
                f"feature rows of shape {data.shape}: expected [B, {width or 'D'}]"
                + ("" if backbone is None else f", as the backbone {backbone.name!r} makes them")
            )
        return _finite(np.array(data, dtype=np.float32, order="C"))
    if backbone is None:
        raise TrainingError(_NO_BACKBONE)
    encoded = encode(backbone, data, batch_size, workers)
    if encoded.failures:
        first = encoded.failures[0]
        raise TrainingError(
            f"{len(encoded.failures)} of {len(data)} posts cannot be encoded, the first is"
            f" {data[first.index].id!r} ({first.reason}): leave them out"
        )
    return _finite(encoded.rows)


def _finite(rows: Float32Array) -> Float32Array:
    broken = np.flatnonzero(~np.isfinite(rows).all(1))
    if len(broken):
        raise TrainingError(
            f"{len(broken)} of {len(rows)} feature rows are not finite, row {broken[0]} first: leave their"
            " posts out"
        )
    return rows

"""What every trained model can do: predict posts. Server, filter and command line know no more of it.

Shape legend: ``V`` validation posts, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np

from selftrain._util.numeric import log_odds, sigmoid
from selftrain._util.types import BoolArray, Float32Array, FloatArray, IntArray, Json, LabelArray
from selftrain.data.posts import Post, check_posts
from selftrain.errors import RunMismatchError
from selftrain.store.scores import read_scores

if TYPE_CHECKING:
    from backbones.base import Backbone  # which brings torch; an ONNX file does without

AGENTPS_FILE = "agentps.json"
ACT_FILE = "act.json"
RUN_FILE = "recipe.toml"
NO_VIDEO = "it has a video, which the loop's classifier does not read: use an AgentPS model"
DECIMALS = 6


class Prediction(NamedTuple):
    """What a model makes of one post."""

    id: str  # of the post
    label: str = ""  # the class that is decided on; empty where `reason` says why there is none
    probs: Mapping[str, float] = {}  # class -> probability; they sum to 1
    # question -> answer -> probability; empty for a model that is asked no questions
    process: Mapping[str, Mapping[str, float]] = {}
    answers: Mapping[str, str] = {}  # question -> the answer that is decided on
    reason: str = ""  # why the post has no prediction; empty for one that has

    def to_json(self) -> Json:
        """Return what files and answers have of a post with a label: all but its id, in six decimals."""
        found: Json = {
            "label": self.label,
            "probability": round(self.probs[self.label], DECIMALS),
            "probabilities": _rounded(self.probs),
            "process": {question: _rounded(probs) for question, probs in self.process.items()},
        }
        return found | ({"answers": dict(self.answers)} if self.answers else {})


def _rounded(probs: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, DECIMALS) for name, value in probs.items()}


class ValidationScores(NamedTuple):
    """What a model said of the posts that it was validated on; thresholds are chosen on them."""

    labels: LabelArray  # [V] 1 for the class that is looked for, 0 for any other
    probs: FloatArray  # [V] of that class, in [0, 1]


class Predictor(Protocol):
    """A loaded model, used by one thread at a time. `load_predictor` opens whatever was trained here.

    Attributes:
        kind: "classifier" (of the loop, of ACT, or exported) or "agentps".
        name: Of its folder.
        classes: K names; `Prediction.probs` has these keys.
        positive: The class that is looked for.
        calibrated: Whether probabilities were fitted on the validation posts, or are the network's own.
        fingerprint: Hex SHA-256 of everything that can change a prediction.
        picture_side: Pixels of a side that `predict` shrinks pictures to: `open_image` with this target gives
            the same prediction as the file itself. None: not known.
        threshold: The probability from which on a post is given the positive class, where one was asked for;
            None: nothing was.
    """

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def positive(self) -> str: ...
    @property
    def calibrated(self) -> bool: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def picture_side(self) -> int | None: ...
    @property
    def threshold(self) -> float | None: ...

    def predict(self, posts: Sequence[Post]) -> list[Prediction]:
        """Predict posts, in order; one that cannot be read has a reason instead of a label.

        Args:
            posts: Any number, ids need not differ; labels are not read. Memory is bounded by the results.

        Raises:
            DataError: Something is no post; see `check_posts`.
            TrainingError: The device is out of memory.
        """
        ...

    def validation(self) -> ValidationScores | None:
        """Return the stored predictions of the validation posts; None when none were stored."""
        ...


@runtime_checkable
class Caching(Protocol):
    """A predictor that may keep features of posts, and find them again."""

    def with_cache(self) -> Predictor | None:
        """Return the model with its cache, for posts with distinct ids; None: its features are its own."""


def stored_validation(folder: Path, classes: Sequence[str], positive: str) -> ValidationScores | None:
    """Read what the scores.jsonl of a round or model says of the validation posts; None where it has none.

    `classes` are in the order of the logits. RunStateError: the file is damaged.
    """
    found = (read_scores(folder, classes) or {}).get("validation")
    if found is None:
        return None
    place = classes.index(positive)
    labels = np.asarray(found.labels == place, dtype=np.int16)
    return ValidationScores(labels, sigmoid(log_odds(found.logits)[:, place]))


def check_backbone(backbone: Backbone, expected: str, folder: Path) -> None:
    """Raise RunMismatchError where a backbone is not the one that a folder's model was trained with."""
    found = backbone.fingerprint()
    if found != expected:
        raise RunMismatchError(
            f"{folder} was trained on features of the backbone {expected[:12]}, here {backbone.name!r} is"
            f" {found[:12]}: its weights, libraries or number format differ. Use the versions that it was"
            f" trained with ({folder / 'environment.json'} of a run lists them), on the same kind of device,"
            " or train again"
        )


def in_chunks(
    predict: Callable[[Sequence[Post]], list[Prediction]], posts: Sequence[Post], size: int
) -> list[Prediction]:
    """Predict `size` posts at a time, so that no more rows or pixels than theirs are in memory."""
    check_posts(posts)
    return [one for start in range(0, len(posts), size) for one in predict(posts[start : start + size])]


def from_probs(
    posts: Sequence[Post],
    classes: Sequence[str],
    probs: FloatArray | Float32Array,
    chosen: IntArray,
    reasons: Mapping[int, str],
) -> list[Prediction]:
    """Return the predictions of posts [B] out of a classifier that reads words and pictures.

    Of probabilities [B, K] and the index `chosen` [B] of each post's label; `reasons` says by index why one
    has none, beside what shows by itself: a video, features not finite.
    """
    finite: BoolArray = np.asarray(np.isfinite(probs).all(axis=1))
    found = []
    for index, post in enumerate(posts):
        reason = NO_VIDEO if post.video is not None else reasons.get(index, "")
        if reason or not finite[index]:
            found.append(Prediction(post.id, reason=reason or "its features are not finite"))
        else:
            row = dict(zip(classes, probs[index].tolist(), strict=True))
            found.append(Prediction(post.id, classes[chosen[index]], row))
    return found

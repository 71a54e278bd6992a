"""A finished run's best model, applied to the posts of a manifest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from selftrain._util.numeric import sigmoid
from selftrain._util.types import Float32Array, IntArray, Json
from selftrain.config import DataSection
from selftrain.data.features import extract_features
from selftrain.data.manifest import enforce, read_manifest
from selftrain.data.posts import Post
from selftrain.data.preparation import cache_folder
from selftrain.errors import QuarantineError
from selftrain.models.best_model import BestModel, open_best, stored_classes, stored_recipe
from selftrain.store.run_dir import RunFolder

_CHUNK = 4096
_ENCODED = 512  # posts whose features are computed between two steps of the bar
_LISTED = 20


class Scores(NamedTuple):
    """Posts, and how their logits are had.

    Attributes:
        posts: In the manifest's order, those that could be read.
        chunks: (positions [n], calibrated logits [n]); NaN where a post could not be encoded.
        failed: Post id -> why it could not be encoded, complete once `chunks` is exhausted.
    """

    posts: tuple[Post, ...]
    chunks: Iterator[tuple[IntArray, Float32Array]]
    failed: dict[str, str]


class Prediction:
    """Labels for the posts of a manifest.

    Args:
        folder: A run with at least one finished round.
        manifest: The posts; labels in it are not read.
        progress: Draw a bar over feature extraction.

    Raises:
        RunStateError: No run, no finished round, or a damaged folder.
        RunMismatchError: This machine's backbone is not the one that the run was trained with.
        ManifestError, QuarantineError: The manifest cannot be read, or too many of its rows are bad.

    Attributes:
        classes: Names of the classes.
        quarantine: What was left out, each with its reason; complete once `rows` is exhausted.
    """

    def __init__(self, folder: RunFolder, manifest: Path, *, progress: bool = False) -> None:
        self.classes = stored_classes(folder)
        limits = stored_recipe(folder).data  # what is quickly refused comes before the weights
        report = read_manifest(manifest, max_pixels=limits.max_image_pixels, labels=False, videos=False)
        enforce(report, limits.max_bad_rows, limits.max_bad_share)
        self.quarantine: list[Json] = [
            {"kind": "row", "line": p.line, "id": p.post_id, "reason": p.reason} for p in report.problems
        ]
        self._limits, self._total = limits, report.rows
        model = open_best(folder)
        score = _cached if model.network is None else _computed
        self._scores = score(model, report.posts, progress=progress)
        for post_id, reason in self._scores.failed.items():
            self._set_aside(post_id, reason)
        self._told = set(self._scores.failed)

    def rows(self) -> Iterator[Json]:
        """One record a post, in the manifest's order.

        Raises:
            QuarantineError: More posts could not be encoded than the run's recipe tolerates.
        """
        for positions, logits in self._scores.chunks:
            odds = sigmoid(logits)
            for position, logit, positive in zip(positions, logits, odds, strict=True):
                post = self._scores.posts[position]
                if np.isfinite(logit):
                    yield self._row(post.id, logit, float(positive))
                elif post.id not in self._told:
                    reason = self._scores.failed.get(post.id, "its features are not finite")
                    self._set_aside(post.id, reason)

    def _row(self, post_id: str, logit: float, positive: float) -> Json:
        label = self.classes.positive if logit > 0 else self.classes.negative
        odds = {self.classes.positive: round(positive, 6), self.classes.negative: round(1 - positive, 6)}
        return {"id": post_id, "label": label, "probability": odds[label], "probabilities": odds}

    def _set_aside(self, post_id: str, reason: str) -> None:
        self.quarantine.append({"kind": "image", "id": post_id, "reason": reason})
        _enforce(self.quarantine, self._total, self._limits)


def _cached(model: BestModel, posts: tuple[Post, ...], *, progress: bool) -> Scores:
    """Features through the cache, then the head."""
    section = model.recipe.backbone
    table = extract_features(
        posts, model.backbone, cache_folder(section),
        batch_size=section.batch_size, workers=section.workers, progress=progress,
    )  # fmt: skip
    chunks = ((positions, model.classify(rows)) for positions, rows in table.chunks(_CHUNK))
    return Scores(posts, chunks, dict(table.failed))


def _computed(model: BestModel, posts: tuple[Post, ...], *, progress: bool) -> Scores:
    """Through the fine-tuned backbone itself: cached features are the pretrained one's."""
    failed: dict[str, str] = {}
    return Scores(posts, _encoded(model, posts, failed, progress=progress), failed)


def _encoded(
    model: BestModel, posts: tuple[Post, ...], failed: dict[str, str], *, progress: bool
) -> Iterator[tuple[IntArray, Float32Array]]:
    """The chunks of `Scores`; posts that cannot be encoded are added to `failed` as they are met."""
    from tqdm import tqdm

    with tqdm(total=len(posts), disable=not progress, desc="posts") as bar:
        for start in range(0, len(posts), _ENCODED):
            part = posts[start : start + _ENCODED]
            encoded = model.encode(part)
            failed |= {part[failure.index].id: failure.reason for failure in encoded.failures}
            yield np.arange(start, start + len(part), dtype=np.int64), model.classify(encoded.rows)
            bar.update(len(part))


def _enforce(quarantine: list[Json], total: int, limits: DataSection) -> None:
    """Rows and posts set aside count together."""
    share = len(quarantine) / max(total, 1)
    if len(quarantine) > limits.max_bad_rows or share > limits.max_bad_share:
        listed = "\n".join(f"  id {one['id']!r}: {one['reason']}" for one in quarantine[:_LISTED])
        raise QuarantineError(
            f"{len(quarantine)} of {total} posts ({share:.2%}) had to be set aside; the run's recipe"
            f" tolerates {limits.max_bad_rows} posts and {limits.max_bad_share:.2%}:\n{listed}"
        )

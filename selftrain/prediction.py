"""A finished run's best model, applied to other posts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from selftrain.calibration import probabilities
from selftrain.classifier import FloatArray, IntArray, load_head
from selftrain.corpus import UNKNOWN, Corpus
from selftrain.data.features import extract_features
from selftrain.data.manifest import enforce, read_manifest
from selftrain.data.posts import Post
from selftrain.errors import QuarantineError, RunMismatchError, RunStateError
from selftrain.finetuned import load_finetuned, read_format
from selftrain.preparation import cache_folder
from selftrain.recipe import DataSection, Recipe
from selftrain.run.folder import RunFolder
from selftrain.start import backbone_options, build_trainer, finetuning_backbone

if TYPE_CHECKING:
    from backbones.base import Backbone

Json = dict[str, Any]
_CHUNK = 4096
_LISTED = 20


class Classes(NamedTuple):
    """The names of the two classes of a run."""

    positive: str
    negative: str


class Scores(NamedTuple):
    """Posts, and how their logits are had.

    Attributes:
        posts: In the manifest's order, those that could be read.
        chunks: (positions [n], calibrated logits [n]); NaN where a post could not be encoded.
        failed: Post id -> why it could not be encoded, as far as that is known beforehand.
    """

    posts: tuple[Post, ...]
    chunks: Iterator[tuple[IntArray, FloatArray]]
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
        recipe = stored_recipe(folder)
        self.classes = stored_classes(folder)
        file = folder.round_path(folder.best_round()) / "model.safetensors"
        report = read_manifest(manifest, max_pixels=recipe.data.max_image_pixels)
        enforce(report, recipe.data.max_bad_rows, recipe.data.max_bad_share)
        self.quarantine: list[Json] = [
            {"kind": "row", "line": p.line, "id": p.post_id, "reason": p.reason} for p in report.problems
        ]
        self._limits, self._total = recipe.data, report.rows
        by_head = read_format(file) == "selftrain-head-1"
        score = _score_with_head if by_head else _score_with_network
        self._scores = score(folder, recipe, file, report.posts, progress=progress)
        for post_id, reason in self._scores.failed.items():
            self._set_aside(post_id, reason)

    def rows(self) -> Iterator[Json]:
        """One record a post, in the manifest's order.

        Raises:
            QuarantineError: More posts could not be encoded than the run's recipe tolerates.
        """
        for positions, logits in self._scores.chunks:
            odds = probabilities(logits)
            for position, logit, positive in zip(positions, logits, odds, strict=True):
                post = self._scores.posts[position]
                if np.isfinite(logit):
                    yield self._row(post.id, logit, float(positive))
                elif post.id not in self._scores.failed:
                    self._set_aside(
                        post.id, "its images could not be decoded, or its features are not finite"
                    )

    def _row(self, post_id: str, logit: float, positive: float) -> Json:
        label = self.classes.positive if logit > 0 else self.classes.negative
        odds = {self.classes.positive: round(positive, 6), self.classes.negative: round(1 - positive, 6)}
        return {"id": post_id, "label": label, "probability": odds[label], "probabilities": odds}

    def _set_aside(self, post_id: str, reason: str) -> None:
        self.quarantine.append({"kind": "image", "id": post_id, "reason": reason})
        _enforce(self.quarantine, self._total, self._limits)


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
    found = folder.environment().get("classes")
    if not isinstance(found, dict) or set(found) != set(Classes._fields):
        raise RunStateError(
            f"{folder.path / 'environment.json'} names no classes (found {found!r}): the folder is damaged"
        )
    return Classes(**found)


def _score_with_head(
    folder: RunFolder, recipe: Recipe, file: Path, posts: tuple[Post, ...], *, progress: bool
) -> Scores:
    """Features through the cache, then the head."""
    from backbones import load_backbone

    backbone = load_backbone(recipe.backbone.name, **backbone_options(recipe))
    _check_same(folder, backbone, folder.environment()["identity"]["backbone"])
    table = extract_features(
        posts, backbone, cache_folder(recipe.backbone), batch_size=recipe.backbone.batch_size,
        workers=recipe.backbone.workers, progress=progress,
    )  # fmt: skip
    model = load_head(file)[0]
    chunks = ((positions, model.logits(rows)) for positions, rows in table.chunks(_CHUNK))
    return Scores(posts, chunks, dict(table.failed))


def _score_with_network(
    folder: RunFolder, recipe: Recipe, file: Path, posts: tuple[Post, ...], *, progress: bool
) -> Scores:
    """Through the fine-tuned backbone itself: cached features are the pretrained one's."""
    model = load_finetuned(file)[0]
    backbone = finetuning_backbone(recipe)
    _check_same(folder, backbone, model.pretrained)
    trainer = build_trainer(recipe)
    chunks = trainer.logits(model, _unlabelled(posts, folder), np.arange(len(posts)))
    return Scores(posts, _with_bar(chunks, len(posts), shown=progress), {})


def _with_bar(
    chunks: Iterator[tuple[IntArray, FloatArray]], total: int, *, shown: bool
) -> Iterator[tuple[IntArray, FloatArray]]:
    from tqdm import tqdm

    with tqdm(total=total, disable=not shown, desc="posts") as bar:
        for positions, logits in chunks:
            yield positions, logits
            bar.update(len(positions))


def _unlabelled(posts: tuple[Post, ...], folder: RunFolder) -> Corpus:
    """Posts as a trainer takes them: all of them pool, none with a label."""
    nobody, unknown = np.empty(0, np.int64), np.full(len(posts), UNKNOWN, np.int8)
    everybody = np.arange(len(posts), dtype=np.int64)
    classes = stored_classes(folder)
    return Corpus(
        posts, None, nobody, nobody, everybody, nobody, unknown, unknown, classes.positive, classes.negative
    )


def _check_same(folder: RunFolder, backbone: Backbone, expected: str) -> None:
    found = backbone.fingerprint()
    if found != expected:
        raise RunMismatchError(
            f"{folder.path} was trained on features of the backbone {expected[:12]}, here {backbone.name!r}"
            f" is {found[:12]}: its weights, libraries or number format differ. Use the versions that"
            f" {folder.path / 'environment.json'} lists, on the same kind of device, or train again"
        )


def _enforce(quarantine: list[Json], total: int, limits: DataSection) -> None:
    """Rows and posts set aside count together."""
    share = len(quarantine) / max(total, 1)
    if len(quarantine) > limits.max_bad_rows or share > limits.max_bad_share:
        listed = "\n".join(f"  id {one['id']!r}: {one['reason']}" for one in quarantine[:_LISTED])
        raise QuarantineError(
            f"{len(quarantine)} of {total} posts ({share:.2%}) had to be set aside; the run's recipe"
            f" tolerates {limits.max_bad_rows} posts and {limits.max_bad_share:.2%}:\n{listed}"
        )

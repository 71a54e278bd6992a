"""From a folder of reviews to a trained model: what `selftrain act train` does.

A labelling (`selftrain act annotate`) and a run are read alike. Every batch of the ledger is a sample of its
own population, with known probabilities, so that its part of the ACT loss is unbiased for that population; a
post that several batches were drawn from counts once for each. Posts that people labelled without any draw
join them with pi = 1. The validation posts choose the epoch and calibrate; the test posts are measured on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from backbones import load_backbone
from backbones.base import Backbone
from selftrain._util.plugins import accepted
from selftrain._util.printable import shorten
from selftrain._util.types import Float32Array, FloatArray, IntArray, Json
from selftrain.act.training import ACTTrainer
from selftrain.config import BackboneSection, ClassifierSection, Recipe, stored_recipe
from selftrain.data.features import extract_features
from selftrain.data.posts import Post
from selftrain.data.preparation import cache_folder, prepare
from selftrain.data.splits import split_by_shares
from selftrain.data.task import Task, load_task
from selftrain.errors import RunMismatchError, TrainingError
from selftrain.models.act_model import ACTModel
from selftrain.models.metrics import auc, macro_f1, wilson
from selftrain.models.pretrained import backbone_options
from selftrain.models.trainer import HeadTrainer
from selftrain.review.estimates import BatchOutcome, outcome
from selftrain.review.labelling import LabelFolder, contents_of, labelled_posts, read_posts, review_folder
from selftrain.review.ledger_reader import LEDGER, LedgerReader
from selftrain.store.run_dir import RunFolder, compared

VALIDATION_SHARE = 0.5
"""Of a labelling's own trusted labels, where no validation manifest is given."""


Rows = Callable[[Sequence[Post]], Float32Array]
"""Features [B, D] of posts."""
Measured = tuple[list[str], IntArray, Float32Array]
"""Ids, class indices [B] and probabilities [B, K] of posts of trusted label."""


class TrustedPosts(NamedTuple):
    """Posts that people labelled without a draw, and all posts by id."""

    labelled: Sequence[Post]  # to learn from
    validation: Sequence[Post]  # to choose the epoch on, and to measure on
    test: Sequence[Post]
    by_id: Mapping[str, Post]  # every post of the folder's manifests


class ReviewedLabels(NamedTuple):
    """What is learned from, one entry a post and batch [M]; the arguments of `ACTTrainer.fit`."""

    posts: list[Post]
    machine: list[str]
    human: list[str | None]
    inclusion: FloatArray


class SplitQuality(NamedTuple):
    """How good the model is on posts of trusted label."""

    posts: int  # how many
    macro_f1: float  # over the classes that occur
    auc: float | None  # area under ROC, the mean of each class against the rest; None where one class occurs
    accuracy: float  # share of right labels, with the 95 % Wilson interval
    low: float
    high: float
    f1: Mapping[str, float]  # class -> its F1

    def __str__(self) -> str:
        return (
            f"{self.posts:,} posts, macro-F1 {self.macro_f1:.3f}, AUC"
            f" {'-' if self.auc is None else f'{self.auc:.3f}'}, accuracy {self.accuracy:.3f}"
            f" [{self.low:.3f}, {self.high:.3f}]"
        )


class ACTTraining(NamedTuple):
    """What came of a training."""

    model: ACTModel  # as it was saved
    posts: int  # entries that it learned from, see `ReviewedLabels`
    human: int  # of them, those with a label of people
    # whether every post had a chance of review; else the loss is as wrong as the labels that nobody looked at
    unbiased: bool
    left_out: Mapping[str, str]  # Post id -> why it could not be encoded
    quality: Mapping[str, SplitQuality]  # "validation" and, where there are labels, "test"

    def to_json(self) -> Json:
        """Return the content of act.json."""
        return {
            "learned_from": {"posts": self.posts, "human_labels": self.human, "unbiased": self.unbiased},
            "quality": {split: one._asdict() for split, one in self.quality.items()},
            "best_epoch": self.model.classifier.best_epoch,
            "curve": [
                {"epoch": point.epoch, "parts": point.parts, "macro_f1": point.macro_f1}
                for point in self.model.classifier.curve
            ],
            "left_out": [{"id": post_id, "reason": why} for post_id, why in self.left_out.items()],
        }


def train_on_reviews(
    path: Path,
    out: Path,
    *,
    validation: Path | None = None,
    test: Path | None = None,
    recipe: Recipe | None = None,
    power: float = 1.0,
    seed: int = 0,
    progress: bool = False,
) -> ACTTraining:
    """Train with the ACT loss on people's labels in a folder's reviews of a labelling or a run, and save.

    Args:
        validation, test: Manifests of trusted labels; None: of a run, its own splits; of a labelling, half
            of the labels that its manifest had validates, and nothing is tested on.
        recipe: Whose backbone and classifier to use; None: a run's own, of a labelling the defaults.
        power: lambda of the loss.
        seed: Of the split, the initial weights and dropout.

    Raises:
        TrainingError: Nobody has reviewed yet, nothing to validate on, two posts of one id, or a review that
            hands out the likely errors first and is not finished.
        RunMismatchError: The folder's posts have changed.
        ManifestError, TaskError, SplitError, QuarantineError: The data cannot be used.
    """
    folder = review_folder(path)
    folder.recipe()  # no such folder: said before anything is loaded
    batches = _batches(folder)
    if recipe is None and not isinstance(folder, LabelFolder):
        recipe = stored_recipe(folder)
    backbone = BackboneSection() if recipe is None else recipe.backbone
    head = ClassifierSection() if recipe is None else recipe.classifier
    options = backbone_options(backbone)
    encoder = load_backbone(backbone.kind, **options)
    # --- whom to learn from, whom to measure on
    if isinstance(folder, LabelFolder):
        task, trusted = _of_labelling(folder, validation, test, seed)
    else:
        task, trusted = _of_run(folder, encoder, validation, test, progress=progress)
    if not trusted.validation:
        raise TrainingError(
            f"{path} has no post of trusted label to validate on: label some in its manifest, a hundred are"
            " plenty, or give a manifest of labelled posts with --validation"
        )
    _check_ids(trusted)
    rows, failed = _encode(trusted, encoder, backbone, progress=progress)
    learned = reviewed_labels(batches, trusted, failed)
    # --- training, and how good it is
    trainer = ACTTrainer(
        task.names, backbone=encoder, positive=task.positive, power=power, seed=seed,
        settings=HeadTrainer(**accepted(HeadTrainer, head.arguments())).settings,
        batch_size=backbone.batch_size, workers=backbone.workers,
    )  # fmt: skip
    found, measured = _fit(trainer, learned, trusted, rows, failed)
    record = {"from": str(path.resolve()), "task": task.name, "power": power, "seed": seed, **found.to_json()}
    kept = {"name": backbone.kind, **options}
    return found._replace(model=found.model.save(out, backbone=kept, record=record, measured=measured))


def _fit(
    trainer: ACTTrainer, learned: ReviewedLabels, trusted: TrustedPosts, rows: Rows, failed: Mapping[str, str]
) -> tuple[ACTTraining, dict[str, Measured]]:
    """Train, and measure on the posts of trusted label that could be encoded."""
    checked, tested = (
        [post for post in posts if post.id not in failed] for posts in (trusted.validation, trusted.test)
    )
    model = trainer.fit(
        rows(learned.posts), learned.machine, learned.human, learned.inclusion,
        validation=(rows(checked), [str(post.label) for post in checked]),
    )  # fmt: skip
    splits = {"validation": checked, "test": tested}
    measured = {name: _measured(model, posts, rows(posts)) for name, posts in splits.items() if posts}
    found = ACTTraining(
        model, len(learned.posts), sum(one is not None for one in learned.human),
        bool((learned.inclusion > 0).all()), failed,
        {name: _quality(model.classes, labels, probs) for name, (_, labels, probs) in measured.items()},
    )  # fmt: skip
    return found, measured


def _check_ids(trusted: TrustedPosts) -> None:
    """Refuse two posts of one id: manifests that are each numbered from 1 would be taken for each other's."""
    met = dict(trusted.by_id)
    for post in (*trusted.validation, *trusted.test):
        other = met.setdefault(post.id, post)
        if other != post and contents_of([other]) != contents_of([post]):
            raise TrainingError(
                f"the id {post.id!r} is one post in one manifest and another in the next,"
                f" {shorten(other.text)} and {shorten(post.text)}: give every post an id of its own"
            )


def _encode(
    trusted: TrustedPosts, encoder: Backbone, section: BackboneSection, *, progress: bool
) -> tuple[Rows, Mapping[str, str]]:
    """Compute features of everybody, through the cache; return what looks rows up, and who has none."""
    everybody = dict(trusted.by_id) | {post.id: post for post in (*trusted.validation, *trusted.test)}
    place_of = {post_id: place for place, post_id in enumerate(everybody)}
    table = extract_features(
        list(everybody.values()), encoder, cache_folder(section),
        batch_size=section.batch_size, workers=section.workers, progress=progress,
    )  # fmt: skip
    return lambda posts: table.rows([place_of[post.id] for post in posts]), table.failed


def reviewed_labels(
    batches: Sequence[BatchOutcome], trusted: TrustedPosts, failed: Mapping[str, str]
) -> ReviewedLabels:
    """Gather every batch's population with its labels and chances of review, then the labelled posts.

    Posts that could not be encoded are left out, as are those that no manifest has any more, and those that
    the model is measured on.
    """
    skipped = {*failed, *(post.id for post in (*trusted.validation, *trusted.test))}
    entries = list[tuple[Post, str, str | None, float]]()
    for batch in batches:
        entries += [
            (trusted.by_id[post_id], machine, human, float(chance))
            for post_id, machine, human, chance in zip(
                batch.post_ids, batch.machine, batch.human, batch.chances, strict=True
            )
            if post_id in trusted.by_id
        ]
    entries += [(post, str(post.label), str(post.label), 1.0) for post in trusted.labelled]
    kept = [entry for entry in entries if entry[0].id not in skipped]
    return ReviewedLabels(
        [post for post, _, _, _ in kept], [machine for _, machine, _, _ in kept],
        [human for _, _, human, _ in kept], np.array([chance for _, _, _, chance in kept], dtype=np.float64),
    )  # fmt: skip


def _batches(folder: RunFolder) -> list[BatchOutcome]:
    """Read what people decided, batch by batch; those without an answer yet are left out."""
    with LedgerReader(folder.path / LEDGER) as ledger:
        found = [outcome(ledger, name) for name in ledger.batches()]
    if any(one.partial for one in found):
        raise TrainingError(
            f"the review of {folder.path} hands out the likely errors first and is not finished: what was"
            " looked at is no random part of it. Finish the review, then train"
        )
    reviewed = [one for one in found if one.reviewed.any()]
    if not reviewed:
        raise TrainingError(
            f"nobody has labelled a post of {folder.path} yet: review some with `selftrain review serve"
            f" {folder.path}` first"
        )
    return reviewed


def _of_labelling(
    folder: LabelFolder, validation: Path | None, test: Path | None, seed: int
) -> tuple[Task, TrustedPosts]:
    """Return the labels that the manifest had; half of them validates where no other manifest does."""
    task = load_task(folder.data_files().task)
    posts = labelled_posts(folder, task)
    labelled = [post for post in posts if post.label is not None]
    checked = _labelled(validation, task)
    if validation is None and labelled:
        shares = {"train": 1 - VALIDATION_SHARE, "validation": VALIDATION_SHARE}
        splits = split_by_shares(labelled, task, shares, seed=seed)
        labelled, checked = list(splits.labelled), list(splits.validation)
    return task, TrustedPosts(labelled, checked, _labelled(test, task), {post.id: post for post in posts})


def _of_run(
    folder: RunFolder, encoder: Backbone, validation: Path | None, test: Path | None, *, progress: bool
) -> tuple[Task, TrustedPosts]:
    """Return the run's own splits, prepared again as it prepared them."""
    prepared = prepare(stored_recipe(folder), encoder, progress=progress)
    recorded = folder.environment().identity
    now = compared(recorded, prepared.identity)
    differing = sorted(name for name, found in now.items() if recorded.get(name) != found)
    if differing:
        raise RunMismatchError(
            f"the {' and '.join(differing)} of {folder.path} are not what they were when it ran: put"
            " manifests and backbone back, or run it again"
        )
    task, corpus = prepared.task, prepared.corpus
    labelled, checked, tested = (
        [post for post in (corpus.posts[int(place)] for place in places) if post.label is not None]
        for places in (corpus.labelled, corpus.validation, corpus.test)
    )
    by_id = {post.id: post for post in corpus.posts}
    trusted = TrustedPosts(
        labelled, _labelled(validation, task) or checked, _labelled(test, task) or tested, by_id
    )
    return task, trusted


def _labelled(manifest: Path | None, task: Task) -> list[Post]:
    """Return the labelled posts of a manifest of its own; none without one."""
    if manifest is None:
        return []
    posts = [post for post in read_posts(manifest, task) if post.label is not None]
    if not posts:
        raise TrainingError(f"{manifest} has no labelled post: expected some to measure on")
    return posts


def _measured(model: ACTModel, posts: Sequence[Post], rows: Float32Array) -> Measured:
    labels = np.array([model.classes.index(str(post.label)) for post in posts], dtype=np.int64)
    return [post.id for post in posts], labels, model.probabilities(rows)


def _quality(classes: Sequence[str], labels: IntArray, probs: Float32Array) -> SplitQuality:
    from sklearn.metrics import f1_score

    predicted = probs.argmax(1).astype(np.int64)
    right = wilson(int((predicted == labels).sum()), len(labels))
    each = f1_score(labels, predicted, labels=range(len(classes)), average=None, zero_division=0.0)
    ranked = [auc(labels == place, probs[:, place]) for place in range(len(classes))]
    known = [one for one in ranked if one is not None]
    return SplitQuality(
        len(labels), macro_f1(labels, predicted), float(np.mean(known)) if known else None, *right,
        {name: round(float(value), 6) for name, value in zip(classes, each, strict=True)},
    )  # fmt: skip

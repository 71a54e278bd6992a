"""A pool labelled by a model and put right by people where another model doubts it; two classes or more.

DIR/
├── labelling.toml        the data, and what was asked of whom
├── environment.json      the classes
├── annotations.jsonl     the machine's label of every post, with probability and reasons
├── criticisms.jsonl      how likely each is wrong, and why
└── review.sqlite         the posts drawn for review, within the budget
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from agents.ask.annotator import Annotation, Annotator
from agents.ask.criticizer import Criticism, Criticizer
from agents.ask.runner import Runner
from selftrain._util.types import Json
from selftrain.act.budget import Rule, filled
from selftrain.data.manifest import read_manifest
from selftrain.data.posts import Post
from selftrain.data.task import Task, load_task
from selftrain.errors import BudgetError, EstimateError, RunStateError
from selftrain.review.criticism import CRITICISMS, LabelCriticism
from selftrain.review.estimates import LabelErrors, label_errors, outcome
from selftrain.review.ledger import ReviewLedger
from selftrain.review.ledger_reader import LEDGER, LedgerReader
from selftrain.review.sampling import MachineLabel, review_items, sample_of
from selftrain.store import atomic
from selftrain.store.run_dir import RunFolder, read_jsonl

BATCH, ANNOTATIONS, RECIPE = "labels", "annotations.jsonl", "labelling.toml"
FEWEST = 0.5
"""The share of posts that must get a machine label: below it, model and posts do not go together."""


class LabellingData(NamedTuple):
    """The files that a labelling is about."""

    manifest: Path
    task: Path

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> LabellingData:
        """The files of a record."""
        return cls(Path(record["manifest"]), Path(record["task"]))


class LabelFolder(RunFolder):
    """The folder of a labelling: read where a run's reviews are, by page, export and import."""

    @property
    def recipe_path(self) -> Path:
        return self.path / RECIPE

    def recipe(self) -> Json:
        """What labelling.toml says.

        Raises:
            RunStateError: This is no labelling's folder, or a damaged one.
        """
        if not self.recipe_path.exists():
            raise RunStateError(
                f"{self.path} holds no labelling: it has no {RECIPE}. `selftrain act annotate MANIFEST ..."
                " --out DIR` makes one"
            )
        return super().recipe()

    def data_files(self) -> LabellingData:
        """Where the posts and their task are.

        Raises:
            RunStateError: As `recipe`.
        """
        try:
            return LabellingData.from_json(self.recipe().get("data", {}))
        except (KeyError, TypeError) as error:
            raise RunStateError(f"{self.recipe_path} names no data ({error}): it is damaged") from error


def review_folder(path: Path | str) -> RunFolder:
    """The folder of a run or of a labelling, whichever is there."""
    found = LabelFolder(path)
    return found if found.recipe_path.exists() else RunFolder(path)


class SampleSettings(NamedTuple):
    """How posts are drawn for review; see `selftrain.act.budget.inclusion`."""

    budget: int
    rule: Rule = "exponential"
    floor: float = 0.1
    double_annotation_rate: float = 0.0
    seed: int = 0


class PoolLabels(NamedTuple):
    """What was labelled.

    Attributes:
        posts: With a machine label.
        unlabelled: Posts that the annotator gave none.
        reason: Why the first of them has none; empty where all have one.
        doubt: Mean error estimate of the labels, in [0, 1].
        missing: Labels without an estimate.
        drawn: Posts sent to review.
    """

    posts: int
    unlabelled: int
    reason: str
    doubt: float
    missing: int
    drawn: int


class MixedLabels(NamedTuple):
    """The manifest with the best label that is known of each post.

    Attributes:
        posts: All of the manifest. Those that had no label have one with `provenance` among their extra
            fields, unless the annotator gave none.
        waiting: Posts that lack a review.
        errors: How wrong the machine's labels are; None where nobody has answered, or the sample cannot tell.
    """

    posts: list[Post]
    waiting: int
    errors: LabelErrors | None


def annotate_pool(
    folder: LabelFolder,
    posts: Sequence[Post],
    *,
    annotating: tuple[Runner, Annotator],
    criticizing: tuple[Runner, Criticizer],
    classes: Sequence[str],
    drawing: SampleSettings,
) -> PoolLabels:
    """Annotate and criticize every post, and draw those that people look at.

    Safe to repeat: answers are paid for once, and what was drawn stays drawn.

    Args:
        folder: Begun, see `begin`.
        posts: Without labels.
        annotating: Who labels, and how they are asked.
        criticizing: Who doubts the labels, and how they are asked.
        classes: Of the task.
        drawing: Budget and rule.

    Raises:
        BudgetError: Most posts got no machine label, no label an estimate, or the budget cannot be spent.
        AgentError: Nobody can be asked, or the token cap is reached.
        LedgerError, StorageError: The folder cannot be used.
    """
    # --- a label of a machine for every post that it can read
    runner, annotator = annotating
    annotations = annotator.annotate(runner, posts)
    atomic.write_jsonl(folder.path / ANNOTATIONS, (one._asdict() for one in annotations))
    pairs = [(post, one) for post, one in zip(posts, annotations, strict=True) if one.label is not None]
    reason = next((one.fault for one in annotations if one.label is None), "")
    if len(pairs) < FEWEST * len(posts):
        raise BudgetError(
            f"{annotator.name} annotation gave {len(pairs):,} of {len(posts):,} posts a label; of one of the"
            f" others: {reason}. Try the model with `selftrain act select-models` first"
        )
    # --- how likely is each wrong?
    runner, criticizer = criticizing
    given = criticizer.criticize(runner, [p for p, _ in pairs], [a for _, a in pairs])
    if all(one.error is None for one in given):
        raise BudgetError(
            f"the criticizer gave no estimate for any of {len(given):,} labels; of the first:"
            f" {given[0].fault}. Name another --strategy or --criticizer; `selftrain act"
            " select-models` tests them"
        )
    rows = [LabelCriticism.of(BATCH, a, one).to_json() for (_, a), one in zip(pairs, given, strict=True)]
    atomic.write_jsonl(folder.path / CRITICISMS, rows)
    # --- people look at a sample
    drawn = _draw(folder, [one for _, one in pairs], given, classes, drawing)
    known = [one.error for one in given if one.error is not None]
    return PoolLabels(
        len(pairs), len(posts) - len(pairs), reason, sum(known) / len(known), len(given) - len(known), drawn
    )


def begin(folder: LabelFolder, manifest: Path, task: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder, or check that this is the same labelling going on.

    Args:
        folder: Where.
        manifest, task: The data.
        settings: What was asked of whom, and how posts are drawn.

    Raises:
        RunMismatchError: The folder holds another labelling.
        TaskError: The task cannot be used.
        StorageError: The disk is full or refuses.
    """

    loaded = load_task(task)
    data = {"manifest": str(manifest.resolve()), "task": str(task.resolve())}
    identity = {"task": loaded.name, "classes": list(loaded.names)}
    environment = {"identity": identity, "classes": {"all": list(loaded.names)}}
    folder.begin({"data": data, "labelling": dict(settings)}, environment)


def annotations_of(folder: RunFolder) -> dict[str, Annotation]:
    """Post id -> the machine's label and its reasons, see annotations.jsonl; empty for a run.

    Raises:
        RunStateError: A damaged file.
    """
    file = folder.path / ANNOTATIONS
    if not file.exists():
        return {}
    try:
        return {one.post_id: one for one in (Annotation(**record) for record in read_jsonl(file))}
    except TypeError as error:
        raise RunStateError(f"{file} has a line that is no annotation ({error}): it is damaged") from error


def mixed_posts(folder: LabelFolder, task: Task) -> MixedLabels:
    """What reviewers said of each post, else the machine's label; labels that the manifest had stay.

    Raises:
        ManifestError: The manifest cannot be read any more.
        LedgerError, RunStateError: The folder cannot be read.
    """

    ledger = LedgerReader(folder.path / LEDGER)
    try:
        found = outcome(ledger, BATCH)
        waiting = len(ledger.waiting())
    finally:
        ledger.close()
    places = {post_id: place for place, post_id in enumerate(found.post_ids)}
    posts = []
    for post in read_manifest(folder.data_files().manifest, task, videos=False).posts:
        if post.label is None and post.id in places:
            place = places[post.id]
            machine, human = found.machine[place], found.human[place]
            source = {
                "source": "machine" if human is None else "human", "machine_label": machine,
                "error": round(float(found.errors[place]), 6),
                "inclusion": round(float(found.inclusion[place]), 9),
            }  # fmt: skip
            extra = {**post.extra, "provenance": source}
            posts.append(replace(post, label=found.labels[place], extra=extra))
        else:
            posts.append(post)
    try:
        return MixedLabels(posts, waiting, label_errors(found))
    except EstimateError:  # too few answers, or drawn by threshold alone
        return MixedLabels(posts, waiting, None)


def _draw(
    folder: LabelFolder,
    annotations: Sequence[Annotation],
    criticisms: Sequence[Criticism],
    classes: Sequence[str],
    drawing: SampleSettings,
) -> int:

    if not 1 <= drawing.budget <= len(annotations):
        raise BudgetError(
            f"a budget of {drawing.budget:,} for {len(annotations):,} labels: expected a whole number from 1"
            f" to {len(annotations):,}"
        )
    errors = filled([one.error for one in criticisms])
    suspected = [
        MachineLabel(one.post_id, str(one.label), float(error))
        for one, error in zip(annotations, errors, strict=True)
    ]
    items = review_items(
        suspected, [""] * len(suspected),
        count=drawing.budget, rule=drawing.rule, floor=drawing.floor, seed=drawing.seed,
    )  # fmt: skip
    order = sample_of(items, drawing.seed)
    ledger = ReviewLedger.create(
        folder.path / LEDGER, classes=classes, budget=drawing.budget,
        double_annotation_rate=drawing.double_annotation_rate, seed=drawing.seed,
    )  # fmt: skip
    try:
        ledger.add(BATCH, items, order)
    finally:
        ledger.close()
    return len(order)

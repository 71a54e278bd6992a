"""A pool labelled by a model and put right by people where another model doubts it; two classes or more.

DIR/
├── labelling.toml        the data, and what was asked of whom
├── environment.json      the classes
├── posts.jsonl           each post's digests, to tell which changed
├── annotations.jsonl     the machine's label of every post, with probability and reasons
├── criticisms.jsonl      how likely each is wrong, and why
└── review.sqlite         the posts drawn for review, within the budget
"""

from __future__ import annotations

import hashlib
import logging
import random
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from agents.ask.annotator import Annotation, Annotator
from agents.ask.criticizer import Criticizer
from agents.ask.runner import Runner
from selftrain._util.object_urls import local_path, url_or_path
from selftrain._util.types import Json
from selftrain.act.budget import filled
from selftrain.data.manifest import Tolerance, describe, read_manifest
from selftrain.data.posts import Post
from selftrain.data.task import Task, load_task
from selftrain.errors import BudgetError, EstimateError, RunMismatchError, RunStateError
from selftrain.review.criticism import CRITICISMS, estimates_of, write_criticisms
from selftrain.review.estimates import LabelErrors, label_errors, outcome
from selftrain.review.ledger import ReviewLedger
from selftrain.review.ledger_reader import LEDGER, LedgerReader
from selftrain.review.sampling import MachineLabel, SampleSettings, add_sample
from selftrain.store import checksums
from selftrain.store.checksums import digest_of
from selftrain.store.run_dir import PostDigest, RunFolder, read_typed, text_digest

_LOG = logging.getLogger(__name__)
BATCH, ANNOTATIONS, RECIPE = "labels", "annotations.jsonl", "labelling.toml"
FEWEST = 0.5
"""The share of posts that must get a machine label: below it, model and posts do not go together."""


# ---- posts ---------------------------------------------------------------------------------------------


def read_posts(
    manifest: Path, task: Task, columns: Mapping[str, str] | None = None, tolerance: Tolerance | None = None
) -> Sequence[Post]:
    """Read a manifest, by default with the tolerance for bad rows that recipes have."""
    report = read_manifest(manifest, task, columns=columns, videos=False)
    report.enforce(tolerance or Tolerance())
    if report.problems:
        first = next(describe(report.problems)).strip()
        _LOG.warning("%s: %d rows are set aside, %s", manifest, report.set_aside, first)
    return report.posts


def read_labelled(
    manifest: Path,
    task: Task,
    count: int,
    seed: int,
    columns: Mapping[str, str] | None = None,
    *,
    tolerance: Tolerance | None = None,
) -> tuple[list[Post], int]:
    """Return at most `count` labelled posts, drawn by the seed, and how many posts have no label.

    Raises:
        BudgetError: Fewer than two labelled posts, or asked for.
    """
    posts = read_posts(manifest, task, columns, tolerance)
    labelled = [post for post in posts if post.label is not None]
    if count < 2 or len(labelled) < 2:
        raise BudgetError(
            f"{manifest} has {len(labelled)} labelled posts, {count} asked for: expected at least two; label"
            " some by hand, a hundred are plenty"
        )
    drawn = random.Random(seed).sample(range(len(labelled)), min(count, len(labelled)))
    return [labelled[place] for place in sorted(drawn)], len(posts) - len(labelled)


# ---- the folder ----------------------------------------------------------------------------------------


class LabellingData(NamedTuple):
    """The files that a labelling is about."""

    manifest: Path
    task: Path
    columns: Mapping[str, str] = {}  # field -> column of the manifest, where that is called otherwise

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> LabellingData:
        """Return the files of a record."""
        return cls(local_path(record["manifest"]), Path(record["task"]), record.get("columns", {}))


class LabelFolder(RunFolder):
    """The folder of a labelling: read where a run's reviews are, by page, export and import."""

    @property
    def recipe_path(self) -> Path:
        return self.path / RECIPE

    def recipe(self) -> Json:
        """Read labelling.toml."""
        if not self.recipe_path.exists():
            raise RunStateError(
                f"{self.path} holds no labelling: it has no {RECIPE}. `selftrain act annotate MANIFEST ..."
                " --out DIR` makes one"
            )
        return super().recipe()

    def data_files(self) -> LabellingData:
        """Return where the posts and their task are."""
        try:
            return LabellingData.from_json(self.recipe().get("data", {}))
        except (KeyError, TypeError) as error:
            raise RunStateError(f"{self.recipe_path} names no data ({error}): it is damaged") from error


def review_folder(path: Path | str) -> RunFolder:
    """Return the folder of a run or of a labelling, whichever is there."""
    found = LabelFolder(path)
    return found if found.recipe_path.exists() else RunFolder(path)


def begin(
    folder: LabelFolder,
    manifest: Path,
    task: Path,
    settings: Mapping[str, Any],
    columns: Mapping[str, str] | None = None,
    *,
    posts: Iterable[Post],
) -> None:
    """Make the folder, or check that this is the same labelling going on, of the same posts."""
    loaded = load_task(task)
    data: Json = {"manifest": url_or_path(manifest.resolve()), "task": str(task.resolve())}
    if columns:
        data["columns"] = dict(columns)
    contents = contents_of(posts)
    identity = {
        "task": loaded.name, "classes": list(loaded.names), "policy": loaded.fingerprint,
        "posts": _digest(contents),
    }  # fmt: skip
    environment = {"identity": identity, "classes": {"all": list(loaded.names)}}
    folder.begin({"data": data, "labelling": dict(settings)}, environment, contents)


def contents_of(posts: Iterable[Post]) -> list[PostDigest]:
    """Return what each post shows a model, by id; labels, which a manifest may get later, are not in it."""

    def of(post: Post) -> PostDigest:
        pictures = hashlib.sha256("".join(map(digest_of, post.images)).encode()).hexdigest()[:16]
        return PostDigest(post.id, "", text_digest(post.text), pictures)

    return sorted(map(of, posts), key=lambda one: one.id)


def _digest(contents: Sequence[PostDigest]) -> str:
    return hashlib.sha256(repr([tuple(one) for one in contents]).encode("utf-8", "surrogatepass")).hexdigest()


def labelled_posts(folder: LabelFolder, task: Task) -> Sequence[Post]:
    """Read the posts of a labelling again.

    Raises:
        RunMismatchError: They are not those that were labelled.
    """
    files = folder.data_files()
    # how many rows may be bad was judged when it began
    posts = read_posts(files.manifest, task, files.columns, Tolerance(None, None))
    contents = contents_of(posts)
    if folder.environment().identity.get("posts", "") not in ("", _digest(contents)):
        raise RunMismatchError(
            f"the posts of {url_or_path(files.manifest)} are not those that were labelled in {folder.path}:"
            f" {folder.differing_posts(contents)}. Put the manifest and its pictures back, or label it anew"
            " with another --out: answers that were paid for are not asked again"
        )
    return posts


def annotations_of(folder: RunFolder) -> dict[str, Annotation]:
    """Return post id -> the machine's label and its reasons, see annotations.jsonl; empty for a run."""
    found = read_typed(folder.path / ANNOTATIONS, lambda record: Annotation(**record))
    return {one.post_id: one for one in found}


# ---- machines label, people look at a sample -----------------------------------------------------------


class PoolLabels(NamedTuple):
    """What was labelled."""

    posts: int  # with a machine label
    unlabelled: int  # posts that the annotator gave none
    reason: str  # why the first of them has none; empty where all have one
    doubt: float  # mean error estimate of the labels, in [0, 1]
    missing: int  # labels without an estimate
    drawn: int  # posts sent to review

    def lines(self, folder: Path) -> Iterator[str]:
        """Yield what came of it, and what comes next."""
        yield f"{self.posts:,} posts labelled in {folder}"
        if self.unlabelled:
            yield f"{self.unlabelled:,} posts without a label, one of them: {self.reason}"
        if self.missing:
            yield f"{self.missing:,} labels without an error estimate count with the mean of the others"
        yield f"the criticizer takes {100 * self.doubt:.1f} % of the labels for wrong"
        yield f"{self.drawn:,} posts drawn for review"
        out = shlex.quote(str(folder))
        yield f"next: selftrain review serve {out}, then selftrain act export {out} --out labelled.jsonl"
        yield f"and: {train_command(folder)}"


def train_command(folder: Path) -> str:
    """Return what trains a classifier on the reviews in a folder, see `selftrain.review.act_training`."""
    out = str(folder)
    return f"selftrain act train {shlex.quote(out)} --out {shlex.quote(out.rstrip('/') + '-act')}"


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

    Raises:
        BudgetError: Most posts got no machine label, no label an estimate, or the budget cannot be spent.
        AgentError: Nobody can be asked, or the token cap is reached.
    """
    # --- a label of a machine for every post that it can read
    runner, annotator = annotating
    annotations = annotator.annotate(runner, posts)
    checksums.write_jsonl(folder.path / ANNOTATIONS, (one._asdict() for one in annotations))
    pairs = [(post, one) for post, one in zip(posts, annotations, strict=True) if one.label is not None]
    reason = next((one.fault for one in annotations if one.label is None), "")
    if len(pairs) < FEWEST * len(posts):
        raise BudgetError(
            f"{annotator.name} annotation gave {len(pairs):,} of {len(posts):,} posts a label; of one of the"
            f" others: {reason}. Try the model with `selftrain act select-models` first"
        )
    if not 1 <= drawing.budget <= len(pairs):
        raise BudgetError(
            f"a budget of {drawing.budget:,} for {len(pairs):,} labels: expected a whole number from 1 to"
            f" {len(pairs):,}"
        )
    # --- how likely is each wrong?
    runner, criticizer = criticizing
    given = criticizer.criticize(runner, [p for p, _ in pairs], [a for _, a in pairs])
    remedy = "Name another --strategy or --criticizer; `selftrain act select-models` tests them"
    estimates = estimates_of(given, remedy)
    write_criticisms(folder.path / CRITICISMS, BATCH, [a for _, a in pairs], given)
    # --- people look at a sample
    errors = filled(estimates)
    labels = [
        MachineLabel(one.post_id, str(one.label), float(error))
        for (_, one), error in zip(pairs, errors, strict=True)
    ]
    with ReviewLedger.create(
        folder.path / LEDGER, classes=classes, budget=drawing.budget,
        double_annotation_rate=drawing.double_annotation_rate, seed=drawing.seed,
    ) as ledger:  # fmt: skip
        drawn = add_sample(ledger, BATCH, labels, [""] * len(labels), drawing)
    known = [error for error in estimates if error is not None]
    missing, doubt = len(estimates) - len(known), sum(known) / len(known)
    return PoolLabels(len(pairs), len(posts) - len(pairs), reason, doubt, missing, len(drawn))


# ---- the best label of each post -----------------------------------------------------------------------


class MixedLabels(NamedTuple):
    """The manifest with the best label that is known of each post."""

    # all of the manifest. Those that had no label have one with `provenance` among their extra fields, unless
    # the annotator gave none
    posts: list[Post]
    human: int  # how many of these labels are people's, and how many the machine's
    machine: int
    waiting: int  # posts that lack a review
    # how wrong the machine's labels are; None where nobody has answered, or the sample cannot tell
    errors: LabelErrors | None


def mixed_posts(folder: LabelFolder, task: Task) -> MixedLabels:
    """Return what reviewers decided on each post, else the machine's label; the manifest's own stay."""
    with LedgerReader(folder.path / LEDGER) as ledger:
        found, waiting = outcome(ledger, BATCH), len(ledger.waiting())
    places = {post_id: place for place, post_id in enumerate(found.post_ids)}
    posts, human, machine = list[Post](), 0, 0
    for post in labelled_posts(folder, task):
        place = places.get(post.id)
        if post.label is not None or place is None:
            posts.append(post)
            continue
        by_people = bool(found.reviewed[place])
        human, machine = human + by_people, machine + (not by_people)
        source = {
            "source": "human" if by_people else "machine", "machine_label": found.machine[place],
            "error": round(float(found.errors[place]), 6),
            "inclusion": round(float(found.inclusion[place]), 9),
        }  # fmt: skip
        posts.append(replace(post, label=found.labels[place], extra={**post.extra, "provenance": source}))
    try:
        errors = label_errors(found)
    except EstimateError:  # too few answers, or drawn by threshold alone
        errors = None
    return MixedLabels(posts, human, machine, waiting, errors)

"""Which posts are trained on and validated on: a run's grown dataset, or a manifest with labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from selftrain._util.types import Json
from selftrain.agentps.questions import Target, hard_target
from selftrain.agentps.recipe import DataSection
from selftrain.data.manifest import RowError, Rows, enforce, read_manifest
from selftrain.data.posts import MAX_ALBUM, Post
from selftrain.data.splits import parts_by_column
from selftrain.data.task import Task, load_task
from selftrain.errors import DataError, QuarantineError, RecipeError, SplitError
from selftrain.store.run_dir import RunFolder, read_jsonl

if TYPE_CHECKING:
    from selftrain.review.estimates import BatchOutcome


class Gathered(NamedTuple):
    """Posts with labels, and what was left out.

    Attributes:
        task: Classes, policy, questions.
        train: Posts to learn from.
        shares: Post id -> what its label is worth as a target, for pseudo-labels.
        validation: Posts to choose the best epoch and thresholds by; none of them is in `train`.
        quarantine: Rows left out, each with its reason.
        finals: Post id -> the target [K] of the final question of a reviewed sample (ACT); may leave [0, 1].
    """

    task: Task
    train: list[Post]
    shares: dict[str, float]
    validation: list[Post]
    quarantine: list[Json]
    finals: Mapping[str, Target] = {}


def gather(section: DataSection, seed: int) -> Gathered:
    """The posts that a recipe's data section names.

    Raises:
        RecipeError: Neither or both of run and manifest, or a manifest without a task.
        TaskError, ManifestError, SplitError, QuarantineError, RunStateError: What is named cannot be used.
        DataError: No post to learn from, or none to validate on.
    """
    if (section.run is None) == (section.manifest is None):
        raise RecipeError(
            f"data.run is {section.run} and data.manifest is {section.manifest}: expected one of the two,"
            " a finished run or a manifest with labels"
        )
    if section.reviews is not None and section.run is None:
        raise RecipeError("data.reviews names a batch of a run's ledger, but data.run names no run")
    found = _of_run(section) if section.run is not None else _of_manifest(section, seed)
    if section.process is not None:
        found = _with_process(found, section)
    for name, posts in (("learn from", found.train), ("validate on", found.validation)):
        if not any(post.label is not None for post in posts):
            raise DataError(f"there is no labelled post to {name}: expected some of every class")
    return found


def read_posts(path: Path, task: Task, section: DataSection) -> tuple[list[Post], list[Json]]:
    """The posts of a manifest, albums of any length, and the rows set aside."""
    report = read_manifest(
        path, task, max_pixels=section.max_image_pixels, max_images=MAX_ALBUM, columns=section.columns
    )
    enforce(report, section.max_bad_rows, section.max_bad_share)
    return list(report.posts), report.quarantine


def stream_posts(path: Path, quarantine: list[Json], section: DataSection) -> Iterator[Post]:
    """The posts of a manifest of any length, one in memory at a time; labels and answers are not judged.

    Args:
        path: JSON lines, CSV or Parquet. Ids are not compared: that would need memory for all of them.
        quarantine: Gets the rows set aside.
        section: How many rows may be set aside.

    Raises:
        ManifestError: The file cannot be read.
        QuarantineError: More rows are bad than tolerated; the posts before them were given.
    """
    rows = Rows(
        path, None,
        max_pixels=section.max_image_pixels, max_images=MAX_ALBUM, columns=section.columns, labels=False,
        remember=False,
    )  # fmt: skip
    met = bad = 0
    for raw in rows.table.rows:
        met += raw.rows
        try:
            yield rows.post(raw)
        except RowError as error:
            bad += raw.rows
            quarantine.append({"kind": "row", "line": raw.line, "id": error.post_id, "reason": error.reason})
            if bad > section.max_bad_rows:
                break
    if bad > section.max_bad_rows or bad > section.max_bad_share * met:
        first = "\n".join(f"  line {one.get('line')}: {one['reason']}" for one in quarantine[:10])
        raise QuarantineError(
            f"{path}: {bad} of the first {met} rows are set aside; at most {section.max_bad_rows} and"
            f" {section.max_bad_share:.0%} are tolerated:\n{first}\nCorrect these rows"
        )


def _of_run(section: DataSection) -> Gathered:
    """The grown dataset to train on, the run's own validation posts to validate on."""
    from selftrain.store.scores import FILE

    assert section.run is not None
    folder = RunFolder(section.run)
    sources = folder.recipe()["data"]
    task = load_task(section.task if section.task is not None else _stored(folder, sources, "task"))
    grown = {str(row["id"]): row for row in read_jsonl(folder.path / "grown.jsonl")}
    scores = folder.round_path(folder.best_round()) / FILE
    validated = {
        str(row["id"]): str(row["label"]) for row in read_jsonl(scores) if row["split"] == "validation"
    }
    posts, quarantine = _posts_of(sources, task, section)
    missing = [post_id for post_id in (*grown, *validated) if post_id not in posts]
    quarantine += [
        {"kind": "gone", "id": one, "reason": "in no manifest of the run any more"} for one in missing
    ]
    train = [replace(posts[i], label=str(row["label"])) for i, row in grown.items() if i in posts]
    validation = [replace(posts[i], label=label) for i, label in validated.items() if i in posts]
    pseudo = (i for i, row in grown.items() if row["provenance"]["source"] == "pseudo-label")
    found = Gathered(task, train, dict.fromkeys(pseudo, section.soft_target), validation, quarantine)
    return found if section.reviews is None else _with_reviews(found, section.run, section.reviews, posts)


def _stored(folder: RunFolder, sources: Mapping[str, Any], name: str) -> Path:
    """The run's own copy, or the file that its recipe names."""
    copy = folder.path / f"{name}.toml"
    return copy if copy.exists() else Path(sources[name])


def _of_manifest(section: DataSection, seed: int) -> Gathered:
    if section.task is None:
        raise RecipeError("data.manifest is named without data.task: name the task whose labels it holds")
    assert section.manifest is not None
    task = load_task(section.task)
    posts, quarantine = read_posts(section.manifest, task, section)
    posts = [post for post in posts if post.label is not None]
    train, validation = posts, list[Post]()
    if has_splits(posts):
        parts = parts_by_column(posts)
        train, validation = parts["labelled"], parts["validation"]
    if section.validation is not None:
        validation, left_out = read_posts(section.validation, task, section)
        known = {post.id for post in validation}
        train = [post for post in train if post.id not in known]
        quarantine = quarantine + left_out
    elif not validation:
        train, validation = _drawn(train, section.validation_share, seed)
    return Gathered(task, train, {}, validation, quarantine)


def has_splits(posts: Sequence[Post]) -> bool:
    """Whether the manifest says of its posts what they are for."""
    return any("split" in post.extra for post in posts)


def of_split(posts: Sequence[Post], name: str | None) -> Sequence[Post]:
    """The posts of one split: what a model learned from is no measure of it.

    Args:
        posts: Of a manifest.
        name: "train", "validation", "pool", "test" or "all"; None will do where the manifest has no splits.

    Raises:
        SplitError: There are splits and no name, no splits and a name, or no post of that name.
    """
    if not has_splits(posts):
        if name in (None, "all"):
            return posts
        raise SplitError(f"--split {name}: the manifest has no field `split`; leave the option out")
    columns = parts_by_column(posts).items()
    parts = {"train" if kind == "labelled" else kind: part for kind, part in columns}
    found = parts | {"all": posts}
    if name is None or not found[name]:
        sizes = ", ".join(f"{len(part):,} {kind}" for kind, part in parts.items() if part)
        asked = "the manifest's field `split` says" if name is None else f"no post of split {name}: there are"
        raise SplitError(f"{asked} {sizes}; say which to measure, --split test for instance, or --split all")
    return found[name]


def _drawn(posts: list[Post], share: float, seed: int) -> tuple[list[Post], list[Post]]:
    """A share of each class to validate on, at least one; both in the posts' order."""
    generator = np.random.default_rng([seed, 1])
    chosen: set[str] = set()
    for label in dict.fromkeys(post.label for post in posts):
        ids = [post.id for post in posts if post.label == label]
        wanted = max(round(share * len(ids)), 1)
        chosen |= {ids[i] for i in generator.permutation(len(ids))[:wanted]}
    return [p for p in posts if p.id not in chosen], [p for p in posts if p.id in chosen]


def _with_reviews(found: Gathered, run: Path, batch: str, posts: Mapping[str, Post]) -> Gathered:
    """The posts of a reviewed sample too, with targets that make their loss ACT's.

    ``t_m + (t_h - t_m) delta / pi``: cross-entropy is linear in its target, so that the mean over many draws
    is the loss of human labels for every post of the batch, whatever the machine's labels are worth.
    """
    reviewed = _reviewed(run, batch)
    names = found.task.names
    finals = {}
    for i, post_id in enumerate(reviewed.post_ids):
        machine, human = hard_target(names, reviewed.machine[i]), reviewed.human[i]
        correction = 0.0 if human is None else (hard_target(names, human) - machine) / reviewed.inclusion[i]
        finals[post_id] = (machine + correction).astype(np.float32)
    labels = dict(zip(reviewed.post_ids, reviewed.labels, strict=True))
    kept = [post for post in found.train if post.id not in labels]
    known = {post.id for post in found.validation}
    added = [replace(posts[i], label=label) for i, label in labels.items() if i in posts and i not in known]
    return found._replace(train=kept + added, finals=finals)


def _reviewed(run: Path, batch: str) -> BatchOutcome:
    """A batch of the run's ledger, once every post drawn has its answer."""
    from selftrain.review.estimates import outcome
    from selftrain.review.ledger_reader import LEDGER, LedgerReader

    ledger = LedgerReader(run / LEDGER)
    try:
        if batch not in ledger.batches():
            raise RecipeError(f"data.reviews is {batch!r}; expected one of {ledger.batches()}")
        drawn, waiting = ledger.drawn(batch), set(ledger.waiting())
        missing = sum(post_id in waiting for post_id in drawn)
        if missing:
            raise DataError(
                f"{missing} of {len(drawn)} posts drawn for review wait for an answer: a sample that is half"
                " reviewed is no longer the one that was drawn. Finish the review (`selftrain review serve`)"
            )
        return outcome(ledger, batch)
    finally:
        ledger.close()


def _posts_of(
    sources: Mapping[str, Any], task: Task, section: DataSection
) -> tuple[dict[str, Post], list[Json]]:
    """The posts of all manifests of a run but the test's, by id, and the rows set aside."""
    posts, quarantine = dict[str, Post](), list[Json]()
    section = section.model_copy(update={"columns": sources.get("columns", {})})
    for name in ("manifest", "validation", "pool"):
        if sources.get(name) is not None:
            read, left_out = read_posts(Path(sources[name]), task, section)
            posts |= {post.id: post for post in read}
            quarantine += left_out
    return posts, quarantine


def _with_process(found: Gathered, section: DataSection) -> Gathered:
    """Process answers of another manifest laid over those at hand."""
    assert section.process is not None
    read, left_out = read_posts(section.process, found.task, section)
    answers = {post.id: post.process for post in read}

    def filled(posts: list[Post]) -> list[Post]:
        return [replace(post, process={**post.process, **answers.get(post.id, {})}) for post in posts]

    return found._replace(
        train=filled(found.train),
        validation=filled(found.validation),
        quarantine=[*found.quarantine, *left_out],
    )

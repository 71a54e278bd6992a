"""From a recipe's data and backbone sections to a corpus: read, split, keep apart, extract features."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from backbones.base import Backbone
from selftrain._util.files import cache_home
from selftrain._util.toml_sections import checked
from selftrain._util.types import Json
from selftrain.config import BackboneSection, DataSection, Recipe
from selftrain.data.columns import SPLIT
from selftrain.data.corpus import Corpus, build_corpus, ordered_posts
from selftrain.data.duplicates import (
    Dropped,
    conflicting_labels,
    describe_copies,
    in_order,
    once_in_pool,
    separate,
)
from selftrain.data.features import EncoderPool, FeatureTable, extract_features
from selftrain.data.manifest import NOTE, ManifestReport, Tolerance, read_manifest
from selftrain.data.matching import Embeddings
from selftrain.data.near_copies import near_copies
from selftrain.data.post_store import Joined, PositionOf, PostStore
from selftrain.data.posts import Post
from selftrain.data.splits import Splits, parts_by_column, split_by_shares, split_given
from selftrain.data.task import Task, load_task
from selftrain.engine.mapping import StageRun
from selftrain.errors import DataError, SplitError
from selftrain.selection import quotas
from selftrain.store.run_dir import PostDigest, text_digest

_SPLITS = ("labelled", "validation", "pool", "test")


class PreparedData(NamedTuple):
    """What a run works on."""

    task: Task  # classes, policy, questions
    corpus: Corpus  # posts by position, with features
    # everything left out: bad rows, copies across splits, posts that could not be encoded
    quarantine: list[Json]
    identity: Json  # what must be the same when the run goes on
    posts: Iterator[PostDigest]  # says what differs where that is not so
    stages: tuple[StageRun, ...] = ()  # what was computed for it


def _post_digests(corpus: Corpus, features: FeatureTable) -> Iterator[PostDigest]:
    """Yield what each post of a corpus is to the run, computed as it is asked for."""
    keys = features.keys()
    for name in _SPLITS:
        positions = getattr(corpus, name)
        for post, key in zip(corpus.posts_at(positions), keys[positions], strict=True):
            yield PostDigest(post.id, name, text_digest(post.text, post.label), key.tobytes().hex()[:16])


class SplitPosts(NamedTuple):
    """Posts in their splits, as `split` gives them to a `SelfTrainer`."""

    task: Task  # classes, policy, questions
    # every label of train still in use; which of them to hide is drawn when features are known
    splits: Splits
    section: DataSection  # how they were split
    seed: int  # of the draws
    quarantine: list[Json]  # rows left out, and notes
    hints: tuple[str, ...] = ()  # what may have been read otherwise than it was meant, one line each


def split(
    report: ManifestReport,
    task: Task,
    *,
    labelled: int | None = None,
    validation: float = 0.3,
    test: float = 0.0,
    by: Literal["shares", "column"] | None = None,
    seed: int = 0,
) -> SplitPosts:
    """Split the posts of a manifest as a recipe's `data` section does.

    Args:
        report: Of `read_manifest`.
        task: Its classes.
        labelled: Labels to use, as many of each class; the other labelled posts join the pool, their labels
            hidden. None: all.
        validation, test: Shares of the labelled posts, in [0, 1).
        by: "column": as the manifest's field `split` says; "shares": anew, whatever it says. None: by shares,
            where no post names a split.
        seed: Of every draw.

    Raises:
        DataError: What is given is no report.
        RecipeError: An argument outside its range.
        QuarantineError: Too many bad rows.
        SplitError: Too few labels, or an empty pool.
    """
    if not isinstance(report, ManifestReport):
        raise DataError(f"report is a {type(report).__name__}: expected what `st.read_manifest` gives")
    section = {
        "manifest": report.path.resolve(), "task": Path(), "labelled": labelled,
        "train_share": 1 - validation - test, "validation_share": validation, "test_share": test,
        **({} if by is None else {"split": by}),
    }  # fmt: skip
    recipe = checked(Recipe, {"seed": seed, "data": section}, "split, as a recipe would have its arguments,")
    report.enforce(_tolerance(recipe.data))
    with _explained(report.hints):
        splits = _split({"manifest": report.posts}, task, recipe.data, recipe.seed)
    return SplitPosts(task, splits, recipe.data, recipe.seed, report.quarantine, report.hints)


def prepare(
    recipe: Recipe, backbone: Backbone, *, progress: bool = False, pool: EncoderPool | None = None
) -> PreparedData:
    """Read, split, separate and encode the posts of a recipe; `pool` encodes them, else this process.

    Raises:
        TaskError, ManifestError, QuarantineError, SplitError, CacheError, EngineError: With what to do.
    """
    task = load_task(recipe.data.task)
    if isinstance(recipe.selection.shares, Mapping):
        # the shares name the classes: say so before anything is computed
        quotas(recipe.selection.k, recipe.selection.shares, classes=task.numbered)
    reports = _read(recipe.data, task)
    hints = tuple(hint for report in reports.values() for hint in report.hints)
    with _explained(hints):
        posts = {name: report.posts for name, report in reports.items()}
        splits = _split(posts, task, recipe.data, recipe.seed)
    quarantine = [row for report in reports.values() for row in report.quarantine]
    drawn = SplitPosts(task, splits, recipe.data, recipe.seed, quarantine, hints)
    return prepare_split(recipe, drawn, backbone, progress=progress, pool=pool)


def prepare_split(
    recipe: Recipe,
    data: SplitPosts,
    backbone: Backbone,
    *,
    progress: bool = False,
    pool: EncoderPool | None = None,
) -> PreparedData:
    """Separate and encode posts that are split already.

    Raises:
        QuarantineError, SplitError, CacheError, EngineError: With what to do.
    """
    task, drawn, quarantine = data.task, data.splits, list(data.quarantine)
    conflicts = _conflicts(drawn)
    hints = [*data.hints, *(f"  {row['reason']}" for row in conflicts[:1])]
    # before hours of encoding
    with _explained(hints):
        _check_sizes(_draw_labels(drawn, task, recipe.data, recipe.seed), task, recipe)

    encoded = in_order(drawn)
    table = extract_features(
        encoded, backbone, cache_folder(recipe.backbone),
        batch_size=recipe.backbone.batch_size, workers=recipe.backbone.workers, progress=progress, pool=pool,
    )  # fmt: skip
    failed, stages = table.failed, (table.computed,) if table.computed else ()
    _enforce_failures(failed, len(encoded), recipe.data)
    place_of = PositionOf(encoded)

    def rows_of(posts: Sequence[Post]) -> FeatureTable:
        return table.at(place_of.all(posts))

    with _explained(hints):
        splits, dropped = _keep_apart(drawn.without(failed), recipe.data, rows_of)
    with _explained([*hints, *_taken_out(dropped)]):
        splits = _draw_labels(splits, task, recipe.data, recipe.seed)
    if recipe.data.pool_copies != "keep":
        splits, again = once_in_pool(splits, lambda posts, _: rows_of(posts).copies(), "content")
        dropped += again
    if recipe.data.pool_copies == "drop_near":
        near = partial(near_copies, workers=recipe.backbone.workers, progress=progress)
        splits, again = once_in_pool(splits, near, "near content")
        dropped += again
    with _explained([*hints, *_taken_out(dropped)]):
        _check_sizes(splits, task, recipe)  # again: failures and copies are gone
    features = rows_of(ordered_posts(splits))
    corpus = build_corpus(splits, task, features)
    quarantine += [{"kind": "image", "id": post_id, "reason": reason} for post_id, reason in failed.items()]
    quarantine += [{"kind": "copy", **_dropped_row(one)} for one in dropped] + conflicts
    identity = {
        "posts": _digest(corpus), "contents": hashlib.sha256(features.keys().data).hexdigest(),
        "backbone": backbone.fingerprint(), "task": task.name, "policy": task.fingerprint,
    }  # fmt: skip
    return PreparedData(task, corpus, quarantine, identity, _post_digests(corpus, features), stages)


def cache_folder(section: BackboneSection) -> Path:
    """Return where features are kept: the recipe's folder, else $SELFTRAIN_CACHE, else the user's cache."""
    return cache_home() / "features" if section.cache is None else section.cache


def _tolerance(section: DataSection) -> Tolerance:
    return Tolerance(section.max_bad_rows, section.max_bad_share)


@contextmanager
def _explained(hints: Sequence[str]) -> Iterator[None]:
    """Add to what splits lack what may be the cause: columns that were not read, copies taken out."""
    try:
        yield
    except SplitError as error:
        raise SplitError("\n".join([str(error), *hints])) from error


def _read(section: DataSection, task: Task) -> dict[str, ManifestReport]:
    """Read each manifest named; past the threshold it stops."""
    reports, store = {}, PostStore()
    for name in ("manifest", "validation", "test", "pool"):
        path = getattr(section, name)
        if path is not None:
            reports[name] = read_manifest(
                path, task, max_pixels=section.max_image_pixels, columns=section.columns, videos=False,
                store=store,
            )  # fmt: skip
            reports[name].enforce(_tolerance(section))
    return reports


def _conflicts(splits: Splits) -> list[Json]:
    """Return a note for each group of copies whose labels differ, the first of them with the count of all."""
    known = [post for name in ("labelled", "validation", "test") for post in splits[name]]
    groups = conflicting_labels(known)
    told = [", ".join(f"{post.id!r} {post.label!r}" for post in group[:6]) for group in groups]
    count = f" (the first of {len(groups):,} groups)" if len(groups) > 1 else ""
    return [
        {
            "kind": NOTE,
            "id": group[0].id,
            "reason": f"copies with different labels{'' if place else count}: {one}",
        }
        for place, (group, one) in enumerate(zip(groups, told, strict=True))
    ]


def _check_split_named(posts: Sequence[Post], section: DataSection) -> None:
    """Stop where rows say which split they belong to, and the recipe does not say whether that counts."""
    named = [post.extra[SPLIT] for post in posts if post.extra.get(SPLIT) not in (None, "")]
    if named and "split" not in section.model_fields_set:
        found = ", ".join(sorted({str(one) for one in named})[:6])
        raise SplitError(
            f"{len(named):,} of {len(posts):,} posts of {section.manifest} name a split ({found}), and the"
            " recipe does not set data.split: by shares, posts marked test would be trained on. Set"
            ' data.split = "column" to keep to the splits named, or data.split = "shares" to draw others'
        )


def _split(posts: Mapping[str, Sequence[Post]], task: Task, section: DataSection, seed: int) -> Splits:
    """Build the splits with every label of train still in use: which of them to hide is drawn last."""
    manifest = posts["manifest"]
    _check_split_named(manifest, section)
    more = {name: posts.get(name, ()) for name in _SPLITS}
    if section.split == "column":
        if section.balance:
            raise SplitError(
                "data.balance = true cuts classes down before they are split by shares, and data.split is"
                ' "column": leave out one of the two'
            )
        parts = parts_by_column(manifest)
        return split_given(task, *(Joined(parts[name], more[name]) for name in _SPLITS))
    shares = {
        "train": section.train_share,
        "validation": section.validation_share,
        "test": section.test_share,
    }
    if "validation" in posts:  # its share is learned from
        shares["train"] += shares.pop("validation")
    shares = {name: share for name, share in shares.items() if share > 0}
    splits = split_by_shares(manifest, task, shares, balance=section.balance, seed=seed)
    return split_given(task, *(Joined(splits[name], more[name]) for name in _SPLITS))


def _draw_labels(splits: Splits, task: Task, section: DataSection, seed: int) -> Splits:
    """Hide all labels of train but `section.labelled` of them."""
    drawn = split_given(
        task, splits.labelled, splits.validation, splits.pool, splits.test,
        labelled=section.labelled, balanced=section.balanced_labels, seed=seed,
    )  # fmt: skip
    # pool posts whose labels were hidden before have none left that could be noted here
    return replace(drawn, truth={**splits.truth, **drawn.truth})


def _check_sizes(splits: Splits, task: Task, recipe: Recipe) -> None:
    """Require enough labels to train and validate on, and a pool large enough for the first round.

    Later rounds may take what is left.
    """
    build_corpus(splits, task, None)
    k, available = recipe.selection.k, len(splits.pool)
    if recipe.selection.built_in and recipe.rounds.max and k > available:
        advice = f"set selection.k to {available:,} at most, or add" if available else "add"
        raise SplitError(
            f"{k:,} posts requested by selection.k, {available:,} available in the pool: {advice} unlabelled"
            " posts"
        )


def _keep_apart(
    splits: Splits, section: DataSection, rows_of: Callable[[Sequence[Post]], FeatureTable]
) -> tuple[Splits, list[Dropped]]:
    """Drop copies: no copy, near or exact, may stand in two splits."""
    if section.duplicates == "off":
        return splits, []
    table = rows_of(in_order(splits))
    embeddings = Embeddings(table.rows, table.layout.text, section.near_duplicate_cosine)
    return separate(splits, match=section.duplicates, embeddings=embeddings)


def _enforce_failures(failed: dict[str, str], total: int, section: DataSection) -> None:
    """Count posts whose images could not be decoded like bad rows."""
    lines = [f"  id {post_id!r}: {reason}" for post_id, reason in list(failed.items())[:20]]
    _tolerance(section).check(len(failed), total, lines, what="posts", fault="could not be encoded")


def _taken_out(dropped: Sequence[Dropped]) -> list[str]:
    return [describe_copies(dropped)] if dropped else []


def _dropped_row(one: Dropped) -> Json:
    return {
        "id": one.post_id,
        "reason": f"its {one.kind} matches {one.kept_id!r} in {one.kept_split}; it was in {one.split}",
    }


def _digest(corpus: Corpus) -> str:
    """Return the SHA-256 of who is in which split with which label: the rounds depend on it."""
    digest = hashlib.sha256()
    for name in _SPLITS:
        digest.update(f"\n{name}".encode())
        for post in corpus.posts_at(getattr(corpus, name)):
            digest.update(repr((post.id, post.text, post.label)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()

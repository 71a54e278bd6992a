"""A stream of posts through a model: those that pass a threshold go on, and a kill costs seconds of work.

The papers' platform in small: a model of a chosen precision in front of whoever looks at posts next.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from selftrain._util.types import Json
from selftrain.data.manifest import read_manifest
from selftrain.errors import ServingError
from selftrain.models.scorer import PostScore, ScoreFailure, Scorer, ValidationScores
from selftrain.serving.sink import Journal, Tally
from selftrain.serving.stream import SourceRow, read_source
from selftrain.serving.wire import record

FIELD = "selftrain"  # what is added to a post that passes; one of an earlier filter is replaced
COMMIT_SECONDS = 2.0  # the most work that a kill can cost, beside the chunk under way
_CHUNK = 64


class Measured(NamedTuple):
    """Scores of labelled posts, and how many of them have none."""

    scores: ValidationScores
    left_out: int


def validation_scores(scorer: Scorer, manifest: Path | None) -> Measured:
    """The posts to choose a threshold on: those of `manifest`, else the ones that the model stored.

    Raises:
        ServingError: None were stored, or no row of `manifest` has a label and a score.
        ManifestError: `manifest` cannot be read.
    """
    if manifest is None:
        stored = scorer.validation()
        if stored is None:
            raise ServingError(
                f"{scorer.name} has no scores of its validation posts: give labelled posts with --validation"
            )
        return Measured(stored, 0)
    report = read_manifest(manifest)
    posts = [post for post in report.posts if post.label is not None]
    unknown = sorted({str(post.label) for post in posts} - set(scorer.classes))
    if unknown:
        raise ServingError(
            f"{manifest} has the label {unknown[0]!r}; expected one of {sorted(scorer.classes)}: correct it"
        )
    scored = [
        (post.label == scorer.positive, result.probabilities[scorer.positive])
        for post, result in zip(posts, scorer.score(posts), strict=True)
        if isinstance(result, PostScore)
    ]
    if not scored:
        raise ServingError(f"{manifest} has no labelled post that can be scored: give some a label")
    labels, odds = zip(*scored, strict=True)
    scores = ValidationScores(np.array(labels, np.int8), np.array(odds, np.float64))
    return Measured(scores, len(report.problems) + len(posts) - len(scored))


def filter_posts(
    scorer: Scorer,
    source: str,
    sink: Path,
    *,
    threshold: float,
    text_limit: int,
    max_pixels: int,
    commit_seconds: float = COMMIT_SECONDS,
    progress: bool = False,
) -> Tally:
    """Append to `sink` every post of `source` whose positive probability is at least `threshold`.

    Started again with the same arguments it goes on after the last commit; rows added to the source since
    then are read too. The sink is never rewritten, so that others can follow it as it grows; a line counts
    once the progress file beside it says so.

    Args:
        scorer: The model.
        source: A manifest, or "-" for JSON lines on standard input, from their beginning.
        sink: JSON lines: the row as the source has it, with the score in `FIELD`. What failed goes to
            ``SINK.quarantine.jsonl`` with its reason.
        threshold: In [0, 1].
        text_limit, max_pixels: See `selftrain.serving.stream.read_source`.
        commit_seconds: At least so long between two commits.
        progress: Draw a bar over the rows.

    Returns:
        The totals, earlier starts included.

    Raises:
        RunMismatchError: The sink was begun with another model, threshold, text limit or source.
        RunBusyError, RunStateError, StorageError, ManifestError: See `Journal` and `read_source`.
    """
    from tqdm import tqdm

    identity = {"model": scorer.fingerprint, "threshold": threshold, "text_limit": text_limit}
    with Journal(sink, identity).opened() as journal:
        tally = journal.tally
        rows = read_source(
            source, skip=tally.rows, digest=tally.source, max_pixels=max_pixels, text_limit=text_limit
        )
        bar = tqdm(initial=tally.rows, disable=not progress, desc="posts", unit="")
        committed = time.monotonic()
        for part in _chunks(rows):
            kept, failed = _judge(scorer, part, threshold)
            journal.write(kept, failed)
            tally = Tally(
                tally.rows + len(part), tally.kept + len(kept), tally.failed + len(failed), part[-1].digest
            )
            if time.monotonic() - committed >= commit_seconds:
                journal.commit(tally)
                committed = time.monotonic()
            bar.update(len(part))
        journal.commit(tally)
        bar.close()
    return tally


def _chunks(rows: Iterable[SourceRow]) -> Iterator[list[SourceRow]]:
    iterator = iter(rows)
    while part := list(islice(iterator, _CHUNK)):
        yield part


def _judge(scorer: Scorer, rows: list[SourceRow], threshold: float) -> tuple[list[str], list[str]]:
    """Lines for the sink and for the quarantine, in the rows' order."""
    scores = iter(scorer.score([row.post for row in rows if row.post is not None]))
    kept: list[str] = []
    failed: list[str] = []
    for row in rows:
        score = ScoreFailure(row.reason) if row.post is None else next(scores)
        if isinstance(score, ScoreFailure):
            failed.append(_failure(row, score.reason))
        elif score.probabilities[scorer.positive] >= threshold:
            line = _line((row.fields or {}) | {FIELD: record(score) | {"threshold": threshold}})
            if line is None:
                failed.append(_failure(row, "a field holds a number that JSON has no word for"))
            else:
                kept.append(line)
    return kept, failed


def _failure(row: SourceRow, reason: str) -> str:
    kind = "row" if row.post is None else "image" if row.post.images else "post"
    line = _line({"kind": kind, "line": row.line, "id": row.post_id, "reason": reason})
    assert line is not None, "texts and numbers of lines can always be written"
    return line


def _line(value: Json) -> str | None:
    """JSON in one line; dates and the like, which Parquet may hold, as their text. None: NaN or infinity."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        return None

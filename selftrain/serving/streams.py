"""A trained model over rows: labels for a manifest (`selftrain predict`), a filter over a stream.

Rows are read as they are needed: memory grows by 16 bytes an id of a manifest, and a kill costs seconds of
work. The filter is the papers' platform in small: a model of a chosen precision in front of whoever looks at
posts next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from backbones.images import MAX_PIXELS
from selftrain._util.types import Json
from selftrain.config import stored_recipe
from selftrain.data.manifest import Tolerance, read_manifest
from selftrain.data.posts import MAX_ALBUM, MAX_IMAGES
from selftrain.data.values import Names
from selftrain.engine.mapping import Engine
from selftrain.errors import ServingError
from selftrain.models.predictor import RUN_FILE, Caching, Predictor, ValidationScores
from selftrain.serving import row_stream
from selftrain.serving.load_predictor import kind_of
from selftrain.serving.row_source import STDIN, SourceRow, Tally, parts, read_source
from selftrain.serving.row_stream import (
    COMMIT_SECONDS,
    FolderSink,
    Judge,
    JudgedRows,
    RowTarget,
    Sink,
    failed_line,
    json_line,
    predicted,
)
from selftrain.store.run_dir import RunFolder

FIELD = "selftrain"  # what is added to a post that passes a filter; one of an earlier filter is replaced
CHUNK = 512
"""Posts of a manifest at once; those of an AgentPS model are sorted by length within it."""
CACHED_CHUNK = 4096
"""Posts at once whose features are looked up in a cache: its index is read for each of these."""
_FILTERED = 64
ANY_NUMBER = Tolerance(None, None)
"""Of posts may fail."""

Encode = Callable[[Sequence[Json], bool], list[str]]
"""Records to lines, one each; the first of a file may bring a heading."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModelAtWork:
    """A model, where it works, and how rows are read for it."""

    predictor: Predictor
    # field -> column that holds it, where that is called otherwise
    columns: Mapping[str, str] = field(default_factory=dict)
    tolerance: Tolerance = ANY_NUMBER  # how many posts may fail, earlier starts included
    max_pixels: int = MAX_PIXELS  # the largest width x height that an image's header may claim
    progress: bool = False  # draw a bar over the rows
    engine: Engine | None = None  # where the model is at work; None: in this process
    load: Callable[[], Predictor] | None = None  # opens the same model where `engine` needs it once more

    @property
    def identity(self) -> dict[str, Any]:
        """Return what may not change between two starts that write one file: the model, and what it reads."""
        named = {"columns": dict(self.columns)} if self.columns else {}
        return {"model": self.predictor.fingerprint} | named

    def pour(
        self, source: str, target: RowTarget, judge: Judge[Predictor], *,
        chunk: int, advice: str, reading: Mapping[str, Any], **options: Any,  # noqa: ANN401
    ) -> Tally:  # fmt: skip
        """Take the rows of `source` that `target` has not got through the model, `chunk` at a time.

        `reading` holds further arguments of `read_source`; the others are those of `row_stream.pour`.
        """
        predictor = self.predictor
        # workers have folders of their own
        place = source if self.engine is None else str(Path(source).absolute())
        read = partial(
            read_source, place, target.tally, max_pixels=self.max_pixels, columns=self.columns,
            **_taken_by(predictor), **reading,
        )  # fmt: skip
        expected = predictor.fingerprint if self.load else None
        stage = partial(row_stream.judging, self.load or (lambda: predictor), judge, expected)
        return row_stream.pour(
            partial(parts, read, chunk), target, stage, tolerance=self.tolerance, where=source,
            advice=f"  {advice}", engine=self.engine, progress=self.progress, **options,
        )  # fmt: skip


def _taken_by(predictor: Predictor) -> dict[str, Any]:
    """Return what posts may hold, as arguments of those who read them: AgentPS samples albums and videos."""
    samples = predictor.kind == "agentps"
    return {"max_images": MAX_ALBUM if samples else MAX_IMAGES, "videos": samples}


# ---- a manifest labelled --------------------------------------------------------------------------------


def limits_of(model: Path) -> tuple[int, Tolerance]:
    """Return the pixels of a picture and the bad rows that a run's recipe allows; else what is usual."""
    if kind_of(model) != RUN_FILE:
        return MAX_PIXELS, Tolerance()
    section = stored_recipe(RunFolder(model)).data
    return section.max_image_pixels, Tolerance(section.max_bad_rows, section.max_bad_share)


def part_of(target: Path, identity: Json, rows: int | None = None) -> Sink:
    """Return where the lines of a file are until it is whole; for `identity` see `Sink`.

    With `rows` the target is a folder of files of so many lines.
    """
    part = target.with_name(f"{target.name}.part")
    remedy = f"give another --out, or remove {part}*"
    return (
        Sink(part, identity, remedy)
        if rows is None
        else FolderSink(target, rows, part, identity, f"{remedy} and {target}")
    )


def advice(listed: str, remedy: str) -> str:
    """Return what to do where too many posts failed; `listed` and `remedy` as of `stream_predictions`."""
    if not remedy:  # standard output
        return "nothing is kept: the same command with more tolerance begins anew"
    # a picture that was put right changes no row: what was said of it stays
    return (
        f"{listed}what is good is kept: the same command with more tolerance goes on; to have corrected posts"
        f" read anew, {remedy}"
    )


def stream_predictions(
    work: ModelAtWork,
    manifest: Path,
    target: RowTarget,
    encode: Encode,
    *,
    remedy: str = "",
    listed: str = "",
) -> Tally:
    """Append a record for every post of a manifest, in its order and in bounded memory.

    Features of a run's model are taken from its cache, and kept there, in this process. `remedy` says what to
    do about a target that was begun with another manifest, `listed` where what failed is listed.

    Raises:
        RunMismatchError: The target was begun with another manifest.
        QuarantineError, ManifestError, StorageError, EngineError: See `row_stream.pour`.
    """
    predictor, chunk = work.predictor, CHUNK
    if work.load is None and isinstance(predictor, Caching) and (cached := predictor.with_cache()):
        work, chunk = replace(work, predictor=cached), CACHED_CHUNK
    return work.pour(
        str(manifest), target, _to_record, chunk=chunk, encode=encode,
        reading={"remedy": remedy, "whole": True},
        advice=advice(listed, remedy),
        tell=lambda note: _LOG.warning("%s: %s", manifest, note),
    )  # fmt: skip


def _to_record(predictor: Predictor, rows: list[SourceRow]) -> JudgedRows:
    """Return records of the posts that have a prediction, and lines for the quarantine."""
    records, failed = list[Json](), list[str]()
    for row, found in predicted(predictor, rows):
        if found.reason:
            failed.append(failed_line(row, found.reason))
        else:
            record = {"id": found.id} | found.to_json()
            if not found.process and predictor.kind == "classifier":  # it is asked no questions
                del record["process"]
            records.append(record)
    return JudgedRows(records, failed)


# ---- a stream filtered ----------------------------------------------------------------------------------


def filter_posts(
    work: ModelAtWork, source: str, sink: Path, *, threshold: float, text_limit: int,
    tell: Callable[[str], None] = print, commit_seconds: float = COMMIT_SECONDS,
) -> Tally:  # fmt: skip
    """Append to `sink` every post of `source` whose positive probability is at least `threshold`.

    Started again with the same arguments it goes on after the last commit; rows added to the source since
    then are read too. The sink is never rewritten, so that others can follow it as it grows; a line counts
    once the progress file beside it says so. Returns the totals, earlier starts included.

    Args:
        source: A manifest, or "-" for JSON lines on standard input, from their beginning.
        sink: JSON lines: the row as the source has it, with the prediction in `FIELD`. What failed goes to
            ``SINK.quarantine.jsonl`` with its reason.
        threshold: In [0, 1].
        text_limit: Characters; a longer text makes a bad row.

    Raises:
        ServingError: Standard input, and another engine than this process.
        RunMismatchError: The sink was begun with another model, columns, threshold, text limit or source.
        QuarantineError: More posts failed than tolerated; what passed before is in the sink.
        RunBusyError, RunStateError, StorageError, ManifestError, EngineError: See `Sink` and `pour`.
    """
    if work.engine is not None and source == STDIN:
        raise ServingError("standard input is read by this process alone: give a file, or no --ray")
    identity = work.identity | {"threshold": threshold, "text_limit": text_limit}
    with Sink(sink, identity).opened() as opened:
        return work.pour(
            source, opened, partial(_passing, threshold=threshold), chunk=_FILTERED,
            reading={"text_limit": text_limit}, advice=f"they are listed in {opened.quarantine}",
            tell=tell, commit_seconds=commit_seconds,
        )  # fmt: skip


def _passing(predictor: Predictor, rows: list[SourceRow], *, threshold: float) -> JudgedRows:
    """Return lines for the sink and for the quarantine, in the rows' order."""
    kept, failed = list[str](), list[str]()
    for row, found in predicted(predictor, rows):
        reason = found.reason
        if not reason and found.probs[predictor.positive] >= threshold:
            fields = (row.fields or {}) | {FIELD: found.to_json() | {"threshold": threshold}}
            try:
                kept.append(json_line(fields))
            except ValueError:
                reason = "a field holds a number that JSON has no word for"
        if reason:
            failed.append(failed_line(row, reason))
    return JudgedRows(kept, failed)


def validation_scores(
    predictor: Predictor, manifest: Path | None, columns: Mapping[str, str] | None = None,
    *, text_limit: int | None = None, max_pixels: int = MAX_PIXELS,
) -> tuple[ValidationScores, int]:  # fmt: skip
    """Score the posts to choose a threshold on, those of `manifest` or the ones that the model stored.

    Of `manifest` those alone that the filter would take, see `filter_posts` and `ModelAtWork`. Returns the
    scores, and how many posts have none.

    Raises:
        ServingError: None were stored, or no row of `manifest` has a label and a score.
    """
    if manifest is None:
        stored = predictor.validation()
        if stored is None:
            raise ServingError(
                f"{predictor.name} has no scores of its validation posts: give labelled posts with"
                " --validation"
            )
        return stored, 0
    report = read_manifest(manifest, columns=columns, max_pixels=max_pixels, **_taken_by(predictor))
    names = Names(predictor.classes)
    posts = [
        replace(post, label=names.find(post.label) or post.label)
        for post in report.posts
        if post.label is not None
    ]
    unknown = sorted({str(post.label) for post in posts} - set(names))
    if unknown:
        raise ServingError(
            f"{manifest} has the label {unknown[0]!r}; expected one of {sorted(predictor.classes)}: correct"
            " it"
        )
    scored = [
        (post.label == predictor.positive, result.probs[predictor.positive])
        for post, result in zip(posts, predictor.predict(posts), strict=True)
        if not (result.reason or (text_limit is not None and len(post.text) > text_limit))
    ]
    if not scored:
        hints = "".join(f"\n{hint}" for hint in report.hints)
        raise ServingError(f"{manifest} has no labelled post that can be scored: give some a label{hints}")
    labels, probs = zip(*scored, strict=True)
    scores = ValidationScores(np.array(labels, np.int16), np.array(probs, np.float64))
    return scores, report.set_aside + len(posts) - len(scored)

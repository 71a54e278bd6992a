"""A stream of posts through a model: those that pass a threshold go on, and a kill costs seconds of work.

The papers' platform in small: a model of a chosen precision in front of whoever looks at posts next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from selftrain.data.manifest import Tolerance
from selftrain.data.posts import MAX_ALBUM, MAX_IMAGES
from selftrain.engine.mapping import Engine
from selftrain.errors import ServingError
from selftrain.models.predictor import Predictor
from selftrain.serving.row_source import STDIN, SourceRow, Tally, parts, read_source
from selftrain.serving.row_stream import (
    COMMIT_SECONDS,
    JudgedRows,
    Sink,
    failed_line,
    json_line,
    judging,
    pour,
    predicted,
)

FIELD = "selftrain"  # what is added to a post that passes; one of an earlier filter is replaced
_CHUNK = 64


def filter_posts(
    predictor: Predictor,
    source: str,
    sink: Path,
    *,
    threshold: float,
    text_limit: int,
    max_pixels: int,
    columns: Mapping[str, str] | None = None,
    tolerance: Tolerance | None = None,
    tell: Callable[[str], None] = print,
    commit_seconds: float = COMMIT_SECONDS,
    progress: bool = False,
    engine: Engine | None = None,
    load: Callable[[], Predictor] | None = None,
) -> Tally:
    """Append to `sink` every post of `source` whose positive probability is at least `threshold`.

    Started again with the same arguments it goes on after the last commit; rows added to the source since
    then are read too. The sink is never rewritten, so that others can follow it as it grows; a line counts
    once the progress file beside it says so.

    Args:
        predictor: The model.
        source: A manifest, or "-" for JSON lines on standard input, from their beginning.
        sink: JSON lines: the row as the source has it, with the prediction in `FIELD`. What failed goes to
            ``SINK.quarantine.jsonl`` with its reason.
        threshold: In [0, 1].
        text_limit: Characters; a longer text makes a bad row.
        max_pixels: The largest width x height that an image's header may claim.
        columns: Field -> column that holds it, where that is called otherwise.
        tolerance: How many posts may fail, earlier starts included; by default any number.
        tell: Called with what may have been read otherwise than it was meant.
        commit_seconds: At least so long between two commits.
        progress: Draw a bar over the rows.
        engine: Where the model is at work; None: in this process.
        load: Opens the same model where `engine` needs it once more.

    Returns:
        The totals, earlier starts included.

    Raises:
        ServingError: Standard input, and another engine than this process.
        RunMismatchError: The sink was begun with another model, threshold, text limit or source.
        QuarantineError: More posts failed than tolerated; what passed before is in the sink.
        RunBusyError, RunStateError, StorageError, ManifestError, EngineError: See `Sink`, `read_source` and
            `Engine.map`.
    """
    agentps, place = predictor.kind == "agentps", source
    if engine is not None:  # workers have folders of their own
        if source == STDIN:
            raise ServingError("standard input is read by this process alone: give a file, or no --ray")
        place = str(Path(source).absolute())
    identity = {"model": predictor.fingerprint, "threshold": threshold, "text_limit": text_limit}
    with Sink(sink, identity).opened() as opened:
        read = partial(
            read_source, place, opened.tally, max_pixels=max_pixels, text_limit=text_limit, columns=columns,
            max_images=MAX_ALBUM if agentps else MAX_IMAGES, videos=agentps,
        )  # fmt: skip
        return pour(
            partial(parts, read, _CHUNK), opened,
            partial(
                judging, load or (lambda: predictor), partial(_judge, threshold=threshold),
                predictor.fingerprint if load else None,
            ),
            tolerance=tolerance or Tolerance(None, None), where=source,
            advice=f"  they are listed in {opened.quarantine}", engine=engine, tell=tell,
            commit_seconds=commit_seconds, progress=progress,
        )  # fmt: skip


def _judge(predictor: Predictor, rows: list[SourceRow], *, threshold: float) -> JudgedRows:
    """Return lines for the sink and for the quarantine, in the rows' order."""
    kept: list[str] = []
    failed: list[str] = []
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

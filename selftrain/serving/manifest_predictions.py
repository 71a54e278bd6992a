"""Labels for the posts of a manifest, by whatever was trained here: `selftrain predict`.

The manifest is a stream: memory grows by 16 bytes an id, and a kill costs seconds of work.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from backbones.images import MAX_PIXELS
from selftrain._util.types import Json
from selftrain.data.manifest import Tolerance
from selftrain.data.posts import MAX_ALBUM, MAX_IMAGES
from selftrain.engine.mapping import Engine
from selftrain.models.predictor import RUN_FILE, Predictor
from selftrain.models.run_predictor import RunPredictor, stored_recipe
from selftrain.serving.load_predictor import kind_of
from selftrain.serving.row_source import SourceRow, Tally, parts, read_source
from selftrain.serving.row_stream import (
    JudgedRows,
    RowTarget,
    Sink,
    failed_line,
    judging,
    pour,
    predicted,
)
from selftrain.store.run_dir import RunFolder

CHUNK = 512
"""Posts at once; those of an AgentPS model are sorted by length within it."""
CACHED_CHUNK = 4096
"""Posts at once whose features are looked up in a cache: its index is read for each of these."""
Encode = Callable[[Sequence[Json], bool], list[str]]
"""Records to lines, one each; the first of a file may bring a heading."""
_LOG = logging.getLogger(__name__)


def limits_of(model: Path) -> tuple[int, Tolerance]:
    """Return the pixels of a picture and the bad rows that a run's recipe allows; else what is usual."""
    if kind_of(model) != RUN_FILE:
        return MAX_PIXELS, Tolerance()
    section = stored_recipe(RunFolder(model)).data
    return section.max_image_pixels, Tolerance(section.max_bad_rows, section.max_bad_share)


def part_of(target: Path, model: str) -> Sink:
    """Return where the lines of a file are until it is whole; `model` is a fingerprint."""
    part = target.with_name(f"{target.name}.part")
    return Sink(part, {"model": model}, f"give another --out, or remove {part}*")


def stream_predictions(
    predictor: Predictor,
    manifest: Path,
    target: RowTarget,
    encode: Encode,
    *,
    tolerance: Tolerance,
    max_pixels: int | None = None,
    columns: Mapping[str, str] | None = None,
    remedy: str = "",
    listed: str = "",
    progress: bool = False,
    engine: Engine | None = None,
    load: Callable[[], Predictor] | None = None,
) -> Tally:
    """Append a record for every post of a manifest, in its order and in bounded memory.

    Args:
        predictor: The model. Features of a run's are taken from its cache, and kept there, in this process.
        manifest: The posts; labels are not read.
        target: Opened; it goes on behind the rows that are done.
        encode: From records to lines.
        tolerance: How many posts may fail, earlier starts included.
        max_pixels: The largest width x height that an image's header may claim; None: as usual.
        columns: Field -> column that holds it, where that is called otherwise.
        remedy: What to do about a target that was begun with another manifest.
        listed: Where what failed is listed.
        progress: Draw a bar over the rows.
        engine: Where the model is at work; None: in this process.
        load: Opens the same model where `engine` needs it once more.

    Raises:
        RunMismatchError: The target was begun with another manifest.
        QuarantineError, ManifestError, StorageError, EngineError: See `pour`.
    """
    agentps = predictor.kind == "agentps"
    cached = load is None and isinstance(predictor, RunPredictor) and predictor.network is None
    fingerprint = predictor.fingerprint if load else None
    if cached and isinstance(predictor, RunPredictor):
        predictor = replace(predictor, cached=True)
    read = partial(
        read_source, str(manifest.absolute() if engine else manifest), target.tally, columns=columns,
        max_pixels=max_pixels or MAX_PIXELS, max_images=MAX_ALBUM if agentps else MAX_IMAGES, videos=agentps,
        remedy=remedy, whole=True,
    )  # fmt: skip
    advice = f"  {listed}what is good is kept: the same command with more tolerance goes on"
    return pour(
        partial(parts, read, CACHED_CHUNK if cached else CHUNK), target,
        partial(judging, load or (lambda: predictor), _judge, fingerprint),
        tolerance=tolerance, where=str(manifest), advice=advice, encode=encode, engine=engine,
        tell=lambda note: _LOG.warning("%s: %s", manifest, note), progress=progress,
    )  # fmt: skip


def _judge(predictor: Predictor, rows: list[SourceRow]) -> JudgedRows:
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

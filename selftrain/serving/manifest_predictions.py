"""Labels for the posts of a manifest, by whatever was trained here: `selftrain predict`.

A classifier takes the whole manifest, so that features are cached and ids compared; an AgentPS model, of
which a post may cost a second, takes it as a stream, and a kill costs seconds of work.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from backbones.images import MAX_PIXELS
from selftrain._util.types import Json
from selftrain.data.manifest import Tolerance, read_manifest
from selftrain.data.posts import MAX_ALBUM
from selftrain.models.predictor import RUN_FILE, Prediction, Predictor
from selftrain.models.run_predictor import RunPredictor, stored_recipe
from selftrain.serving.load_predictor import kind_of, load_predictor
from selftrain.serving.row_stream import (
    RowTarget,
    Sink,
    SourceRow,
    Tally,
    failed_line,
    pour,
    predicted,
    read_source,
)
from selftrain.store.run_dir import RunFolder

CHUNK = 512
"""Posts at once; those of an AgentPS model are sorted by length within it."""
Encode = Callable[[Sequence[Json], bool], list[str]]
"""Records to lines, one each; the first of a file may bring a heading."""
_LISTED = 20
_LOG = logging.getLogger(__name__)


class ManifestPredictions:
    """Predictions for the posts of a manifest; its labels are not read.

    Args:
        path: As for `load_predictor`. Of a run, features come from its cache and are kept there.
        manifest: The posts.
        progress: Draw a bar.
        columns: Field -> column that holds it, where that is called otherwise.
        max_bad_rows, max_bad_share: How many rows may be set aside; None: as the run's recipe says.

    Raises:
        ManifestError, QuarantineError: The manifest cannot be read, or too many of its rows are bad.
        SelftrainError, BackboneError: As `load_predictor`.

    Attributes:
        quarantine: What was left out, each with its reason; complete once `rows` is exhausted.
    """

    def __init__(
        self,
        path: Path,
        manifest: Path,
        *,
        progress: bool = False,
        columns: Mapping[str, str] | None = None,
        max_bad_rows: int | None = None,
        max_bad_share: float | None = None,
    ) -> None:
        kind, self._progress = kind_of(path), progress
        # what is quickly refused comes before the weights
        pixels, limits = MAX_PIXELS, Tolerance()
        if kind == RUN_FILE:
            section = stored_recipe(RunFolder(path)).data
            pixels, limits = section.max_image_pixels, Tolerance(section.max_bad_rows, section.max_bad_share)
        self._limits = limits.changed(max_bad_rows, max_bad_share)
        report = read_manifest(manifest, max_pixels=pixels, columns=columns, labels=False, videos=False)
        report.enforce(self._limits)
        self._unread = report.set_aside
        self._posts, self._total = report.posts, report.rows
        self.quarantine: list[Json] = [
            {"kind": "row", "line": p.line, "id": p.post_id, "reason": p.reason} for p in report.problems
        ]
        self._predictor = load_predictor(path)

    def rows(self) -> Iterator[Json]:
        """Yield one record a post, in the manifest's order.

        Raises:
            QuarantineError: More posts cannot be read than the run's recipe tolerates.
        """
        for one in self._predictions():
            if one.reason:
                self.quarantine.append({"kind": "image", "id": one.id, "reason": one.reason})
                self._unread += 1
                lines = [f"  id {one['id']!r}: {one['reason']}" for one in self.quarantine[:_LISTED]]
                self._limits.check(self._unread, self._total, lines, what="posts")  # rows count together
            else:
                yield {k: v for k, v in ({"id": one.id} | one.to_json()).items() if k != "process"}

    def _predictions(self) -> Iterator[Prediction]:
        one = self._predictor
        if isinstance(one, RunPredictor) and one.network is None:
            yield from replace(one, cached=True, progress=self._progress).predict(self._posts)
            return
        with tqdm(total=len(self._posts), disable=not self._progress, desc="posts") as bar:
            for start in range(0, len(self._posts), CHUNK):
                part = self._posts[start : start + CHUNK]
                yield from one.predict(part)
                bar.update(len(part))


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
    columns: Mapping[str, str] | None = None,
    remedy: str = "",
    listed: str = "",
    progress: bool = False,
) -> Tally:
    """Append a record for every post of a manifest, in its order and in bounded memory.

    Args:
        predictor: The model.
        manifest: The posts; labels are not read, ids not compared.
        target: Opened; it goes on behind the rows that are done.
        encode: From records to lines.
        tolerance: How many posts may fail, earlier starts included.
        columns: Field -> column that holds it, where that is called otherwise.
        remedy: What to do about a target that was begun with another manifest.
        listed: Where what failed is listed.
        progress: Draw a bar over the rows.

    Raises:
        RunMismatchError: The target was begun with another manifest.
        QuarantineError, ManifestError, StorageError: See `pour`.
    """
    rows = read_source(
        str(manifest), target.tally, max_pixels=MAX_PIXELS, columns=columns, max_images=MAX_ALBUM,
        videos=True, remedy=remedy, tell=lambda note: _LOG.warning("%s: %s", manifest, note),
    )  # fmt: skip
    written = target.tally.kept

    def judge(part: list[SourceRow]) -> tuple[list[str], list[str]]:
        nonlocal written
        records, failed = list[Json](), list[str]()
        for row, found in predicted(predictor, part):
            if found.reason:
                failed.append(failed_line(row, found.reason))
            else:
                records.append({"id": found.id} | found.to_json())
        lines = encode(records, not written)
        written += len(records)
        return lines, failed

    advice = f"  {listed}what is good is kept: the same command with more tolerance goes on"
    return pour(
        rows, target, judge,
        tolerance=tolerance, where=str(manifest), advice=advice, chunk=CHUNK, progress=progress,
    )  # fmt: skip

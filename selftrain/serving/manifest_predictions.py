"""Labels for the posts of a manifest, by whatever was trained here: `selftrain predict`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from backbones.images import MAX_PIXELS
from selftrain._util.types import Json
from selftrain.data.manifest import Tolerance, read_manifest
from selftrain.data.posts import MAX_ALBUM, MAX_IMAGES
from selftrain.models.predictor import AGENTPS_FILE, RUN_FILE, Prediction
from selftrain.models.run_predictor import RunPredictor, stored_recipe
from selftrain.serving.load_predictor import kind_of, load_predictor
from selftrain.store.run_dir import RunFolder

_CHUNK = 512  # posts between two steps of the bar
_LISTED = 20


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
        most_images = MAX_ALBUM if kind == AGENTPS_FILE else MAX_IMAGES
        report = read_manifest(
            manifest, max_pixels=pixels, max_images=most_images, columns=columns, labels=False,
            videos=kind == AGENTPS_FILE,
        )  # fmt: skip
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
                record = {"id": one.id} | one.to_json()
                yield record if one.process else {k: v for k, v in record.items() if k != "process"}

    def _predictions(self) -> Iterator[Prediction]:
        one = self._predictor
        if isinstance(one, RunPredictor) and one.network is None:
            yield from replace(one, cached=True, progress=self._progress).predict(self._posts)
            return
        with tqdm(total=len(self._posts), disable=not self._progress, desc="posts") as bar:
            for start in range(0, len(self._posts), _CHUNK):
                part = self._posts[start : start + _CHUNK]
                yield from one.predict(part)
                bar.update(len(part))

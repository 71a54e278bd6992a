"""Manifests in, checked posts out: a bad row is set aside with its reason and never stops the reading.

A manifest is JSON lines (``.jsonl``, ``.json``, ``.ndjson``), CSV (``.csv``) or Parquet (``.parquet``).
Its columns: ``id`` (unique), ``text``, ``images`` (paths relative to the manifest's folder), ``label`` (a
class name, or nothing) and ``process`` (question -> answer); ``process.NAME`` columns do as well. Anything
else is kept in `Post.extra`. In CSV, where everything is text, ``images`` is a list separated by ``;`` or a
JSON list, ``process`` is a JSON object, and an empty cell is an absent value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from selftrain.data.manifest_files import read_rows
from selftrain.data.manifest_rows import RowError, Rows
from selftrain.data.posts import MAX_IMAGES, Post
from selftrain.data.task import Task
from selftrain.errors import QuarantineError

MAX_PIXELS = 50_000_000  # as in backbones.images, which is not imported for a number
LISTED = 10


class Problem(NamedTuple):
    """One row set aside: where it stands, why, and what would mend it.

    Attributes:
        line: 1-based line in the file (Parquet: row); 0 for the file as a whole.
        post_id: The row's id as far as it could be read, else None.
        reason: What was found and what was expected.
        remedy: What to do.
    """

    line: int
    post_id: str | None
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class ManifestReport:
    """The posts of a manifest in its order, and the rows set aside; a row is in exactly one of them."""

    path: Path
    posts: tuple[Post, ...]
    problems: tuple[Problem, ...]

    @property
    def rows(self) -> int:
        """Rows met, good and bad."""
        return len(self.posts) + sum(problem.line > 0 for problem in self.problems)

    @property
    def counts(self) -> dict[str | None, int]:
        """Label -> posts, the unlabelled under None."""
        return dict(Counter(post.label for post in self.posts))


def read_manifest(
    path: Path,
    task: Task | None = None,
    *,
    allow_missing_text: bool = True,
    max_pixels: int = MAX_PIXELS,
    max_images: int = MAX_IMAGES,
) -> ManifestReport:
    """Reads and checks a manifest.

    Args:
        path: The manifest; its suffix says its format.
        task: When given, labels and process answers must be the task's.
        allow_missing_text: Whether a post with an image may lack text; one that has neither is refused.
        max_pixels: The largest width x height that an image's header may claim.
        max_images: The most images of a post.

    Raises:
        ManifestError: The file is missing, has an unknown suffix, or no column called ``id``.
    """
    path = Path(path)
    rows = Rows(
        path.parent, task,
        allow_missing_text=allow_missing_text, max_pixels=max_pixels, max_images=max_images,
    )  # fmt: skip
    posts: list[Post] = []
    problems: list[Problem] = []
    for raw in read_rows(path):
        try:
            posts.append(rows.post(raw))
        except RowError as error:
            problems.append(Problem(raw.line, error.post_id, error.reason, error.remedy))
    if not posts and not problems:
        problems.append(Problem(0, None, "the file holds no rows", "write at least one post into it"))
    return ManifestReport(path, tuple(posts), tuple(problems))


def enforce(report: ManifestReport, max_count: int | None = 0, max_share: float | None = None) -> None:
    """Stops when more rows were set aside than tolerated.

    Args:
        report: What `read_manifest` gave.
        max_count: The most rows set aside, >= 0; None for any number.
        max_share: The largest share of all rows, in [0, 1]; None for any. Both must be kept.

    Raises:
        QuarantineError: With the count, the share and the first rows set aside.
    """
    bad = len(report.problems)
    share = bad / max(report.rows, 1)
    over_count = max_count is not None and bad > max_count
    over_share = max_share is not None and share > max_share
    if not (over_count or over_share):
        return
    limits = [] if max_count is None else [f"{max_count} rows"]
    limits += [] if max_share is None else [f"{max_share:.2%}"]
    raise QuarantineError(
        f"{report.path}: {bad} of {report.rows} rows ({share:.2%}) are set aside, at most "
        f"{' and '.join(limits)} "
        f"tolerated:\n"
        + "\n".join(describe(report.problems))
        + "\nCorrect these rows, or raise the tolerance."
    )


def describe(problems: tuple[Problem, ...], most: int = LISTED) -> Iterator[str]:
    """One line a problem, the first `most` of them, then how many more there are."""
    for problem in problems[:most]:
        yield f"  line {problem.line}, id {problem.post_id!r}: {problem.reason}; {problem.remedy}"
    if len(problems) > most:
        yield f"  and {len(problems) - most} more"

"""Manifests in, checked posts out: a bad row is set aside with its reason and never stops the reading.

A manifest is JSON lines (``.jsonl``, ``.json``, ``.ndjson``), CSV (``.csv``) or Parquet (``.parquet``).
Its columns: ``id`` (unique), ``text``, ``images`` (paths relative to the manifest's folder), ``label`` (a
class name, or nothing) and ``process`` (question -> answer); ``process.NAME`` columns do as well. Anything
else is kept in `Post.extra`. In CSV, where everything is text, ``images`` is a list separated by ``;`` or a
JSON list, ``process`` is a JSON object, and an empty cell is an absent value.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from backbones.errors import ImageError
from backbones.images import MAX_PIXELS, check_image
from selftrain.data.posts import MAX_IMAGES, Post
from selftrain.data.task import Question, Task
from selftrain.errors import ManifestError, QuarantineError

JSON_LINES = (".jsonl", ".json", ".ndjson")
# marks Parquet columns whose values are JSON texts, because no one Arrow type holds them
JSON_MARK = {b"selftrain": b"json"}


class RawRow(NamedTuple):
    """A row as it stands in the file.

    Attributes:
        line: 1-based line on which it begins; in Parquet the 1-based row.
        fields: Column -> value; None when the row could not be read.
        reason: Why it could not, else empty.
        remedy: What to do then.
    """

    line: int
    fields: dict[str, Any] | None
    reason: str = ""
    remedy: str = ""


# ---- the three formats: no row is judged here, unless it could not be read at all ------------------------


def read_rows(path: Path) -> Iterator[RawRow]:
    """Read the rows of a manifest, one after the other; only Parquet needs more memory than a row, a batch.

    Raises:
        ManifestError: The file is missing, has an unknown suffix, or has no ``id`` column.
    """
    readers = {**dict.fromkeys(JSON_LINES, _json_rows), ".csv": _csv_rows, ".parquet": _parquet_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ManifestError(
            f"{path} ends in {path.suffix!r}; expected one of {sorted(readers)}: rename or convert it"
        )
    try:
        yield from reader(path)
    except OSError as error:
        raise ManifestError(
            f"{path} cannot be read: {error.strerror or error}; give the path of a manifest"
        ) from error


def _json_rows(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as file:
        yield from read_json_lines(file)


def read_json_lines(lines: Iterable[bytes]) -> Iterator[RawRow]:
    """Read the rows of JSON lines that come from anywhere, standard input for instance."""
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    for number, line in enumerate(lines, 1):
        content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not content.strip():
            continue
        yield _json_row(number, content, decoder)


def _json_row(number: int, content: bytes, decoder: json.JSONDecoder) -> RawRow:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        return RawRow(
            number,
            None,
            f"not UTF-8: byte {content[error.start]:#04x} at {error.start}",
            "save the file as UTF-8",
        )
    try:
        fields = decoder.decode(text.strip())
    except (ValueError, RecursionError) as error:
        return RawRow(number, None, f"not JSON: {error}", "write one JSON object a line")
    if not isinstance(fields, dict):
        return RawRow(
            number, None, f"a JSON {type(fields).__name__}, expected an object", "write one object a line"
        )
    # an escaped half of a surrogate pair is legal JSON, but no text that could ever be written out again
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(fields, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return RawRow(
                number, None, "half a surrogate pair (\\ud800-\\udfff)", "remove or complete the character"
            )
    return RawRow(number, fields)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _csv_rows(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as file:
        # undecodable bytes become lone surrogates here and are found again in the row that holds them
        reader = csv.reader((line.decode("utf-8", "surrogateescape") for line in file), strict=True)
        try:
            header = [name.removeprefix("\ufeff").strip() for name in next(reader, [])]
        except csv.Error as error:
            raise ManifestError(
                f"{path} has no readable header: {error}; expected a line of column names"
            ) from error
        _require_columns(path, header)
        while True:
            start = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                reason = f"not CSV, lines {start} to {reader.line_num}: {error}"
                yield RawRow(start, None, reason, "close every quote, and double those inside a cell")
                continue
            if cells:
                yield _csv_row(start, header, cells)


def _csv_row(line: int, header: list[str], cells: list[str]) -> RawRow:
    if len(cells) != len(header):
        reason = f"{len(cells)} cells, the header has {len(header)}"
        return RawRow(line, None, reason, "quote cells that hold a comma or a line break")
    if any("\udc80" <= mark <= "\udcff" for cell in cells if not cell.isascii() for mark in cell):
        return RawRow(line, None, "not UTF-8", "save the file as UTF-8")
    return RawRow(line, {name: cell for name, cell in zip(header, cells, strict=True) if cell})


def _parquet_rows(path: Path) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ManifestError(f"{path} is not a Parquet file: {error}; convert it or give another") from error
    with file:
        schema = file.schema_arrow
        _require_columns(path, schema.names)
        encoded = {field.name for field in schema if (field.metadata or {}).get(b"selftrain") == b"json"}
        number = 0
        try:
            for batch in file.iter_batches(batch_size=8192):
                for fields in batch.to_pylist():
                    number += 1
                    yield RawRow(number, _parquet_fields(fields, encoded))
        except pa.ArrowException as error:
            raise ManifestError(f"{path} is damaged after row {number}: {error}; write it again") from error


def _parquet_fields(fields: Mapping[str, Any], encoded: set[str]) -> dict[str, Any]:
    """Drop nulls and NaNs, which are absent values as pandas writes them; maps come as lists of pairs."""
    present = {name: value for name, value in fields.items() if value is not None and value == value}  # noqa: PLR0124
    for name in encoded & present.keys():
        present[name] = json.loads(present[name])
    process = present.get("process")
    if isinstance(process, list) and all(isinstance(pair, tuple) for pair in process):
        present["process"] = dict(process)
    elif isinstance(process, dict):
        present["process"] = {name: answer for name, answer in process.items() if answer is not None}
    return present


def _require_columns(path: Path, header: Iterable[str]) -> None:
    names = list(header)
    if any(not name.isprintable() for name in names):
        raise ManifestError(
            f"{path} has the columns {names[:12]}; expected readable names in UTF-8: correct the header"
        )
    if "id" not in names:
        raise ManifestError(
            f"{path} has the columns {names[:12]}; expected a header with 'id', "
            "and 'text' or 'images': add it"
        )
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise ManifestError(
            f"{path} has the columns {double} more than once; expected each once: rename them"
        )


COLUMNS = ("id", "text", "images", "label", "process", "video")
PROCESS_PREFIX = "process."
_URL = re.compile(r"^([a-z][a-z0-9+.-]+:)?//|^data:", re.IGNORECASE)


# ---- one raw row to one checked post --------------------------------------------------------------------


class RowError(Exception):
    """Why a row cannot become a post, and what would mend it. Never leaves `read_manifest`."""

    def __init__(self, reason: str, remedy: str, post_id: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
        self.post_id = post_id


class Rows:
    """Checks rows one by one.

    By hand, not by a pydantic model: nearly every check is about more than a type (the task, the files, the
    rows before), and each says what would mend the row.

    With `remember` it refuses an id that it has met and opens each image once, at the price of memory for
    every row; a stream that has no end is read without.
    """

    def __init__(
        self,
        folder: Path,
        task: Task | None,
        *,
        allow_missing_text: bool,
        max_pixels: int,
        max_images: int = MAX_IMAGES,
        remember: bool = True,
    ) -> None:
        self._folder = folder
        self._root = folder.resolve()
        self._labels = None if task is None else frozenset(task.names)
        self._questions = None if task is None else {question.name: question for question in task.questions}
        self._allow_missing_text = allow_missing_text
        self._max_pixels = max_pixels
        self._max_images = max_images
        self._remember = remember
        self._lines: dict[str, int] = {}
        self._checked: dict[str, Path | RowError] = {}

    def post(self, raw: RawRow) -> Post:
        """Return the row's post.

        Raises:
            RowError: The row has to be set aside.
        """
        if raw.fields is None:
            raise RowError(raw.reason, raw.remedy)
        post_id = self._id(raw.fields.get("id"), raw.line)
        try:
            return self._post(post_id, raw.fields)
        except RowError as error:
            raise RowError(error.reason, error.remedy, post_id) from error

    def _post(self, post_id: str, fields: Mapping[str, Any]) -> Post:
        text = _text(fields.get("text"), "text")
        images = tuple(map(self._image, _image_list(fields.get("images"), self._max_images)))
        video = self._video(fields.get("video"))
        if images and video is not None:
            raise RowError("images and a video", "keep one of the two")
        if not text.strip() and not images and video is None:
            raise RowError("neither text nor image", "give the post a text, an image, or both")
        if not text.strip() and not self._allow_missing_text:
            raise RowError("no text", "give the post a text, or allow posts of images alone")
        return Post(
            id=post_id,
            text=text,
            images=images,
            label=self._label(fields.get("label")),
            process=self._process(fields, len(images)),
            extra={
                name: value
                for name, value in fields.items()
                if name not in COLUMNS and not name.startswith(PROCESS_PREFIX)
            },
            video=video,
        )

    def _id(self, value: object, line: int) -> str:
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)  # many published sets number their posts
        if value is None or value == "":
            raise RowError("no id", "give every row an id of its own")
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise RowError(
                f"id {_short(value)} is not a usable text", "give the row an id that is a plain text"
            )
        first = self._lines.setdefault(value, line) if self._remember else line
        if first != line:
            raise RowError(f"id stands already in line {first}", "remove one of the two or rename it", value)
        return value

    def _label(self, value: object) -> str | None:
        if value is None or value == "":
            return None
        if self._labels is None:
            return _text(value, "label")
        if not isinstance(value, str) or value not in self._labels:
            raise RowError(
                f"label {_short(value)} is none of {sorted(self._labels)}", "write a class name of the task"
            )
        return value

    def _process(self, fields: Mapping[str, Any], images: int) -> dict[str, str]:
        answers = _process_table(fields.get("process"))
        for name, value in fields.items():
            if name.startswith(PROCESS_PREFIX):
                answers[name.removeprefix(PROCESS_PREFIX)] = value
        return {
            name: self._answer(name, value, images)
            for name, value in answers.items()
            if value is not None and value != ""
        }

    def _answer(self, name: str, value: object, images: int) -> str:
        if self._questions is None:
            return _text(value, f"process answer {name!r}")
        question = self._questions.get(name)
        if question is None:
            known = sorted(self._questions)
            raise RowError(
                f"process question {name!r} is none of {known}", "add it to the task or remove the answer"
            )
        if isinstance(value, str) and value in question.answers:
            return value
        if question.counting is not None and (count := _count(value)) is not None:
            return _counted(question, count, images)
        expected = list(question.answers)
        raise RowError(
            f"answer {_short(value)} to {name!r} is none of {expected}", "write one of the task's answers"
        )

    def _image(self, written: str) -> Path:
        found = self._checked.get(written)
        if found is None:
            try:
                found = self._locate(written)
            except RowError as error:
                found = error
            if self._remember:
                self._checked[written] = found
        if isinstance(found, RowError):
            raise RowError(found.reason, found.remedy)
        return found

    def _locate(self, written: str) -> Path:
        """Return the real path of an image that lies inside the manifest's folder and has a sound header."""
        path = self._inside(written, "image")
        try:
            check_image(path, max_pixels=self._max_pixels)
        except (ImageError, OSError) as error:
            raise RowError(
                f"image {_short(written)}: {error}", "replace the file or remove it from the row"
            ) from error
        return path

    def _video(self, value: object) -> Path | None:
        """Return the real path of a video; what it holds is judged when it is sampled."""
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            raise RowError(f"video {_short(value)} is no path", "write it as a text")
        path = self._inside(value, "video")
        if not path.is_file():
            raise RowError(f"video {_short(value)}: no such file", "correct the path or remove it")
        return path

    def _inside(self, written: str, what: str) -> Path:
        """Return the real path that `written` leads to, if it stays inside the manifest's folder."""
        shown = _short(written)
        if _URL.search(written):
            raise RowError(f"{what} {shown} is a URL", "download it and give its path; nothing is fetched")
        if Path(written).is_absolute() or PureWindowsPath(written).drive:
            raise RowError(f"{what} {shown} is an absolute path", "give it relative to the manifest's folder")
        try:
            path = (self._folder / written).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise RowError(f"{what} {shown} is no path: {error}", "correct the path") from error
        if not path.is_relative_to(self._root):
            raise RowError(f"{what} {shown} leads out of the manifest's folder", "copy it into that folder")
        return path


def _text(value: object, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError(
            f"{what} {_short(value)} is a {type(value).__name__}, expected a text", "write it as a text"
        )
    if "\0" in value:
        raise RowError(f"{what} holds a NUL byte", "remove it")
    return value


def _image_list(value: object, most: int) -> list[str]:
    """Return the paths as written: a list, a JSON list in a text, or a text separated by semicolons."""
    if value is None:
        return []
    if isinstance(value, str):
        value = (
            _json(value, "images")
            if value.lstrip().startswith("[")
            else [one.strip() for one in value.split(";")]
        )
        value = [one for one in value if one != ""] if isinstance(value, list) else value
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise RowError(f"images {_short(value)} is no list of paths", "write the paths as a list of texts")
    if len(value) > most:
        raise RowError(f"{len(value)} images, at most {most}", f"keep the {most} that matter")
    return value


def _process_table(value: object) -> dict[str, Any]:
    if isinstance(value, str):
        value = _json(value, "process") if value.strip() else {}
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RowError(f"process {_short(value)} is no table", "write an object: question -> answer")
    return dict(value)


def _json(value: str, what: str) -> object:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{what} {_short(value)} is not JSON: {error}", "correct it") from error


def _count(value: object) -> int | None:
    """Read a number of pictures; a CSV cell writes it in digits."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value[:9])
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _counted(question: Question, count: int, images: int) -> str:
    if not 0 <= count <= images or images == 0:
        raise RowError(
            f"{count} for the counting question {question.name!r}, the post has {images} images",
            "count the post's images only",
        )
    return question.answer_for_count(count, images)


def _short(value: object) -> str:
    """Shorten `value` as a message can carry it."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


LISTED = 10


# ---- a whole manifest -----------------------------------------------------------------------------------


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
    """Read and check a manifest.

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
    """Stop when more rows were set aside than tolerated.

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
        f"{' and '.join(limits)} tolerated:\n"
        + "\n".join(describe(report.problems))
        + "\nCorrect these rows, or raise the tolerance."
    )


def describe(problems: tuple[Problem, ...], most: int = LISTED) -> Iterator[str]:
    """Describe problems: one line each, the first `most` of them, then how many more there are."""
    for problem in problems[:most]:
        yield f"  line {problem.line}, id {problem.post_id!r}: {problem.reason}; {problem.remedy}"
    if len(problems) > most:
        yield f"  and {len(problems) - most} more"

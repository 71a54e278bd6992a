"""Manifests in, checked posts out: a bad row is set aside with its reason and never stops the reading.

A manifest is any table of `tables`. Its columns: ``id`` (unique), ``text``, ``images`` (paths relative to the
manifest's folder), ``label`` (a class name, or nothing), ``video`` and ``process`` (question -> answer);
``process.NAME`` columns do as well. Anything else is kept in `Post.extra`. One set of rules holds for every
format: what is another spelling of one of ours beyond doubt is read and said, what only might be is named.
"""

from __future__ import annotations

import ast
import difflib
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from backbones.errors import ImageError
from backbones.images import MAX_PIXELS, check_image
from selftrain._util.types import Json
from selftrain.data.posts import MAX_IMAGES, Post
from selftrain.data.tables import RawRow, Table, fold, open_table, shorten
from selftrain.data.task import Question, Task
from selftrain.errors import ManifestError, QuarantineError, RunStateError
from selftrain.store.run_dir import RunFolder

COLUMNS = ("id", "text", "images", "label", "process", "video")
PROCESS_PREFIX = "process."
SPLIT = "split"
_URL = re.compile(r"^([a-z][a-z0-9+.-]+:)?//|^data:", re.IGNORECASE)
_ENTITY = re.compile(r"&(#\d{1,7}|#x[0-9a-f]{1,6}|amp|lt|gt|quot|apos|nbsp|[a-z]{2,8});", re.IGNORECASE)
# an id that a spreadsheet has taken for a number: "1.0", "1.23457E+18"
_SPREADSHEET = re.compile(r"-?\d+\.0+|-?\d(?:\.\d+)?[eE]\+?\d+")
_NOTHING = frozenset(("na", "n/a", "nan", "none", "null", "<na>", "-", "?"))


class ManifestNote(NamedTuple):
    """Something about a manifest that a person should know, though no row is bad for it.

    Attributes:
        reason: What was found, and how it was read, or that it was not.
        remedy: What to do if that is wrong; may be empty.
        rows: Rows concerned; 0 for the file as a whole.
        line: The first of them.
    """

    reason: str
    remedy: str = ""
    rows: int = 0
    line: int = 0

    def __str__(self) -> str:
        """Return one line of text."""
        where = f" ({self.rows:,} rows, line {self.line} first)" if self.rows else ""
        return f"{self.reason}{where}" + (f"; {self.remedy}" if self.remedy else "")


# ---- which column is which ------------------------------------------------------------------------------


def _key(name: str) -> str:
    return fold(name).replace(" ", "").replace("_", "").replace("-", "")


# beside other spellings of the names themselves, what can mean nothing else
_SAME = {_key(name): name for name in (*COLUMNS, SPLIT)} | {"img": "images", "image": "images"}
# what often means one of ours, and as often something else: named, never read
_LIKE = {
    "id": "postid tweetid uid guid index key statusid commentid itemid docid no number rowid idstr imageid",
    "text": "tweet content body message caption sentence comment post title words fulltext description ocr"
    " sentence1 input document meme texttranscription utterance",
    "images": "imagepath imgpath picture pictures photo photos filename file filepath path imageurl media"
    " imagefile imgs attachments pixels",
    "label": "class category target y tag tags labels goldlabel annotation sentiment labelname classlabel"
    " output answer hateful ishate toxic polarity verdict rating score",
}
_LIKE_KEYS = {field: frozenset(names.split()) for field, names in _LIKE.items()}


def _resembling(field: str, names: Sequence[str]) -> str | None:
    """Return the name that may well be meant for a field that no column is called like."""
    keys = {_key(name): name for name in reversed(names)}
    near = [key for key in keys if key in _LIKE_KEYS.get(field, ())]
    near = near or difflib.get_close_matches(
        field, [key for key in keys if key not in _SAME], n=1, cutoff=0.75
    )
    return keys[near[0]] if near else None


class _Columns:
    """Says which field of a post a column is.

    Args:
        given: Field -> column, as the user says it; beats every name.
        header: All columns, where they are known beforehand.
    """

    def __init__(self, given: Mapping[str, str], header: Sequence[str] | None) -> None:
        strange = [
            one for one in given if one not in (*COLUMNS, SPLIT) and not one.startswith(PROCESS_PREFIX)
        ]
        if strange:
            raise ManifestError(
                f"--column {strange[0]}={given[strange[0]]}: expected one of {[*COLUMNS, SPLIT]} before the"
                " equals sign, and the name of your column after it"
            )
        self._given = {column: field for field, column in given.items()}
        self._header = None if header is None else frozenset(header)
        self._known: dict[str, tuple[str | None, bool]] = {}
        self.missing = set(self._given)
        self.renamed: dict[str, str] = {}

    def field(self, name: str) -> tuple[str | None, bool]:
        """Return the field, or None, and whether the name leaves no choice."""
        found = self._known.get(name)
        if found is None:
            if len(self._known) > 10_000:  # rows whose keys are data
                self._known.clear()
            found = self._known[name] = self._find(name)
        return found

    def _find(self, name: str) -> tuple[str | None, bool]:
        if name in self._given:
            self.missing.discard(name)
            return self._given[name], True
        field, exact = name, name in COLUMNS or name == SPLIT or name.startswith(PROCESS_PREFIX)
        if not exact:
            field = _SAME.get(_key(name), "")
        taken = field in self._given.values() or (not exact and field in (self._header or ()))
        return (None, False) if taken or not field else (field, exact)


def _check_header(path: Path, columns: _Columns, header: Sequence[str]) -> None:
    fields = {columns.field(name)[0] for name in header}
    shown = list(header)[:12]
    if columns.missing:
        raise ManifestError(
            f"{path} has no column {sorted(columns.missing)[0]!r}: it has {shown}; correct --column"
        )
    if "id" not in fields:
        like = _resembling("id", header)
        hint = "add it" if like is None else f"add it, or read {like!r} as id (--column id={like})"
        raise ManifestError(
            f"{path} has the columns {shown}; expected a header with 'id', and 'text' or 'images': {hint}"
        )


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

    Args:
        path: The manifest; images are relative to its folder, and lie in it.
        task: Whose labels and answers are allowed; None: any.
        table: The rows, where they are not those of the file at `path`.
        allow_missing_text, max_pixels, max_images: See `read_manifest`.
        columns, labels, videos: See `read_manifest`.
        remember: Refuse an id that was met, and open each image once, at the price of memory for every row; a
            stream that has no end is read without.

    Raises:
        ManifestError: As `read_manifest`.
    """

    def __init__(
        self,
        path: Path,
        task: Task | None,
        *,
        table: Table | None = None,
        allow_missing_text: bool = True,
        max_pixels: int = MAX_PIXELS,
        max_images: int = MAX_IMAGES,
        columns: Mapping[str, str] | None = None,
        labels: bool = True,
        videos: bool = True,
        remember: bool = True,
    ) -> None:
        self.table = open_table(path) if table is None else table
        self.columns = _Columns(columns or {}, self.table.columns)
        if self.table.columns is not None:
            _check_header(path, self.columns, self.table.columns)
        folders = _picture_folders(path)
        self._folder = folders[0]
        self._roots = [folder.resolve() for folder in folders]
        self._labels = None if task is None else Names(task.names)
        self._questions = None if task is None else {question.name: question for question in task.questions}
        self._allow_missing_text = allow_missing_text
        self._max_pixels = max_pixels
        self._max_images = max_images
        self._read_labels, self._videos = labels, videos
        self._remember = remember
        self._met: dict[str, tuple[int, object]] = {}
        self._checked: dict[str, Path | RowError] = {}
        self._fields, self._unread = Counter[str](), Counter[str]()
        self._notes: dict[str, ManifestNote] = {}

    def post(self, raw: RawRow) -> Post:
        """Return the row's post.

        Raises:
            RowError: The row has to be set aside.
        """
        if raw.fields is None:
            raise RowError(raw.reason, raw.remedy)
        self._line = raw.line
        fields, extra = self._sort(raw)
        post_id = self._id(fields.get("id"), raw.fields, fields.get("label"))
        try:
            return self._post(post_id, fields, extra)
        except RowError as error:
            raise RowError(error.reason, error.remedy, post_id) from error

    def notes(self) -> list[ManifestNote]:
        """Return what a person should know of the rows read so far."""
        found = [ManifestNote(note) for note in self.table.notes]
        found += [
            ManifestNote(f"column {name!r} is read as {field}")
            for name, field in self.columns.renamed.items()
        ]
        found += self._notes.values()
        unread = list(self._unread)
        for field in ("label", "text", "images"):
            like = _resembling(field, unread)
            if like is not None and not self._fields[field] and (field != "label" or self._read_labels):
                remedy = f"if it holds that, say so (--column {field}={like}) or rename it"
                found.append(ManifestNote(f"no column holds {field}, and {like!r} is not read", remedy))
        if unread:
            more = f" and {len(unread) - 20} more" if len(unread) > 20 else ""
            found.append(ManifestNote(f"kept, but not read: {', '.join(map(repr, unread[:20]))}{more}"))
        return found

    def _note(self, kind: str, reason: str, remedy: str = "") -> None:
        """Count a row under a kind of note; what the first row has to tell is kept."""
        found = self._notes.get(kind)
        if found is not None:
            self._notes[kind] = found._replace(rows=found.rows + 1)
        elif len(self._notes) < 50:
            self._notes[kind] = ManifestNote(reason, remedy, 1, self._line)

    def _sort(self, raw: RawRow) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the fields of a post, and what else the row holds."""
        fields: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        spelled: dict[str, str] = {}
        assert raw.fields is not None, "rows that could not be read are refused before"
        for name, value in raw.fields.items():
            field, exact = self.columns.field(name)
            if field is not None and not exact:
                if field in raw.fields:
                    field = None
                elif field in spelled:
                    reason = f"the columns {spelled[field]!r} and {name!r} could both be {field}"
                    raise RowError(reason, f"keep one of them, or say which: --column {field}={name}")
                else:
                    spelled[field] = name
                    self.columns.renamed[name] = field
            if field == SPLIT:
                extra[SPLIT] = value
            elif field is not None:
                fields[field] = value
                self._fields[field] += 1
            else:
                if name not in COLUMNS:  # else --column has put another in its place
                    extra[name] = value
                if len(self._unread) < 1000:
                    self._unread[name] += 1
        for name, reason in raw.unread.items():
            field = self.columns.field(name)[0]
            if field is not None and (field not in ("label", "process") or self._read_labels):
                raise RowError(f"{field} cannot be read: {reason}", "write it as a text")
            self._note(f"unread {name}", f"column {name!r} is left out where it cannot be read: {reason}")
        return fields, extra

    def _post(self, post_id: str, fields: Mapping[str, Any], extra: dict[str, Any]) -> Post:
        text = _text(fields.get("text"), "text")
        images = tuple(map(self._image, _image_list(fields.get("images"), self._max_images)))
        video = self._video(fields.get("video"))
        if images and video is not None:
            raise RowError("images and a video", "keep one of the two")
        if not text.strip() and not images and video is None:
            raise self._empty(extra)
        if not text.strip() and not self._allow_missing_text:
            raise RowError("no text", "give the post a text, or allow posts of images alone")
        if "&" in text and (entity := _ENTITY.search(text)):
            self._note("entities", f"HTML entities such as {entity[0]!r} are kept as they are written")
        if "_task_hash" in extra and extra.get("answer") != "accept":
            reason = f"Prodigy's answer is {shorten(extra.get('answer'))}: the label beside it does not hold"
            raise RowError(reason, "write the label that holds, or none")
        if not self._read_labels:
            return Post(post_id, text, images, extra=extra, video=video)
        label = self._label(fields.get("label"))
        return Post(post_id, text, images, label, self._process(fields, len(images)), extra, video)

    def _empty(self, extra: Mapping[str, Any]) -> RowError:
        """Return why there is nothing to read, and which column may hold it."""
        names = list(extra)
        for field in ("text", "images"):
            like = _resembling(field, names)
            if like is not None:
                return RowError(
                    f"neither text nor image, and {like!r} is not read",
                    f"if it holds the {field}, say so (--column {field}={like}) or rename it",
                )
        beside = f" among {names[:8]}" if names else ""
        return RowError(f"neither text nor image{beside}", "give the post a text, an image, or both")

    def _id(self, value: object, row: Mapping[str, Any], label: object) -> str:
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)  # many published sets number their posts
        if value is None or value == "":
            like = _resembling("id", list(row))
            hint = f" (--column id={like})" if like else " (--column id=NAME)"
            raise RowError(
                f"no id among {list(row)[:8]}",
                f"give every row an id of its own, or say which column holds it{hint}",
            )
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise RowError(
                f"id {shorten(value)} is not a usable text", "give the row an id that is a plain text"
            )
        rounded = _SPREADSHEET.fullmatch(value) is not None
        if rounded:
            reason = f"ids such as {value!r} are numbers that a spreadsheet or pandas wrote; kept as they are"
            self._note("ids", reason, "write ids as texts where digits were lost")
        line, other = (
            self._met.setdefault(value, (self._line, label)) if self._remember else (self._line, None)
        )
        if line != self._line:
            differs = f", there with the label {shorten(other)}" if other != label else ""
            remedy = "remove one of the two or rename it"
            if rounded:
                remedy = "a spreadsheet has cut the digits off: export the column again, as text"
            raise RowError(f"id stands already in line {line}{differs}", remedy, value)
        return value

    def _label(self, value: object) -> str | None:
        value = _alone(value)
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        if self._labels is None:
            return _text(_scalar(value), "label")
        found = self._labels.find(value)
        if found is None:
            remedy = "write a class name of the task"
            if isinstance(value, str) and fold(value) in _NOTHING:
                remedy = "leave the label empty where nobody has given one"
            raise RowError(f"label {shorten(value)} is none of {sorted(self._labels)}", remedy)
        if found != value:
            self._note(f"label {shorten(value)}", f"label {shorten(value)} is read as {found!r}")
        return found

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
            return _text(_scalar(value), f"process answer {name!r}")
        question = self._questions.get(name)
        if question is None:
            known = sorted(self._questions)
            raise RowError(
                f"process question {name!r} is none of {known}", "add it to the task or remove the answer"
            )
        found = Names(question.answers).find(value)
        if found is not None:
            if found != value:
                kind = f"answer {name} {shorten(value)}"
                self._note(kind, f"answer {shorten(value)} to {name!r} is read as {found!r}")
            return found
        if question.counting is not None and (count := _count(value)) is not None:
            return _counted(question, count, images)
        expected = list(question.answers)
        raise RowError(
            f"answer {shorten(value)} to {name!r} is none of {expected}", "write one of the task's answers"
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
        if "\\" in written and not path.exists():  # as Windows writes paths
            path = self._inside(written.replace("\\", "/"), "image")
        try:
            check_image(path, max_pixels=self._max_pixels)
        except (ImageError, OSError) as error:
            raise RowError(
                f"image {shorten(written)}: {error}", "replace the file or remove it from the row"
            ) from error
        return path

    def _video(self, value: object) -> Path | None:
        """Return the real path of a video; what it holds is judged when it is sampled."""
        if value is None or value == "":
            return None
        if not self._videos:
            remedy = "take the video out where the rest says it all; AgentPS samples videos"
            raise RowError("a video, and nothing here looks at videos", remedy)
        if not isinstance(value, str):
            raise RowError(f"video {shorten(value)} is no path", "write it as a text")
        path = self._inside(value, "video")
        if not path.is_file():
            raise RowError(f"video {shorten(value)}: no such file", "correct the path or remove it")
        return path

    def _inside(self, written: str, what: str) -> Path:
        """Return the real path that `written` leads to, if it stays inside the manifest's folder."""
        shown = shorten(written)
        if _URL.search(written):
            raise RowError(f"{what} {shown} is a URL", "download it and give its path; nothing is fetched")
        if Path(written).is_absolute() or PureWindowsPath(written).drive:
            raise RowError(f"{what} {shown} is an absolute path", "give it relative to the manifest's folder")
        try:
            path = (self._folder / written).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise RowError(f"{what} {shown} is no path: {error}", "correct the path") from error
        if not any(path.is_relative_to(root) for root in self._roots):
            raise RowError(f"{what} {shown} leads out of the manifest's folder", "copy it into that folder")
        return path


# ---- values, whatever the format writes them as ---------------------------------------------------------


class Names(tuple[str, ...]):
    """Names that are found in another spelling too, as long as only one of them can be meant."""

    __slots__ = ()

    def find(self, value: object) -> str | None:
        """Return the name that a text, number or truth value stands for; None where it is open or none."""
        written = _scalar(value)
        if not isinstance(written, str):
            return None
        if written in self:
            return written
        key = _spelling(written)
        alike = [name for name in self if _spelling(name) == key]
        return alike[0] if len(alike) == 1 else None


def _spelling(name: str) -> str:
    key = fold(name)
    return re.sub(r"\.0+$", "", key) if re.fullmatch(r"[+-]?\d+\.0+", key) else key


def _scalar(value: object) -> object:
    """Return a number or a truth value as the text that CSV has for it; anything else as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int | float) else value


def _alone(value: object) -> object:
    """Return what a list holds that holds one thing or nothing, as some tools write a label."""
    if isinstance(value, str) and value.lstrip().startswith("[") and value.rstrip().endswith("]"):
        listed = _listed(value)
        value = listed if isinstance(listed, list) else value
    if isinstance(value, list):
        if len(value) > 1:
            raise RowError(f"{len(value)} labels, {shorten(value)}", "keep one")
        return value[0] if value else None
    return value


def _listed(value: str) -> object:
    """Return a list that is written in a text, as JSON or as Python prints it; None where it is none."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def _text(value: object, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError(
            f"{what} {shorten(value)} is a {type(value).__name__}, expected a text", "write it as a text"
        )
    if "\0" in value:
        raise RowError(f"{what} holds a NUL byte", "remove it")
    return value


def _image_list(value: object, most: int) -> list[str]:
    """Return the paths as written: a list, a list in a text, or a text separated by semicolons."""
    if value is None:
        return []
    if isinstance(value, str):
        listed = _listed(value) if value.lstrip().startswith("[") else None
        value = listed if isinstance(listed, list) else [one.strip() for one in value.split(";")]
        value = [one for one in value if one != ""]
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        value = [_picture(one) for one in value]
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise RowError(f"images {shorten(value)} is no list of paths", "write the paths as a list of texts")
    if len(value) > most:
        raise RowError(f"{len(value)} images, at most {most}", f"keep the {most} that matter")
    return value


def _picture(one: object) -> object:
    """Return the path of a picture as Hugging Face's datasets write it: bytes, path, or both."""
    if not isinstance(one, dict) or not set(one) <= {"bytes", "path"}:
        return one
    if one.get("bytes") is not None:
        raise RowError(
            f"the picture itself stands in the row, with the path {one.get('path')!r}",
            "write each picture into a file beside the manifest, and its path into images",
        )
    return one.get("path")


def _process_table(value: object) -> dict[str, Any]:
    if isinstance(value, str):
        value = _json(value, "process") if value.strip() else {}
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RowError(f"process {shorten(value)} is no table", "write an object: question -> answer")
    return dict(value)


def _json(value: str, what: str) -> object:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{what} {shorten(value)} is not JSON: {error}", "correct it") from error


def _count(value: object) -> int | None:
    """Read a number of pictures; a CSV cell writes it in digits."""
    value = _scalar(value) if isinstance(value, float) else value
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


LISTED = 10
_LOG = logging.getLogger(__name__)
NOTE = "note"  # kind of a record in a quarantine that is about no row left out


# ---- a whole manifest -----------------------------------------------------------------------------------


class Problem(NamedTuple):
    """One row set aside: where it stands, why, and what would mend it.

    Attributes:
        line: 1-based line in the file (Parquet: row); 0 for the file as a whole.
        post_id: The row's id as far as it could be read, else None.
        reason: What was found and what was expected.
        remedy: What to do.
        rows: How many rows it may stand for, see `tables.RawRow`.
    """

    line: int
    post_id: str | None
    reason: str
    remedy: str
    rows: int = 1


@dataclass(frozen=True, slots=True)
class ManifestReport:
    """The posts of a manifest in its order, and the rows set aside; a row is in exactly one of them.

    `notes` say what was not read, or read as something else than it is called.
    """

    path: Path
    posts: tuple[Post, ...]
    problems: tuple[Problem, ...]
    notes: tuple[ManifestNote, ...] = ()

    @property
    def rows(self) -> int:
        """Rows met, good and bad."""
        return len(self.posts) + self.set_aside

    @property
    def set_aside(self) -> int:
        """Rows that became no post."""
        return sum(problem.rows for problem in self.problems if problem.line > 0)

    @property
    def hints(self) -> tuple[str, ...]:
        """What may well be meant otherwise than it was read, one line each."""
        return tuple(f"  {note}" for note in self.notes if note.remedy)

    @property
    def quarantine(self) -> list[Json]:
        """What a run keeps of this: a record of every row set aside and of every note."""
        rows: list[Json] = [
            {"kind": "row", "file": str(self.path), "line": p.line, "id": p.post_id, "reason": p.reason}
            for p in self.problems
        ]
        return rows + [
            {"kind": NOTE, "file": str(self.path), "line": one.line, "id": None, "reason": str(one)}
            for one in self.notes
        ]

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
    columns: Mapping[str, str] | None = None,
    labels: bool = True,
    videos: bool = True,
) -> ManifestReport:
    """Read and check a manifest.

    Args:
        path: The manifest, a table of any form that `tables` knows.
        task: When given, labels and process answers must be the task's.
        allow_missing_text: Whether a post with an image may lack text; one that has neither is refused.
        max_pixels: The largest width x height that an image's header may claim.
        max_images: The most images of a post.
        columns: Field -> column that holds it, where that is called otherwise: ``{"label": "class"}``.
        labels: Whether labels and process answers are needed; without, they are neither read nor judged.
        videos: Whether videos are looked at; without, a post that has one is set aside.

    Raises:
        ManifestError: The file is missing, is no table, or has no column called ``id``.
    """
    path = Path(path)
    rows = Rows(
        path, task, allow_missing_text=allow_missing_text, max_pixels=max_pixels, max_images=max_images,
        columns=columns, labels=labels, videos=videos,
    )  # fmt: skip
    posts: list[Post] = []
    problems: list[Problem] = []
    for raw in rows.table.rows:
        try:
            posts.append(rows.post(raw))
        except RowError as error:
            problems.append(Problem(raw.line, error.post_id, error.reason, error.remedy, raw.rows))
    if not posts and not problems:
        problems.append(Problem(0, None, "the file holds no rows", "write at least one post into it"))
    elif rows.columns.missing:
        raise ManifestError(f"no row of {path} has {sorted(rows.columns.missing)}: correct --column")
    return ManifestReport(path, tuple(posts), tuple(problems), tuple(rows.notes()))


def _picture_folders(path: Path) -> list[Path]:
    """Return the folder that pictures are relative to, and the others that they may lie in.

    Those of a run's grown.jsonl lie where the run's manifests are, not beside it.
    """
    if path.name != "grown.jsonl" or not (path.parent / "recipe.toml").is_file():
        return [path.parent]
    try:
        sources = RunFolder(path.parent).recipe().get("data", {})
    except RunStateError:
        return [path.parent]
    files = [Path(sources[name]) for name in ("manifest", "validation", "test", "pool") if name in sources]
    return [folder for file in files if file != path for folder in _picture_folders(file)] or [path.parent]


def enforce(report: ManifestReport, max_count: int | None = 0, max_share: float | None = None) -> None:
    """Stop when more rows were set aside than tolerated; else warn of what may have been meant otherwise.

    Args:
        report: What `read_manifest` gave.
        max_count: The most rows set aside, >= 0; None for any number.
        max_share: The largest share of all rows, in [0, 1]; None for any. Both must be kept.

    Raises:
        QuarantineError: With the count, the share and the first rows set aside.
    """
    bad = max(report.set_aside, len(report.problems))
    share = bad / max(report.rows, 1)
    over_count = max_count is not None and bad > max_count
    over_share = max_share is not None and share > max_share
    if not (over_count or over_share):
        for hint in report.hints:
            _LOG.warning("%s: %s", report.path, hint.strip())
        return
    limits = [] if max_count is None else [f"{max_count} rows"]
    limits += [] if max_share is None else [f"{max_share:.2%}"]
    raise QuarantineError(
        f"{report.path}: {bad} of {report.rows} rows ({share:.2%}) are set aside, at most "
        f"{' and '.join(limits)} tolerated:\n"
        + "\n".join([*describe(report.problems), *report.hints])
        + f"\nCorrect these rows, or raise the tolerance{tolerance_hint(bad, share, max_count, max_share)}."
    )


def tolerance_hint(bad: int, share: float, max_count: int | None, max_share: float | None) -> str:
    """Say by which options, or keys of a recipe, as much as this is tolerated."""
    up = math.ceil(share * 100) / 100
    wanted: list[tuple[str, float]] = [("bad-rows", bad)] if max_count is not None and bad > max_count else []
    wanted += [("bad-share", up)] if max_share is not None and share > max_share else []
    options = " ".join(f"--max-{name} {value:g}" for name, value in wanted)
    keys = " ".join(f"--set data.max_{name.replace('-', '_')}={value:g}" for name, value in wanted)
    return f" ({options}; of a recipe {keys})"


def describe(problems: tuple[Problem, ...], most: int = LISTED) -> Iterator[str]:
    """Describe problems: one line each, the first `most` of them, then how many more there are."""
    for problem in problems[:most]:
        yield f"  line {problem.line}, id {problem.post_id!r}: {problem.reason}; {problem.remedy}"
    if len(problems) > most:
        yield f"  and {len(problems) - most} more"

"""Manifests in, checked posts out: a bad row is set aside with its reason and never stops the reading.

A manifest is any table of `tables`. Its columns: ``id`` (unique), ``text``, ``images`` (paths relative to the
manifest's folder, or the pictures themselves), ``label`` (a class name, or nothing), ``video`` and
``process`` (question -> answer); ``process.NAME`` columns do as well. Anything else is kept in `Post.extra`.
One set of rules holds for every format: what is another spelling of one of ours beyond doubt is read and
said, what only might be is named.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote
from uuid import UUID

from backbones.errors import ImageError
from backbones.images import MAX_PIXELS, check_image
from selftrain._util.object_urls import local_path, url_of, url_or_path
from selftrain._util.printable import shorten
from selftrain._util.types import Json
from selftrain.data.columns import (
    PROCESS_PREFIX,
    SPLIT,
    Columns,
    column_option,
    inner_names,
    resembling,
)
from selftrain.data.inline_pictures import is_kept, keep_picture
from selftrain.data.post_store import Chosen, MetIds, PostStore
from selftrain.data.posts import MAX_IMAGES, VIDEOS, Post
from selftrain.data.tables import RawRow, Table, fold, is_odd, open_table
from selftrain.data.task import Task
from selftrain.data.values import (
    NOTHING,
    Names,
    RowError,
    count_answer,
    holds_picture,
    image_list,
    odd_signs,
    only_one,
    process_table,
    scalar,
    text_of,
)
from selftrain.errors import ManifestError, QuarantineError
from selftrain.store.checksums import digest_of
from selftrain.store.objects import Beside

Item = TypeVar("Item")
LISTED = 10
NOTE = "note"  # kind of a record in a quarantine that is about no row left out
_MOST_PROBLEMS = 100_000  # kept one by one; the others are counted
_PICTURES_CHECKED = 65_536  # remembered: a picture that several rows have is opened once, if they are near
_REPLACE = "replace the file or remove it from the row"
_LOG = logging.getLogger(__name__)
_URL = re.compile(r"^([a-z][a-z0-9+.-]+:)?//|^data:", re.IGNORECASE)
_ENTITY = re.compile(r"&(#\d{1,7}|#x[0-9a-f]{1,6}|amp|lt|gt|quot|apos|nbsp|[a-z]{2,8});", re.IGNORECASE)
# an id that a spreadsheet has taken for a number: "1.0", "1.23457E+18", "1,234"
_SPREADSHEET = re.compile(r"-?\d+\.0+|-?\d(?:[.,]\d+)?[eE]\+?\d+|-?\d{1,3}(?:,\d{3})+")
# what UTF-8 looks like in Latin-1 or Windows-1252, and the sign for a letter that was lost
_GARBLED = re.compile("\ufffd|[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac")


class ManifestNote(NamedTuple):
    """Something about a manifest that a person should know, though no row is bad for it."""

    reason: str  # what was found, and how it was read, or that it was not
    remedy: str = ""  # what to do if that is wrong; may be empty
    rows: int = 0  # rows concerned; 0 for the file as a whole
    line: int = 0  # the first of them

    def __str__(self) -> str:
        """Return one line of text."""
        where = f" ({self.rows:,} rows, line {self.line} first)" if self.rows else ""
        return f"{self.reason}{where}" + (f"; {self.remedy}" if self.remedy else "")


# ---- one raw row to one checked post --------------------------------------------------------------------


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
        met: Refuses an id that was met; a stream that has no end is read without.

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
        met: MetIds | None = None,
    ) -> None:
        self.table = open_table(path) if table is None else table
        self.columns = Columns(path, columns or {}, self.table.columns)
        self._folder, self._root = path.parent, path.parent.resolve()
        self._beside = Beside() if url_of(path) else None
        self._labels = None if task is None else Names(task.names)
        self._questions = None if task is None else {question.name: question for question in task.questions}
        self._allow_missing_text = allow_missing_text
        self._max_pixels = max_pixels
        self._max_images = max_images
        self._read_labels, self._videos = labels, videos
        self._met = met
        self._labels_met: list[str] = []  # as the first rows write them
        # Of the pictures met last, whichever rows have them: by their path or digest, and by where they were
        # recorded, for two datasets that were put together may call two pictures the same.
        self._checked: dict[tuple[str, tuple[Path, str] | None], Path | RowError] = {}
        self._listed: dict[Path, dict[str, str]] = {}  # folder -> names in it, where pictures are missing
        self._fields, self._unread = Counter[str](), Counter[str]()
        self._classes = Counter[str]()  # columns, not read, that are called as classes, or hold their names
        self._notes: dict[str, ManifestNote] = {}

    def post(self, raw: RawRow) -> Post:
        """Return the row's post.

        Raises:
            RowError: The row has to be set aside.
            ManifestError: The store that its pictures lie in cannot be read.
        """
        if raw.fields is None:
            raise RowError(raw.reason, raw.remedy)
        self._line = raw.line
        fields, extra = self._sort(self.columns.reached(raw.fields))
        self._check_unread(raw.unread)
        post_id = self._id(fields.get("id"), raw.fields, fields.get("label"))
        try:
            return self._post(post_id, fields, extra)
        except RowError as error:
            raise RowError(error.reason, error.remedy, post_id) from error

    def ahead(self, rows: Iterable[Item], raw_of: Callable[[Item], RawRow]) -> Iterator[Item]:
        """Yield rows; beside an object, the pictures of those to come are fetched meanwhile."""
        if self._beside is None:
            return iter(rows)
        return self._beside.ahead(rows, lambda row: self._pictures_of(raw_of(row)))

    def _pictures_of(self, raw: RawRow) -> Iterator[Path]:
        for name, value in self.columns.reached(raw.fields or {}).items():
            if self.columns.field(name)[0] == "images":
                with suppress(RowError):  # told when the row is judged
                    for one in image_list(value, self._max_images):
                        if isinstance(one, str) and (one, None) not in self._checked:
                            path = self._real_path(one, "image")
                            if path != self._root:
                                yield path

    def pass_over(self, raw: RawRow) -> Mapping[str, Any]:
        """Take note of a row's id and columns, and leave the rest of it unjudged.

        Returns:
            What stands in the fields of a post, its id as the post has it; empty where the row has none.
        """
        self._line = raw.line
        with suppress(RowError):
            if raw.fields is not None:
                fields, _ = self._sort(self.columns.reached(raw.fields))
                self._check_unread(raw.unread)
                return fields | {"id": self._id(fields.get("id"), raw.fields, fields.get("label"))}
        return {}

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
            like = resembling(field, unread)
            if like is not None and not self._fields[field] and (field != "label" or self._read_labels):
                remedy = f"if it holds that, say so ({column_option(field, like)}) or rename it"
                found.append(ManifestNote(f"no column holds {field}, and {like!r} is not read", remedy))
        if self._classes and self._read_labels and not self._fields["label"]:
            reason = f"no column holds label, and {[*self._classes][:6]} name classes"
            found.append(ManifestNote(reason, "write the class of each row into one column, label"))
        if self._fields[SPLIT]:
            found.append(
                ManifestNote(f"column {SPLIT!r} is kept: a recipe says with data.split what it is for")
            )
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

    def _sort(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the fields of a post, and what else the row holds."""
        fields, extra, spelled = dict[str, Any](), dict[str, Any](), dict[str, str]()
        for name, value in row.items():
            field, exact = self.columns.field(name)
            if field is not None and not exact:
                if field in row:
                    field = None
                elif field in spelled:
                    reason = f"the columns {spelled[field]!r} and {name!r} could both be {field}"
                    raise RowError(reason, f"keep one of them, or say which: {column_option(field, name)}")
                else:
                    spelled[field] = name
                    self.columns.renamed[name] = field
            if field == SPLIT:
                extra[SPLIT] = value
                self._fields[SPLIT] += 1
            elif field is not None:
                fields[field] = value
                self._fields[field] += 1
            elif holds_picture(value):
                self._note(f"unread {name}", f"column {name!r} is left out: it holds bytes")
            elif exact:
                given = self.columns.column_of(name)
                self._note(f"unread {name}", f"column {name!r} is left out: {given!r} is read as {name}")
            else:
                extra[name] = value
                if len(self._unread) < 1000:
                    self._unread[name] += 1
                inner = value if isinstance(value, dict) else ()
                if self._labels and any(one in inner or one == name for one in self._labels):
                    self._classes[name] += 1
        return fields, extra

    def _check_unread(self, unread: Mapping[str, str]) -> None:
        for name, reason in unread.items():
            field = self.columns.field(name)[0]
            if field is not None and (field not in ("label", "process") or self._read_labels):
                raise RowError(f"{field} cannot be read: {reason}", "write it as a text")
            self._note(f"unread {name}", f"column {name!r} is left out where it cannot be read: {reason}")

    def _post(self, post_id: str, fields: Mapping[str, Any], extra: dict[str, Any]) -> Post:
        text = text_of(fields.get("text"), "text", self._part("text", fields.get("text")))
        images = self._images(fields.get("images"), extra)
        video = self._video(fields.get("video"))
        if images and video is not None:
            raise RowError("images and a video", "keep one of the two")
        # what is left of some texts is invisible
        blank = not text.strip() or (not text.isascii() and len(text) < 100 and not fold(text))
        if blank and not images and video is None:
            raise self._empty(extra)
        if blank and not self._allow_missing_text:
            raise RowError("no text", "give the post a text, or allow posts of images alone")
        if "&" in text and (entity := _ENTITY.search(text)):
            self._note("entities", f"HTML entities such as {entity[0]!r} are kept as they are written")
        if not text.isascii() and _GARBLED.search(text):
            reason = f"texts such as {shorten(text)} are garbled, as UTF-8 read in another encoding is"
            self._note("garbled", reason, "they are kept so: write the file again from where it is whole")
        if len(text) < 8 and fold(text) in NOTHING:
            reason = f"texts such as {text!r}, a word for nothing, are kept as they are written"
            self._note("nothing", reason, "leave the text empty where there is none")
        if "_task_hash" in extra and extra.get("answer") != "accept":
            reason = f"Prodigy's answer is {shorten(extra.get('answer'))}: the label beside it does not hold"
            raise RowError(reason, "write the label that holds, or none")
        if not self._read_labels:
            return Post(post_id, text, images, extra=extra, video=video)
        label = self._label(fields.get("label"))
        return Post(post_id, text, images, label, self._process(fields, len(images)), extra, video)

    def _part(self, field: str, value: object) -> str:
        """Return how to say which text of an object is meant; nothing where it holds none."""
        for name, one in value.items() if isinstance(value, dict) else ():
            if isinstance(one, str):
                option = column_option(field, f"{self.columns.column_of(field)}.{name}")
                return f", or say which part it is ({option})"
        return ""

    def _empty(self, extra: Mapping[str, Any]) -> RowError:
        """Return why there is nothing to read, and which column may hold it."""
        for field in ("text", "images"):
            like = resembling(field, extra) or next(
                (one for one in inner_names(extra) if one.endswith(f".{field}")), None
            )
            if like is not None:
                return RowError(
                    f"neither text nor image, and {like!r} is not read",
                    f"if it holds the {field}, say so ({column_option(field, like)}) or rename it",
                )
        beside = f" among {[*extra][:8]}" if extra else ""
        return RowError(f"neither text nor image{beside}", "give the post a text, an image, or both")

    def _id(self, value: object, row: Mapping[str, Any], label: object) -> str:
        if isinstance(value, int | UUID) and not isinstance(value, bool):
            value = str(value)  # many published sets number their posts
        elif isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
            value = str(value)  # an id that pandas has made a number stays as CSV would have it
        sideways = isinstance(value, dict | list) and len({*map(type, row.values())}) == 1 < len(row)
        if value is None or value == "" or sideways:
            raise _no_id(row)
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            remedy = f"give the row an id that is a plain text{self._part('id', value)}"
            raise RowError(f"id {shorten(value)} is not a usable text", remedy)
        self._note_id(value)
        remedy = "remove one of the two or rename it"
        if _SPREADSHEET.fullmatch(value):
            remedy = "a spreadsheet has cut the digits off: export the column again, as text"
        said = self._label_number(label)
        earlier = None if self._met is None else self._met.meet(value, self._line << 8 | said)
        if earlier is not None:
            line, other = earlier >> 8, earlier & 0xFF
            differs = f", there with the label {self._labels_met[other]}" if other != said else ""
            raise RowError(f"id stands already in line {line}{differs}", remedy, value)
        return value

    def _label_number(self, label: object) -> int:
        """Return a number, of eight bits, for what a row has as its label; the last is that of all others."""
        shown = shorten(label) if self._read_labels else ""
        if shown not in self._labels_met and len(self._labels_met) < 0x100:
            self._labels_met.append(shown if len(self._labels_met) < 0xFF else "of another name")
        return self._labels_met.index(shown) if shown in self._labels_met else 0xFF

    def _note_id(self, value: str) -> None:
        """Say what is odd about an id, which is kept as it is."""
        if _SPREADSHEET.fullmatch(value):
            reason = f"ids such as {value!r} are numbers that a spreadsheet or pandas wrote; kept as they are"
            self._note("ids", reason, "write ids as texts where digits were lost")
        elif is_odd(value):
            reason = f"ids such as {value!a} hold blanks at an end, invisible signs or letters in pieces"
            if value.startswith("'"):
                reason = f"ids such as {value!a} begin with the apostrophe by which spreadsheets know a text"
            self._note("odd ids", reason, "they are kept so, and equal to no other spelling: clean them")
        elif len(value) < 8 and fold(value) in NOTHING:
            self._note("no ids", f"ids such as {value!r}, a word for nothing, are kept as they are written")

    def _label(self, value: object) -> str | None:
        value = only_one(value, self._labels or ())
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        if self._labels is None:
            return text_of(scalar(value), "label")
        found = self._labels.find(value)
        if found is None:
            remedy = "write a class name of the task"
            if isinstance(value, str) and fold(value) in NOTHING:
                remedy = "leave the label empty where nobody has given one"
            elif isinstance(scalar(value), str) and fold(str(scalar(value))) in ("0", "1", "true", "false"):
                remedy += ", or call the task's classes so"
            remedy += self._part("label", value)
            signs = odd_signs(value, self._labels)
            raise RowError(f"label {shorten(value)}{signs} is none of {sorted(self._labels)}", remedy)
        if found != value:
            self._note(f"label {shorten(value)}", f"label {shorten(value)} is read as {found!r}")
        return found

    def _process(self, fields: Mapping[str, Any], images: int) -> dict[str, str]:
        answers = process_table(fields.get("process"))
        for name, value in fields.items():
            if name.startswith(PROCESS_PREFIX) and value not in (None, ""):
                question = name.removeprefix(PROCESS_PREFIX)
                if answers.get(question) not in (None, "", value):
                    reason = f"process answers {question!r} by {shorten(answers[question])}, and {name} by"
                    raise RowError(f"{reason} {shorten(value)}", "keep one of the two")
                answers[question] = value
        return {
            name: self._answer(name, value, images)
            for name, value in answers.items()
            if value is not None and value != ""
        }

    def _answer(self, name: str, value: object, images: int) -> str:
        if self._questions is None:
            return text_of(scalar(value), f"process answer {name!r}")
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
        counted = count_answer(question, value, images)
        if counted is not None:
            return counted
        expected = list(question.answers)
        raise RowError(
            f"answer {shorten(value)} to {name!r} is none of {expected}", "write one of the task's answers"
        )

    # ---- pictures ---------------------------------------------------------------------------------------

    def _images(self, value: object, extra: Mapping[str, Any]) -> tuple[Path, ...]:
        written = image_list(value, self._max_images)
        recorded = recorded_pictures(extra, len(written)) if written else None
        paths = tuple(
            self._image(one, None if recorded is None else (recorded[0], recorded[1][place]))
            for place, one in enumerate(written)
        )
        kept = next((path for one, path in zip(written, paths, strict=True) if isinstance(one, bytes)), None)
        if kept is not None:
            self._note("pictures", f"pictures that stand in the table are kept in {kept.parent}")
        return paths

    def _image(self, written: str | bytes, recorded: tuple[Path, str] | None) -> Path:
        key = written if isinstance(written, str) else hashlib.sha256(written).hexdigest(), recorded
        found = self._checked.get(key)
        if found is None:
            try:
                found = self._opened(written, recorded)
            except RowError as error:
                found = error
            if len(self._checked) >= _PICTURES_CHECKED:
                self._checked.clear()
            self._checked[key] = found
        if isinstance(found, RowError):
            raise RowError(found.reason, found.remedy)
        return found

    def _opened(self, written: str | bytes, recorded: tuple[Path, str] | None) -> Path:
        """Return the path of a picture whose header is sound."""
        if isinstance(written, bytes):
            path, shown = keep_picture(written), "in the table"
        else:
            path, shown = self._locate(written, recorded), shorten(written)
        try:
            check_image(path, max_pixels=self._max_pixels)
        except (ImageError, OSError) as error:
            remedy = _REPLACE
            if isinstance(written, str) and not path.exists():
                remedy = self._otherwise(written, path) or remedy
            fault = getattr(error, "strerror", None) or str(error)
            raise RowError(_picture_fault(shown, path, fault), remedy) from error
        return path

    def _otherwise(self, written: str, path: Path) -> str:
        """Return what may be meant by a path where nothing is; empty where that is open."""
        if re.search(r"[,|]|^\{", written):
            return "correct it; several paths are a list, or separated by ';'"
        if fold(written) in NOTHING:
            return "leave it empty where there is no picture"
        listed = self._listed.get(path.parent)
        if listed is None:
            there = path.parent.iterdir() if path.parent.is_dir() else ()
            listed = self._listed[path.parent] = {fold(one.name): one.name for one in there}
        near = listed.get(fold(path.name))
        return f"{near!r} is there: write it so" if near else ""

    def _locate(self, written: str, recorded: tuple[Path, str] | None) -> Path:
        """Return the real path of an image inside the manifest's folder, or where it was recorded."""
        try:
            path = self._inside(written, "image")
            if not path.is_file():
                # as Windows, browsers and Macs write paths
                others = {written.replace("\\", "/"), unquote(written)}
                others |= {unicodedata.normalize(form, written) for form in ("NFC", "NFD")}
                paths = (self._inside(one, "image") for one in sorted(others - {written}))
                path = next((one for one in paths if one.is_file()), path)
        except RowError:
            if recorded is None:
                raise
            path = None
        except OSError as error:
            raise RowError(f"image {shorten(written)}: {error.strerror}", "correct the path") from error
        if recorded is not None and (path is None or not path.is_file()):
            return _unchanged(written, *recorded)
        assert path is not None, "a path that is none was raised"
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
        if path.suffix.lower() not in VIDEOS:  # its frames would be taken for pictures, a GIF's first for all
            known = ", ".join(sorted(VIDEOS))
            raise RowError(f"video {shorten(value)} is none of {known}", "save it anew (`ffmpeg -i OLD NEW`)")
        return path

    def _inside(self, written: str, what: str) -> Path:
        """Return the real path that `written` leads to; beside an object, fetch what is there."""
        path = self._real_path(written, what)
        if self._beside is not None and path != self._root and (fault := self._beside.fetch(path)):
            raise RowError(f"{what} {shorten(written)} {fault}", "make it smaller, or take it out")
        return path

    def _real_path(self, written: str, what: str) -> Path:
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
        if not path.is_relative_to(self._root):
            raise RowError(f"{what} {shown} leads out of the manifest's folder", "copy it into that folder")
        return path


def _picture_fault(shown: str, path: Path, fault: str) -> str:
    """Return why a row is bad whose picture is: as it is written there, and what `backbones.images` says."""
    return f"image {shown}: {fault.removeprefix(f'{path}: ').rstrip('.')}"


def _no_id(row: Mapping[str, Any]) -> RowError:
    """Return that a row has no id, and which column may hold it, or that the rows stand deeper."""
    deeper = [
        name
        for name, value in row.items()
        if isinstance(value, list) and value and isinstance(value[0], dict)
    ]
    if deeper and resembling("id", row) is None:
        told = ", ".join(f"{name!r} holds {len(row[name]):,} objects" for name in deeper[:4])
        remedy = "if these are the rows, write that list alone into the file"
        return RowError(f"no id among {[*row][:8]}, and {told}", remedy)
    inner = next((one for one in inner_names(row) if one.endswith(".id")), None)
    for kind, what in ((dict, "objects"), (list, "lists")):
        if row and all(isinstance(value, kind) for value in row.values()) and not (inner and len(row) == 1):
            remedy = (
                "write one object a line, each with an id (pandas: to_json(orient='records', lines=True))"
            )
            return RowError(f"no id among {[*row][:8]}, all of them {what}: a table on its side", remedy)
    like = resembling("id", row) or inner or "NAME"
    remedy = f"give every row an id of its own, or say which column holds it ({column_option('id', like)})"
    return RowError(f"no id among {[*row][:8]}", remedy)


def recorded_pictures(extra: Mapping[str, Any], count: int) -> tuple[Path, list[str]] | None:
    """Return where a grown dataset says that its pictures lay, and the SHA-256 of each; None elsewhere."""
    match extra.get("provenance"):
        case {"pictures": {"folder": str(folder), "sha256": list(digests)}} if len(digests) == count:
            return Path(folder), [*map(str, digests)]
    return None


def _unchanged(written: str, folder: Path, digest: str) -> Path:
    """Return a picture where it was recorded: only whoever knew its content can have recorded its SHA-256.

    Were the folder alone believed, a stranger's file could name any picture of this machine.
    """
    path = (folder / written).resolve()
    try:
        if path.is_file() and digest_of(path) == digest:
            return path
    except (OSError, ValueError):
        pass
    raise RowError(
        f"image {shorten(written)} is neither beside this file nor, unchanged, in {folder}",
        "copy the pictures beside the file",
    )


# ---- a whole manifest -----------------------------------------------------------------------------------


class Problem(NamedTuple):
    """One row set aside: where it stands, why, and what would mend it."""

    line: int  # 1-based line in the file (Parquet: row); 0 for the file as a whole
    post_id: str | None  # the row's id as far as it could be read, else None
    reason: str  # what was found and what was expected
    remedy: str  # what to do

    def __str__(self) -> str:
        line = f"line {self.line}" if self.line else ""
        post = "" if self.post_id is None else f"id {self.post_id!r}"
        where = ", ".join(filter(None, [line, post]))
        return f"{where}{': ' if where else ''}{self.reason}; {self.remedy}"


class Tolerance(NamedTuple):
    """How much may be set aside before a command stops; both limits must be kept."""

    rows: int | None = 100  # the most rows, >= 0; None for any number
    share: float | None = 0.05  # the largest share of all rows, in [0, 1]; None for any

    def check(
        self,
        bad: int,
        total: int,
        lines: Iterable[str],  # the first of the bad ones, each with its reason
        *,
        what: str,  # was counted: "rows" or "posts"
        where: str = "",  # the file, and a colon
        fault: str = "are set aside",  # what became of them
    ) -> None:
        """Stop when more was set aside than tolerated.

        Raises:
            QuarantineError: With the count, the share, `lines` and what to type.
        """
        share = bad / max(total, 1)
        over: list[tuple[str, float]] = []
        if self.rows is not None and bad > self.rows:
            over.append(("bad-rows", bad))
        if self.share is not None and share > self.share:
            over.append(("bad-share", math.ceil(share * 100) / 100))
        if not over:
            return
        limits = [] if self.rows is None else [f"{self.rows} rows"]
        limits += [] if self.share is None else [f"{self.share:.2%}"]
        options = " ".join(f"--max-{name} {value:g}" for name, value in over)
        keys = " ".join(f"--set data.max_{name.replace('-', '_')}={value:g}" for name, value in over)
        raise QuarantineError(
            f"{where}{bad} of {total} {what} ({share:.2%}) {fault}, at most {' and '.join(limits)}"
            " tolerated:\n"
            + "\n".join(lines)
            + f"\nCorrect these {what}, or raise the tolerance ({options}; of a recipe {keys})."
        )

    def changed(self, rows: int | None, share: float | None) -> Tolerance:
        """Return the limits with those that a command was given in their place."""
        return Tolerance(self.rows if rows is None else rows, self.share if share is None else share)


@dataclass(frozen=True, slots=True)
class ManifestReport:
    """The posts of a manifest in its order, and the rows set aside; a row is in exactly one of them."""

    path: Path
    posts: Sequence[Post]  # in its order; a tuple, or a view of posts on disk
    problems: tuple[Problem, ...]  # the rows set aside, the first hundred thousand of them
    notes: tuple[ManifestNote, ...] = ()  # what was not read, or read as something else than it is called
    unlisted: int = 0  # rows set aside beyond those of `problems`
    lines: Sequence[int] = ()  # of each post; not known of posts in a store

    @property
    def rows(self) -> int:
        """Rows met, good and bad."""
        return len(self.posts) + self.set_aside

    @property
    def set_aside(self) -> int:
        """Rows that became no post."""
        return sum(problem.line > 0 for problem in self.problems) + self.unlisted

    @property
    def hints(self) -> tuple[str, ...]:
        """What may well be meant otherwise than it was read, one line each."""
        return tuple(f"  {note}" for note in self.notes if note.remedy)

    @property
    def quarantine(self) -> list[Json]:
        """What a run keeps of this: a record of every row set aside and of every note."""
        file = url_or_path(self.path)
        rows: list[Json] = [
            {"kind": "row", "file": file, "line": p.line, "id": p.post_id, "reason": p.reason}
            for p in self.problems
        ]
        return rows + [
            {"kind": NOTE, "file": file, "line": one.line, "id": None, "reason": str(one)}
            for one in self.notes
        ]

    @property
    def counts(self) -> dict[str | None, int]:
        """Label -> posts, the unlabelled under None."""
        return dict(Counter(post.label for post in self.posts))

    def without_pictures(self, unread: Mapping[Path, str]) -> ManifestReport:
        """Return the report with those posts set aside that have a picture which cannot be decoded.

        Reading looks at headers alone; a run finds the others when it encodes the posts. Of posts in memory.

        Args:
            unread: Picture -> why it cannot be decoded, as `open_image` says.
        """
        bad = {place for place, post in enumerate(self.posts) if any(path in unread for path in post.images)}
        if not bad:
            return self
        problems = [*self.problems]
        for place in sorted(bad):
            post = self.posts[place]
            path = next(path for path in post.images if path in unread)
            reason = _picture_fault(self._written(path), path, unread[path])
            problems.append(Problem(self.lines[place], post.id, reason, _REPLACE))
        problems.sort(key=lambda problem: problem.line)
        return replace(
            self,
            posts=tuple(post for place, post in enumerate(self.posts) if place not in bad),
            lines=tuple(line for place, line in enumerate(self.lines) if place not in bad),
            problems=tuple(problems[:_MOST_PROBLEMS]),
            unlisted=self.unlisted + len(problems[_MOST_PROBLEMS:]),
        )

    def _written(self, picture: Path) -> str:
        """Return how a row names a picture, links followed."""
        if is_kept(picture):
            return "in the table"
        root = self.path.parent.resolve()
        return shorten(str(picture.relative_to(root) if picture.is_relative_to(root) else picture))

    def enforce(self, tolerance: Tolerance) -> None:
        """Stop when more rows were set aside than tolerated; else warn of what may be meant otherwise.

        Raises:
            ManifestError: There is no row at all.
            QuarantineError: As `Tolerance.check`.
        """
        if not self.rows:
            raise ManifestError(f"{url_or_path(self.path)} holds no rows: write at least one post into it")
        lines = (*describe(self.problems), *self.hints)
        tolerance.check(self.set_aside, self.rows, lines, what="rows", where=f"{self.path}: ")
        for hint in self.hints:
            _LOG.warning("%s: %s", self.path, hint.strip())


def read_manifest(
    path: Path | str,
    task: Task | None = None,
    *,
    allow_missing_text: bool = True,
    max_pixels: int = MAX_PIXELS,
    max_images: int = MAX_IMAGES,
    columns: Mapping[str, str] | None = None,
    labels: bool = True,
    videos: bool = True,
    store: PostStore | None = None,
) -> ManifestReport:
    """Read and check a manifest.

    Args:
        path: The manifest, a table of any form that `tables` knows, or the URL of one: ``s3://BUCKET/KEY``.
        task: When given, labels and process answers must be the task's.
        allow_missing_text: Whether a post with an image may lack text; one that has neither is refused.
        max_pixels: The largest width x height that an image's header may claim.
        max_images: The most images of a post.
        columns: Field -> column that holds it, where that is called otherwise: ``{"label": "class"}``.
        labels: Whether labels and process answers are needed; without, they are neither read nor judged.
        videos: Whether videos are looked at; without, a post that has one is set aside.
        store: Where the posts are kept, behind those that it holds; None: in memory.

    Raises:
        ManifestError: The file is missing, is no table, or has no column called ``id``.
    """
    path = local_path(path)
    rows = Rows(
        path, task, allow_missing_text=allow_missing_text, max_pixels=max_pixels, max_images=max_images,
        columns=columns, labels=labels, videos=videos, met=MetIds(),
    )  # fmt: skip
    posts: list[Post] | PostStore = [] if store is None else store
    start, problems, unlisted, lines = len(posts), list[Problem](), 0, array("Q")
    for raw in rows.ahead(rows.table.rows, lambda raw: raw):
        try:
            posts.append(rows.post(raw))
            if store is None:
                lines.append(raw.line)
        except RowError as error:
            if len(problems) < _MOST_PROBLEMS:
                problems.append(Problem(raw.line, error.post_id, error.reason, error.remedy))
            else:
                unlisted += 1
    if len(posts) == start and not problems:
        problems.append(Problem(0, None, "the file holds no rows", "write at least one post into it"))
    elif rows.columns.missing:
        raise ManifestError(f"no row of {path} has {sorted(rows.columns.missing)}: correct --column")
    found = tuple(posts) if store is None else Chosen(posts, range(start, len(posts)))
    return ManifestReport(path, found, tuple(problems), tuple(rows.notes()), unlisted, lines)


def describe(problems: tuple[Problem, ...], most: int = LISTED) -> Iterator[str]:
    """Describe problems: one line each, the first `most` of them, then how many more there are."""
    for problem in problems[:most]:
        yield f"  {problem}"
    if len(problems) > most:
        yield f"  and {len(problems) - most} more"

"""One raw row to one checked post."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from selftrain.data.manifest_files import RawRow
from selftrain.data.posts import MAX_IMAGES, Post
from selftrain.data.task import Question, Task

COLUMNS = ("id", "text", "images", "label", "process", "video")
PROCESS_PREFIX = "process."
_URL = re.compile(r"^([a-z][a-z0-9+.-]+:)?//|^data:", re.IGNORECASE)


class RowError(Exception):
    """Why a row cannot become a post, and what would mend it. Never leaves `read_manifest`."""

    def __init__(self, reason: str, remedy: str, post_id: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
        self.post_id = post_id


class Rows:
    """Checks rows one by one.

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
        """The row's post.

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
        """The real path of an image that lies inside the manifest's folder and has a sound header."""
        from backbones.errors import ImageError
        from backbones.images import check_image

        path = self._inside(written, "image")
        try:
            check_image(path, max_pixels=self._max_pixels)
        except (ImageError, OSError) as error:
            raise RowError(
                f"image {_short(written)}: {error}", "replace the file or remove it from the row"
            ) from error
        return path

    def _video(self, value: object) -> Path | None:
        """The real path of a video; what it holds is judged when it is sampled."""
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            raise RowError(f"video {_short(value)} is no path", "write it as a text")
        path = self._inside(value, "video")
        if not path.is_file():
            raise RowError(f"video {_short(value)}: no such file", "correct the path or remove it")
        return path

    def _inside(self, written: str, what: str) -> Path:
        """The real path that `written` leads to, if it stays inside the manifest's folder."""
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
    """The paths as written: a list, a JSON list in a text, or a text separated by semicolons."""
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
    """A number of pictures; a CSV cell writes it in digits."""
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
    """`value` as a message can carry it."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."

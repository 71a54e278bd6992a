"""What a run is about, found again: its task in words; its posts with text, pictures, and a label if any."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from selftrain._util.object_urls import local_path
from selftrain.data.manifest import Rows
from selftrain.data.tables import RawRow
from selftrain.data.task import Task, load_task
from selftrain.data.values import Names, RowError
from selftrain.errors import ManifestError, TaskError
from selftrain.store.run_dir import RunFolder, text_digest

MANIFESTS = ("manifest", "pool", "validation", "test")


class TaskWords(NamedTuple):
    """A task in words."""

    name: str
    classes: tuple[str, ...]  # in the order of the run
    policy: str | None  # None when the task file is gone or has changed its classes; `meanings` is empty then
    meanings: Mapping[str, str]  # class name -> one line

    @classmethod
    def of(cls, task: Task, classes: Sequence[str]) -> TaskWords:
        """Return the words of a task that has these classes."""
        return cls(task.name, tuple(classes), task.policy, {one.name: one.meaning for one in task.classes})


def task_words(folder: RunFolder, classes: Sequence[str]) -> TaskWords:
    """Read the task's text: from the run's own copy, else from the file that its recipe names.

    Raises:
        RunStateError: No run folder, or a damaged one.
    """
    # the original may have moved, or say something else by now
    copied, original = folder.path / "task.toml", folder.recipe().get("data", {}).get("task", "")
    try:
        task = load_task(copied if copied.exists() else Path(original))
    except TaskError:
        task = None
    if task is None or set(task.names) != set(classes):
        return TaskWords(folder.environment().task, tuple(classes), None, {})
    return TaskWords.of(task, classes)


def files_of(folder: RunFolder) -> list[Path]:
    """Return the files that a run, or a labelling, reads: its manifests and its task.

    Raises:
        RunStateError: No run folder, or a damaged one.
    """
    section = folder.recipe().get("data", {})
    return [local_path(section[name]) for name in (*MANIFESTS, "task") if name in section]


class FoundPost(NamedTuple):
    """A post as its manifest has it now."""

    text: str  # may be empty
    images: tuple[Path, ...]  # absolute paths, inside the manifest's folder
    names: tuple[str, ...]  # the same, relative to the manifest
    # a class of the run, or None; of a pool post the run did not see it, so it is a truth to measure by
    label: str | None
    # Why the row is not what it was any more (a picture is gone, or it has another text); its pictures are
    # left out then. Empty for a good row.
    reason: str = ""


def find_posts(folder: RunFolder, wanted: Iterable[str]) -> dict[str, FoundPost]:
    """Find posts by id; what is in no manifest any more is left out. Each manifest is read once.

    Raises:
        RunStateError: No run folder, or a damaged one.
    """
    missing, found = set(wanted), dict[str, FoundPost]()
    section: dict[str, Any] = folder.recipe().get("data", {})
    classes = Names(folder.environment().classes)
    known = (one for one in folder.post_digests() if one.id in missing)
    before = {one.id: one.digest for one in islice(known, len(missing))}
    for path in (local_path(section[name]) for name in MANIFESTS if name in section):
        try:
            rows = Rows(path, None, columns=section.get("columns"), videos=False)
            for raw in rows.table.rows:
                if not missing:
                    return found
                fields = rows.pass_over(raw)
                if (post_id := fields.get("id")) in missing:
                    missing.remove(post_id)
                    post = _found(rows, raw, fields, classes, path.parent.resolve())
                    now = {text_digest(post.text), text_digest(post.text, post.label)}
                    if not post.reason and before.get(post_id) not in {None, *now}:
                        reason = "its text is not what it was when this began"
                        post = post._replace(images=(), names=(), reason=reason)
                    found[post_id] = post
        except (ManifestError, OSError):
            continue  # the manifest went: its posts are told without their words
    return found


def _found(rows: Rows, raw: RawRow, fields: Mapping[str, Any], classes: Names, root: Path) -> FoundPost:
    try:
        post = rows.post(raw)
    except RowError as error:
        text = fields.get("text")
        shown = text if isinstance(text, str) else ""
        return FoundPost(shown, (), (), classes.find(fields.get("label")), error.reason)
    names = tuple(os.path.relpath(image, root) for image in post.images)
    return FoundPost(post.text, post.images, names, classes.find(post.label))

"""What every importer does: rows of a published data set in, a manifest, a task and copied images out."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from selftrain.data.manifest import Problem
from selftrain.data.manifest_writing import write_manifest
from selftrain.data.posts import Post
from selftrain.data.tables import open_table
from selftrain.data.task import Task, dump_task, load_task
from selftrain.data.values import Names, RowError, text_of
from selftrain.errors import ManifestError
from selftrain.store.atomic import write_bytes

IMAGES = "images"


class Record(NamedTuple):
    """One published row, not yet judged."""

    file: Path  # the file it stands in
    line: int  # 1-based line there
    id: str  # published or made; non-empty
    text: str  # may be empty when there is an image
    image: Path | None  # the image's path, or None
    label: str | None  # a class name of the task, or None when the row has no label
    process: Mapping[str, str]  # question -> answer
    extra: Mapping[str, Any]  # the raw fields


class Source(NamedTuple):
    """What an importer reads out of a folder or file."""

    task: Task
    records: Iterable[Record | Problem]  # the rows, or in the place of a row why it cannot be used
    notes: tuple[str, ...] = ()  # what a person should know of how it was read


class Importer(NamedTuple):
    """A published data set that can be read."""

    name: str  # as the command line takes it
    summary: str  # one line for the help
    # Folder or file -> source. Raises ManifestError when the files are not there.
    read: Callable[[Path], Source]


@dataclass(frozen=True, slots=True)
class ImportedDataset:
    """What was written."""

    manifest: Path  # the manifest's path
    task: Path  # the task file's path
    posts: int  # how many posts were written
    text_only: int = 0  # how many of them lost a missing image
    skipped: tuple[Problem, ...] = ()  # the rows left out, each with its reason
    notes: tuple[str, ...] = ()  # what a person should know
    entities: int = 0  # how many texts hold HTML entities; decoded where that was asked for


@dataclass(slots=True)
class _Writing:
    out: Path
    allow_missing_images: bool
    decode_entities: bool
    entities: int = 0
    ids: set[str] = field(default_factory=set)
    missing: list[Path] = field(default_factory=list)
    skipped: list[Problem] = field(default_factory=list)


def import_dataset(
    importer: Importer,
    source: Path,
    out: Path,
    *,
    allow_missing_images: bool = False,
    decode_entities: bool = False,
) -> ImportedDataset:
    """Read a published data set and write ``manifest.jsonl``, ``task.toml`` and ``images/`` into `out`.

    Images are hard-linked where the file system allows it, else copied. The first of two rows with the same
    id stays. Rows left out are reported, never dropped in silence.

    Args:
        source: The folder, or the file, that was published.
        allow_missing_images: Keep the text of a post whose image is missing, instead of stopping.
        decode_entities: Write ``&amp;`` and its kin as the characters that they stand for.

    Raises:
        ManifestError: The files are not there, images are missing, no row can be used, or `out` has another
            task.
        OSError: The disk refuses.
    """
    if not source.exists():
        raise ManifestError(
            f"{source} does not exist; expected the files of {importer.summary}: give their folder"
        )
    read = importer.read(source)
    manifest, task = Path(out) / "manifest.jsonl", Path(out) / "task.toml"
    if task.exists() and load_task(task) != read.task:
        raise ManifestError(
            f"{task} is another task than that of {importer.name}, and may have been edited: move it away, or"
            " name another folder"
        )
    root = (source if source.is_dir() else source.parent).resolve()
    writing = _Writing(Path(out), allow_missing_images, decode_entities)
    posts = list(_posts(read.records, root, writing))
    if writing.missing and not allow_missing_images:
        raise ManifestError(
            f"{len(writing.missing):,} images are missing, {writing.missing[0]} first; put them there, "
            "or allow missing images (--allow-missing-images) to keep the text only"
        )
    if not posts:
        first = f"first: {writing.skipped[0].reason}" if writing.skipped else "it is empty"
        raise ManifestError(f"{source} holds no usable row, {len(writing.skipped):,} were left out; {first}")
    write_manifest(posts, manifest)
    dump_task(read.task, task)
    return ImportedDataset(
        manifest, task, len(posts), len(writing.missing), tuple(writing.skipped), read.notes,
        writing.entities,
    )  # fmt: skip


def _posts(records: Iterable[Record | Problem], root: Path, writing: _Writing) -> Iterator[Post]:
    for record in records:
        if isinstance(record, Problem):
            writing.skipped.append(record)
            continue
        try:
            yield _post(record, root, writing)
        except RowError as error:
            writing.skipped.append(Problem(record.line, record.id, error.reason, error.remedy))


def _post(record: Record, root: Path, writing: _Writing) -> Post:
    if record.id in writing.ids:
        raise RowError(f"id {record.id!r} was met before ({record.file.name})", "left out")
    image = None if record.image is None else _placed(record.image, root, writing)
    if not record.text.strip() and image is None:
        raise RowError("neither text nor image", "left out")
    writing.ids.add(record.id)
    text = record.text.replace("\0", "")
    decoded = html.unescape(text)
    writing.entities += decoded != text
    return Post(
        id=record.id,
        text=decoded if writing.decode_entities else text,
        images=() if image is None else (image,),
        label=record.label,
        process=record.process,
        extra=record.extra,
    )


def _placed(image: Path, root: Path, writing: _Writing) -> Path | None:
    """Put an image under ``images/``, keeping its path below the source; None when it is missing."""
    real = image.resolve()
    if not real.is_relative_to(root):
        raise RowError(f"image {image} leads out of {root}", "left out")
    if not real.is_file():
        writing.missing.append(image)
        return None
    place = writing.out / IMAGES / real.relative_to(root)
    if place.exists() and place.samefile(real):
        return place
    with suppress(OSError):  # another file system, or one without links
        place.parent.mkdir(parents=True, exist_ok=True)
        os.link(real, place)
        return place
    write_bytes(place, real.read_bytes())
    return place


def find_file(source: Path, *names: str) -> Path | None:
    """Find the first of `names` in the folder `source` or below; `source` itself when it is such a file."""
    if source.is_file():
        return source if not names or source.name in names else None
    for name in names:
        found = sorted(source.rglob(name), key=lambda path: (len(path.parts), path))
        if found:
            return found[0]
    return None


def read_records(
    path: Path,
    make: Callable[[int, dict[str, Any]], Record | Problem],  # may raise RowError too
    **how: Any,  # noqa: ANN401 -- as `open_table` takes it
) -> Iterator[Record | Problem]:
    """Make a record of line number and fields of each row, or say why it has none."""
    for row in open_table(path, **how).rows:
        if row.fields is None:
            yield Problem(row.line, None, f"{path.name}: {row.reason}", row.remedy)
            continue
        try:
            yield make(row.line, row.fields)
        except RowError as error:
            yield Problem(row.line, None, f"{path.name}: {error.reason}", error.remedy)


def published_id(value: object, what: str = "id") -> str:
    """Return an id that a manifest can have, of a number its digits.

    Raises:
        RowError: It is none.
    """
    found = text_of(value, what)
    if not found.strip():
        raise RowError(f"no {what}", "give the file as published")
    return found


def class_of(value: object, labels: Mapping[str, str]) -> str | None:
    """Return the class that a published number or word stands for, in whatever spelling; None: for none."""
    found = Names(labels).find(value)
    return None if found is None else labels[found]

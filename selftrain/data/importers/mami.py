"""MAMI (Fersini et al. 2022): memes, misogynous or not, with four kinds of misogyny as questions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from selftrain.data.importers.base import Importer, Record, Source, published_id, read_records
from selftrain.data.manifest import Problem
from selftrain.data.tables import open_table
from selftrain.data.task import load_task
from selftrain.data.values import Names
from selftrain.errors import ManifestError

TASK = load_task(Path(__file__).with_suffix(".toml"))
KINDS = tuple(question.name for question in TASK.questions)
_TEXT = "Text Transcription"
_LABELS = {"1": "misogynous", "0": "not_misogynous"}
_ANSWERS = {"1": "yes", "0": "no"}


def read(source: Path) -> Source:
    """Read tab-separated files with a ``file_name`` column, images beside; test labels have no header."""
    found = [source] if source.is_file() else sorted([*source.rglob("*.csv"), *source.rglob("*.tsv")])
    tables = [path for path in found if _header(path)[:1] == ("file_name",)]
    if not tables:
        raise ManifestError(
            f"{source} holds no tab-separated file with a file_name column; give MAMI's folder"
        )
    splits = {path: _split(path) for path in tables}
    labels = {} if source.is_file() else _test_labels(source)
    notes = tuple(f"{path.name} is {split}" for path, split in splits.items())
    return Source(TASK, _records(splits, labels), notes)


def _header(path: Path) -> tuple[str, ...]:
    try:
        return open_table(path, delimiter="\t").columns or ()
    except ManifestError:  # some other table of the folder
        return ()


def _split(path: Path) -> str:
    name = path.stem.lower()
    return "test" if "test" in name else "trial" if "trial" in name else "train"


def _test_labels(source: Path) -> dict[str, list[str]]:
    """Map file name -> misogynous and the four kinds, from the files of test labels, which have no header."""
    labels = {}
    for path in sorted(source.rglob("*abels*.txt")):
        for row in open_table(path, header=("file_name", "misogynous", *KINDS), delimiter="\t").rows:
            name, *marks = (row.fields or {"": ""}).values()
            if len(marks) == 1 + len(KINDS):
                labels[name] = marks
    return labels


def _records(splits: dict[Path, str], labels: dict[str, list[str]]) -> Iterator[Record | Problem]:
    for path, split in splits.items():
        yield from read_records(path, partial(_record, path, split, labels), delimiter="\t")


def _record(
    path: Path, split: str, labels: dict[str, list[str]], line: int, row: dict[str, Any]
) -> Record | Problem:
    name = published_id(row.get("file_name"), "file_name")
    given = [row.get(kind) for kind in ("misogynous", *KINDS)]
    marks = [Names(_LABELS).find(mark) or mark for mark in given]
    if marks[0] is None and name in labels:
        marks = [*labels[name]]
    if any(mark not in (*_LABELS, None) for mark in marks):
        return Problem(
            line, name, f"{path.name}: labels {marks}, expected 0 or 1", "give the file as published"
        )
    extra = {"file_name": name, "published_split": split}
    if split != "trial":
        # a test set whose labels are held back can only be a pool
        extra["split"] = "pool" if marks[0] is None else split
    process = {kind: _ANSWERS[mark] for kind, mark in zip(KINDS, marks[1:], strict=True) if mark is not None}
    label = None if marks[0] is None else _LABELS[marks[0]]
    post_id = name if split == "train" else f"{split}-{name}"
    return Record(path, line, post_id, row.get(_TEXT) or "", path.parent / name, label, process, extra)


MAMI = Importer(
    "mami", "MAMI, memes: misogynous or not, and four kinds (tab-separated files and images)", read
)

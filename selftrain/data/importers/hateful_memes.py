"""Hateful Memes (Kiela et al. 2020) and its fine-grained release: hateful or not, and whom they attack."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from selftrain.data.importers.base import (
    Importer,
    Record,
    Source,
    class_of,
    find_file,
    published_id,
    read_records,
)
from selftrain.data.manifest import Problem
from selftrain.data.tables import open_table
from selftrain.data.templates import load_template
from selftrain.data.values import image_list, text_of
from selftrain.errors import ManifestError

# question of the task -> the groups of `gold_pc` that it covers
GROUPS = {
    "ethnicity_or_country": ("race", "nationality"),
    "gender_or_group": ("sex", "disability"),
    "religion": ("religion",),
}
TASK = load_template("hateful-memes")
_LABELS = {"0": "not_hateful", "1": "hateful", "not_hateful": "not_hateful", "hateful": "hateful"}
_FILES = ("train", "dev", "dev_seen", "dev_unseen", "test", "test_seen", "test_unseen")


def read(source: Path) -> Source:
    """Read the JSON lines of either release (``train``, ``dev*``, ``test*``), those that are there."""
    found = {name: find_file(source, f"{name}.jsonl", f"{name}.json") for name in _FILES}
    files = {name: path for name, path in found.items() if path is not None}
    if not files:
        raise ManifestError(
            f"{source} holds none of {list(_FILES)} as .jsonl or .json; give the files' folder"
        )
    splits = _splits(files)
    plan = ", ".join(f"{name} is {split}" for name, split in splits.items())
    notes = [f"splits: {plan}; rows without label are written unlabelled"]
    notes += [
        f"{name} has no labels: its posts go to the pool, but those that a labelled file has too"
        for name, split in splits.items()
        if split == "pool"
    ]
    return Source(TASK, _records(files, splits), tuple(notes))


def _splits(files: dict[str, Path]) -> dict[str, str]:
    """Map published file -> split; without a labelled test file the development posts are the test."""
    labelled = {name for name, path in files.items() if _labelled(path)}
    tested = any(name.startswith("test") for name in labelled)
    splits = {}
    # of a post that stands in two files the first row counts: those with labels come first
    for name in sorted(files, key=lambda name: name not in labelled):
        if name not in labelled:
            splits[name] = "pool"
        elif name.startswith("dev"):
            splits[name] = "validation" if tested else "test"
        else:
            splits[name] = name.partition("_")[0]
    return splits


def _labelled(path: Path) -> bool:
    return any(row.fields and _label(row.fields) is not None for row in open_table(path).rows)


def _records(files: dict[str, Path], splits: dict[str, str]) -> Iterator[Record | Problem]:
    for name, split in splits.items():
        yield from read_records(files[name], partial(_record, files[name], name, split))


def _record(path: Path, name: str, split: str, line: int, fields: dict[str, Any]) -> Record | Problem:
    post_id = published_id(fields.get("id"))
    label = _label(fields)
    if label is not None and label not in TASK.names:
        return Problem(line, post_id, f"{path.name}: label {label}", "expected 0, 1, hateful or not_hateful")
    images = image_list(fields.get("img"), 1)
    image = path.parent / str(images[0]) if images else None
    extra = {key: value for key, value in fields.items() if key not in ("id", "text", "img", "label")}
    # a post without label can be neither learned from nor measured on
    extra |= {"published_split": name, "split": "pool" if label is None else split}
    text = text_of(fields.get("text"), "text")
    return Record(path, line, post_id, text, image, label, _process(fields), extra)


def _label(fields: dict[str, Any]) -> str | None:
    """Return the class, None where there is no label, or what stands there instead of one."""
    found = fields.get("gold_hate", fields.get("label"))
    if isinstance(found, list):
        found = found[0] if len(found) == 1 else str(found)
    return None if found is None or found == "" else class_of(found, _LABELS) or repr(found)


def _process(fields: dict[str, Any]) -> dict[str, str]:
    if not isinstance(fields.get("gold_pc"), list):
        return {}
    attacked = set(map(str, fields["gold_pc"]))
    return {name: "yes" if attacked & set(groups) else "no" for name, groups in GROUPS.items()}


HATEFUL_MEMES = Importer(
    "hateful-memes",
    "Hateful Memes, original or fine-grained release (train, dev, test JSON lines and img/)",
    read,
)

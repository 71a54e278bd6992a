"""HarMeme (Pramanick et al. 2021): memes, harmful or harmless; as MOMENTA publishes it, or as a manifest."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from selftrain.data.importers.base import Importer, Record, Source, find_file, published_id, read_records
from selftrain.data.manifest import Problem
from selftrain.data.task import load_task
from selftrain.data.values import image_list, text_of
from selftrain.errors import ManifestError

TASK = load_task(Path(__file__).with_suffix(".toml"))
TARGETS = TASK.questions[0].answers[:-1]  # the last is "none"
_SEVERITIES = {"very harmful": "harmful", "somewhat harmful": "harmful", "not harmful": "harmless"}
_SPLITS = {"train": "train", "val": "validation", "test": "test"}


def read(source: Path) -> Source:
    """Read ``train.jsonl``, ``val.jsonl`` and ``test.jsonl``, those that are there, images near."""
    files = {name: path for name in _SPLITS if (path := find_file(source, f"{name}.jsonl")) is not None}
    if not files:
        raise ManifestError(
            f"{source} holds none of {[f'{name}.jsonl' for name in _SPLITS]}; give their folder"
        )
    whole = len(files) == len(_SPLITS)
    note = (
        "train, val and test are the splits"
        if whole
        else f"only {sorted(files)} there: no splits are written"
    )
    return Source(TASK, _records(source, files, whole), (note,))


def _records(source: Path, files: dict[str, Path], whole: bool) -> Iterator[Record | Problem]:
    folders = [path for path in (source, *source.rglob("images"), *source.rglob("img")) if path.is_dir()]
    for split, path in files.items():
        make = partial(_record, path, split, folders, whole=whole)
        yield from read_records(path, make)


def _record(
    path: Path, split: str, folders: list[Path], line: int, fields: dict[str, Any], *, whole: bool
) -> Record | Problem:
    post_id = published_id(fields.get("id"))
    labels = fields.get("labels") or [fields.get("severity")]
    severity = labels[0] if isinstance(labels, list) else None
    label = _SEVERITIES.get(severity) if isinstance(severity, str) else fields.get("label")
    if label not in TASK.names:
        found = fields.get("labels", fields.get("label"))
        return Problem(line, post_id, f"{path.name}: label {found!r}", f"expected {list(_SEVERITIES)}")
    targets = labels[1:] if "labels" in fields else None
    if targets and not all(one in TARGETS for one in targets):
        return Problem(
            line, post_id, f"{path.name}: targets {targets!r}", f"expected some of {list(TARGETS)}"
        )
    process = {} if targets is None else {"target": targets[0] if targets else "none"}
    images = image_list(fields.get("images") or fields.get("image"), 1)
    read = ("id", "text", "images", "image", "label")
    extra = {key: value for key, value in fields.items() if key not in read}
    extra["published_split"] = split
    if whole:
        extra["split"] = _SPLITS[split]
    image = _find_image(path.parent, folders, str(images[0])) if images else None
    return Record(path, line, post_id, text_of(fields.get("text"), "text"), image, label, process, extra)


def _find_image(beside: Path, folders: list[Path], written: str) -> Path:
    """Return where the image is, or else where it was expected."""
    places = [folder / written for folder in (beside, *folders)]
    return next((place for place in places if place.is_file()), places[0])


HARMEME = Importer("harmeme", "HarMeme, memes: harmful or harmless (train, val, test.jsonl and images)", read)

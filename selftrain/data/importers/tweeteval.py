"""TweetEval (Barbieri et al. 2020): tweets, their emotion (of SemEval 2018), offensive or not (of 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from selftrain.data.columns import SPLIT
from selftrain.data.importers.base import Importer, Record, Source, find_file
from selftrain.data.manifest import Problem
from selftrain.data.tables import read_text
from selftrain.data.task import Task, load_task
from selftrain.errors import ManifestError

EMOTION, OFFENSIVE = (
    load_task(Path(__file__).with_name(f"tweeteval-{name}.toml")) for name in ("emotion", "offensive")
)
_PARTS = {"train": "train", "val": "validation", "test": "test"}


def read(task: Task, source: Path) -> Source:
    """Read ``mapping.txt``, and texts and labels of those parts (train, val, test) that are there."""
    folder = task.name.removeprefix("tweeteval-")
    mapping = find_file(source, "mapping.txt") if source.is_dir() else None
    if mapping is None:
        raise ManifestError(
            f"{source} holds no mapping.txt; give the folder `{folder}` of TweetEval's datasets"
        )
    rows = [line.split() for line in read_text(mapping).splitlines() if line.strip()]
    names = {row[0]: row[-1] for row in rows}
    if set(names.values()) != set(task.names):
        raise ManifestError(
            f"{mapping} names the classes {sorted(names.values())}; expected {sorted(task.names)}: give the"
            f" folder `{folder}`"
        )
    return Source(task, _records(mapping.parent, names), ("the published parts stand in the field `split`",))


def _records(folder: Path, names: dict[str, str]) -> Iterator[Record | Problem]:
    for part, split in _PARTS.items():
        texts, labels = folder / f"{part}_text.txt", folder / f"{part}_labels.txt"
        if not texts.exists():
            continue
        # by line feeds alone: tweets hold other characters that some take for the end of a line
        lines, numbers = (
            read_text(path).removesuffix("\n").split("\n") if path.exists() else []
            for path in (texts, labels)
        )
        if len(lines) != len(numbers):
            raise ManifestError(
                f"{texts} has {len(lines):,} lines and {labels.name} {len(numbers):,}; expected as many:"
                " fetch both again"
            )
        for line, (text, number) in enumerate(zip(lines, numbers, strict=True), 1):
            label = names.get(number.strip())
            if label is None:
                reason = f"label {number!r} is none of {sorted(names)}"
                yield Problem(line, f"{part}-{line}", reason, "correct the file")
                continue
            yield Record(texts, line, f"{part}-{line}", text, None, label, {}, {SPLIT: split})


TWEETEVAL = tuple(
    Importer(task.name, f"TweetEval, tweets: {classes} (text and label files)", partial(read, task))
    for task, classes in ((EMOTION, "anger, joy, optimism or sadness"), (OFFENSIVE, "offensive or not"))
)

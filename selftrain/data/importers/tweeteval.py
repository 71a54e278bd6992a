"""TweetEval's emotion task (Barbieri et al. 2020, of SemEval 2018 task 1): tweets, four classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from selftrain.data.columns import SPLIT
from selftrain.data.importers.base import Importer, Record, Source, find_file
from selftrain.data.manifest import Problem
from selftrain.data.tables import read_text
from selftrain.data.task import Task, TaskClass
from selftrain.errors import ManifestError

TASK = Task(
    name="tweeteval-emotion",
    classes=(
        TaskClass("anger", "annoyance, rage, contempt, or a quarrel sought"),
        TaskClass("joy", "happiness, amusement, delight or love"),
        TaskClass("optimism", "hope, trust that things will go well, or courage given to others"),
        TaskClass("sadness", "sorrow, grief, loneliness, disappointment or despair"),
    ),
    positive="anger",
    policy=(
        "Judge the emotion that the person who writes the tweet most likely feels, not the topic and not"
        " what others in it feel. A tweet that jokes about its own misery has the emotion under the joke."
        " Anger is against somebody or something; sadness suffers from it. Joy is about what is; optimism is"
        " about what may come, and maxims that encourage belong to it. Where two are felt, the stronger one"
        " decides."
    ),
)
_PARTS = {"train": "train", "val": "validation", "test": "test"}


def read(source: Path) -> Source:
    """Read ``mapping.txt``, and texts and labels of those parts (train, val, test) that are there."""
    mapping = find_file(source, "mapping.txt") if source.is_dir() else None
    if mapping is None:
        raise ManifestError(
            f"{source} holds no mapping.txt; give the folder `emotion` of TweetEval's datasets"
        )
    rows = [line.split() for line in read_text(mapping).splitlines() if line.strip()]
    names = {row[0]: row[-1] for row in rows}
    if set(names.values()) != set(TASK.names):
        raise ManifestError(
            f"{mapping} names the classes {sorted(names.values())}; expected {sorted(TASK.names)}: give the"
            " folder `emotion`"
        )
    return Source(TASK, _records(mapping.parent, names), ("the published parts stand in the field `split`",))


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


TWEETEVAL_EMOTION = Importer(
    "tweeteval-emotion",
    "TweetEval emotion, tweets: anger, joy, optimism or sadness (text and label files)",
    read,
)

"""TweetEval (Barbieri et al. 2020): tweets, their emotion (of SemEval 2018), offensive or not (of 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from selftrain.data.columns import SPLIT
from selftrain.data.importers.base import Importer, Record, Source, find_file
from selftrain.data.manifest import Problem
from selftrain.data.tables import read_text
from selftrain.data.task import Task, TaskClass
from selftrain.errors import ManifestError

EMOTION = Task(
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
OFFENSIVE = Task(
    name="tweeteval-offensive",
    classes=(
        TaskClass("not-offensive", "no insult, threat or profanity, however sharp the opinion"),
        TaskClass("offensive", "insults, threats or profane words, whoever or whatever they are aimed at"),
    ),
    positive="offensive",
    policy=(
        "A tweet is offensive if it holds unacceptable language: an insult or a threat, veiled or open, to a"
        " person or a group, or swear words aimed at nobody. Disagreement, criticism and anger in words that"
        " could be printed are not."
    ),
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

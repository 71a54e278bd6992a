"""Published posts with their labels, straight from the importers."""

from __future__ import annotations

import importlib
import random
from pathlib import Path

from selftrain.data.importers.base import Record
from selftrain.data.posts import Post
from selftrain.data.task import Task
from selftrain.errors import ManifestError

_SOURCES = {"hsol": "hsol/labeled_data.csv", "harmeme": "harmeme"}


def drawn_posts(name: str, data: Path, count: int, seed: int) -> tuple[Task, list[Post]]:
    """The task and `count` labelled posts, drawn by the seed.

    Args:
        name: "hsol" or "harmeme".
        data: The folder that holds both.
        count: How many posts.
        seed: Of the draw.

    Raises:
        ManifestError: They are not there.
    """
    source = importlib.import_module(f"selftrain.data.importers.{name}").read(data / _SOURCES[name])
    posts = [
        Post(record.id, record.text, () if record.image is None else (record.image,), record.label)
        for record in source.records
        if isinstance(record, Record) and record.label is not None
    ]
    if len(posts) < count:
        raise ManifestError(
            f"{data / _SOURCES[name]} holds {len(posts)} labelled posts; {count} were asked for"
        )
    return source.task, random.Random(seed).sample(posts, count)

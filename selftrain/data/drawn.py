"""A small data set that the package draws itself, for a first run without any download.

A community notice board: is a post an invitation to something people do together, or an advertisement of
something for sale? Words and pictures both tell, and neither tells always: the words of some posts fit both
classes, and so do the pictures of others, but never both of one post. The truth is therefore without noise.
Everything follows from the seed, to the byte.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from selftrain.data.drawn_pictures import draw_picture
from selftrain.data.drawn_words import write_words
from selftrain.data.manifest_writing import write_manifest
from selftrain.data.posts import Post
from selftrain.data.task import Task, TaskClass

INVITATION, ADVERTISEMENT = "invitation", "advertisement"
# shares of posts by what they are made of; the rest has words and one picture
_TEXT_ONLY, _IMAGE_ONLY, _ALBUM = 0.08, 0.08, 0.06
# shares, among posts with both, whose words (or whose pictures) fit both classes
_VAGUE_WORDS, _VAGUE_PICTURES = 0.35, 0.35

DRAWN_TASK = Task(
    name="notice-board",
    classes=(
        TaskClass(INVITATION, "asks people to come and do something together"),
        TaskClass(ADVERTISEMENT, "offers something for sale or for hire"),
    ),
    positive=INVITATION,
    policy=(
        "A notice is an invitation when it asks the neighbours to come and do something together: a walk, a "
        "meal, a repair morning, music. Pictures of several people together, now and then under bunting, "
        "belong to it. A notice is an advertisement when it offers goods or a service for money. Pictures of "
        "many wares, now and then with a price, belong to it. Where the words leave it open the picture "
        "decides, and the other way round."
    ),
)


def draw_posts(folder: Path, count: int = 900, seed: int = 0) -> Path:
    """Writes ``manifest.jsonl``, ``task.toml`` and ``images/`` into `folder`; the manifest's path.

    The same count and seed give the same bytes, with the same version of Pillow.

    Args:
        folder: Made if need be; files of the same names are replaced.
        count: How many posts, at least 2; half of each class.
        seed: Any integer.

    Raises:
        ValueError: `count` is below 2.
        OSError: The disk refuses.
    """
    from selftrain.data.task import dump_task

    if count < 2:
        raise ValueError(f"{count} posts; expected at least 2, one of each class")
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.jsonl"
    write_manifest(_posts(folder, count, random.Random(seed)), manifest)
    dump_task(DRAWN_TASK, folder / "task.toml")
    return manifest


def _posts(folder: Path, count: int, chance: random.Random) -> Iterator[Post]:
    labels = [(INVITATION, ADVERTISEMENT)[position % 2] for position in range(count)]
    chance.shuffle(labels)
    told: set[str] = set()
    for number, label in enumerate(labels):
        pictures, vague_words, vague_pictures, silent = _plan(chance)
        text = "" if silent else write_words(label == INVITATION, vague_words, chance, told)
        images = []
        for position in range(pictures):
            path = folder / "images" / f"{number:05d}-{position}.png"
            draw_picture(label == INVITATION, vague_pictures, chance).save(path)
            images.append(path)
        yield Post(id=f"notice-{number:05d}", text=text, images=tuple(images), label=label)


def _plan(chance: random.Random) -> tuple[int, bool, bool, bool]:
    """How many pictures, whether the words and the pictures are vague, and whether there are no words."""
    kind, doubt = chance.random(), chance.random()
    if kind < _TEXT_ONLY:
        return 0, False, False, False
    if kind < _TEXT_ONLY + _IMAGE_ONLY:
        return 1, False, False, True
    pictures = 2 if kind < _TEXT_ONLY + _IMAGE_ONLY + _ALBUM else 1
    return pictures, doubt < _VAGUE_WORDS, doubt > 1 - _VAGUE_PICTURES, False

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
from typing import TYPE_CHECKING

from selftrain.data.manifest_writing import write_manifest
from selftrain.data.posts import Post
from selftrain.data.task import dump_task, load_task

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

INVITATION, ADVERTISEMENT = "invitation", "advertisement"
# shares of posts by what they are made of; the rest has words and one picture
_TEXT_ONLY, _IMAGE_ONLY, _ALBUM = 0.08, 0.08, 0.06
# shares, among posts with both, whose words (or whose pictures) fit both classes
_VAGUE_WORDS, _VAGUE_PICTURES = 0.35, 0.35

DRAWN_TASK = load_task(Path(__file__).with_suffix(".toml"))


def draw_posts(folder: Path, count: int = 900, seed: int = 0) -> Path:
    """Write ``manifest.jsonl``, ``task.toml`` and ``images/`` into `folder`; return the manifest's path.

    The same count and seed give the same bytes, with the same version of Pillow.

    Args:
        folder: Made if need be; files of the same names are replaced.
        count: How many posts, at least 2; half of each class.
        seed: Any integer.

    Raises:
        ValueError: `count` is below 2.
        OSError: The disk refuses.
    """
    if count < 2:
        raise ValueError(f"{count} posts; expected at least 2, one of each class")
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.jsonl"
    write_manifest(_posts(folder, count, random.Random(int(seed))), manifest)
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
    """Decide how many pictures, whether words and pictures are vague, and whether there are no words."""
    kind, doubt = chance.random(), chance.random()
    if kind < _TEXT_ONLY:
        return 0, False, False, False
    if kind < _TEXT_ONLY + _IMAGE_ONLY:
        return 1, False, False, True
    pictures = 2 if kind < _TEXT_ONLY + _IMAGE_ONLY + _ALBUM else 1
    return pictures, doubt < _VAGUE_WORDS, doubt > 1 - _VAGUE_PICTURES, False


_THINGS = (
    "bicycles", "apple cake", "paper kites", "wooden boats", "old maps", "garden herbs", "board games",
    "guitars", "knitted scarves", "telescopes", "pottery", "tomato plants", "film cameras",
    "chess sets", "toy trains", "camping tents", "fresh bread", "painted lanterns", "story books",
    "drums", "honey", "rowing boats", "house plants", "vinyl records", "pumpkins", "puppets",
    "skateboards", "sewing machines", "strawberry jam", "walking boots", "bird boxes", "water colours",
)  # fmt: skip
_PLACES = (
    "in the old library", "behind the bakery", "by the canal", "at the corner of Mill ", "Lane",
    "in the school yard", "next to the fountain", "on the green", "at the boat house",
    "under the railway ", "arches", "in the church hall", "by the tram stop", "in the market square",
    "at number twelve", "in the barn on the ", "hill", "near the playground",
)  # fmt: skip
_TIMES = (
    "on Saturday morning", "this Sunday", "on Friday evening", "next Wednesday", "from nine to noon",
    "all weekend", "after work on Thursday", "on the first of May", "every Tuesday", "at half past six",
    "tomorrow afternoon", "until the end of the month", "the day after the fair", "on Monday at four",
)  # fmt: skip
_INVITING = (
    "We meet to talk about {thing} and everyone is welcome.",
    "Come along and bring your own {thing}, we share what we have.",
    "Who would like to join a small circle of people who love {thing}?",
    "Let us spend some hours together over {thing}.",
    "Neighbours gather for {thing}, no experience needed, just turn up.",
    "Bring a friend and help us mend {thing}.",
    "Our group looks forward to new faces, we do {thing}.",
    "Children and grandparents alike can take part: {thing} for all.",
    "An open table, {thing} and good company.",
    "Take a seat with us, we try out {thing} together.",
)
_SELLING = (
    "{thing} for twenty, two for thirty five.",
    "New stock of {thing} has arrived at our counter.",
    "We sell and deliver {thing}, cards accepted.",
    "Large choice of {thing}, order yours while they last.",
    "A third off all {thing} with this notice.",
    "Hand made {thing}, fair rates, ask for our list.",
    "Second hand {thing}, hardly used, make me an offer.",
    "{thing} to hire by the day, deposit required.",
    "Our shop has the finest {thing}, have a look at the window.",
    "Clearing the cellar: {thing}, cash only.",
)
_OPEN = (
    "{thing}, as every year.",
    "It is all about {thing} again.",
    "For everybody who cannot get enough of {thing}.",
    "You asked for {thing}, here it is.",
    "{thing}, come rain or shine.",
    "Have you thought of {thing} lately?",
    "Something for friends of {thing}.",
    "A word about {thing}.",
    "{thing} and a little more.",
    "Do not miss it: {thing}.",
)
_ASIDES = (
    "Please use the side door.", "Dogs are fine.", "Parking is scarce.", "Ring the upper ", "bell.",
    "Ask for Noor.", "Ask for Tomas.", "Write to the address below.", "The yard is lit.",
    "If it is wet we move inside.", "Tell the others.", "Mind the step.", "The blue gate is open.",
    "Call Ines before ", "noon.", "See you there.", "Look for the yellow sign.",
    "Thank you for last time.", "Bags are at hand.", "It is free of hurry.", "Coffee at the counter.",
    "There is room for a pram.",
)  # fmt: skip


def write_words(invitation: bool, vague: bool, chance: random.Random, told: set[str]) -> str:
    """Write a notice that `told` does not hold yet, and add it there.

    A vague one has a line that fits both classes, any other tells its class.
    """
    while True:
        lines = _OPEN if vague else _INVITING if invitation else _SELLING
        telling = chance.choice(lines).format(thing=chance.choice(_THINGS))
        where = f"{chance.choice(_PLACES)} {chance.choice(_TIMES)}."
        parts = [telling[0].upper() + telling[1:], where[0].upper() + where[1:]]
        parts += chance.sample(_ASIDES, chance.randint(0, 2))
        chance.shuffle(parts)
        text = " ".join(parts)
        if text not in told:
            told.add(text)
            return text


SIDE = 128
Colour = tuple[int, int, int]


def draw_picture(invitation: bool, vague: bool, chance: random.Random) -> Image.Image:
    """Draw a picture of `SIDE` x `SIDE` pixels.

    It shows people who come together, or else wares for sale; a vague one at most one of each.
    """
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (SIDE, SIDE), _colour(chance, 90, 255))
    draw = ImageDraw.Draw(image)
    _scenery(draw, chance)
    _clutter(draw, chance, chance.randint(3, 9))
    if chance.random() < 0.4:
        _house(draw, chance)
    # a lone seller may stand by the wares, a lone crate by the people: only who or what is many tells
    people = chance.randint(2, 4) if invitation and not vague else chance.randint(0, 1)
    wares = chance.randint(2, 4) if not invitation and not vague else chance.randint(0, 1)
    _people(draw, chance, people)
    _wares(draw, chance, wares)
    if not vague and chance.random() < 0.25:
        (_bunting if invitation else _price)(draw, chance)
    _clutter(draw, chance, chance.randint(1, 6))
    return image


def _colour(chance: random.Random, low: int, high: int) -> Colour:
    return chance.randint(low, high), chance.randint(low, high), chance.randint(low, high)


def _scenery(draw: ImageDraw.ImageDraw, chance: random.Random) -> None:
    """Draw hills or a street: a few broad shapes, so that no two pictures look alike from afar."""
    for _ in range(chance.randint(2, 4)):
        x, y, width = chance.randint(-60, 110), chance.randint(20, 110), chance.randint(50, 150)
        box = (x, y, x + width, y + chance.randint(40, 110))
        shape = draw.ellipse if chance.random() < 0.6 else draw.rectangle
        shape(box, fill=_colour(chance, 40, 220))
    horizon = chance.randint(70, 112)
    draw.polygon(
        [(0, horizon), (SIDE, chance.randint(70, 112)), (SIDE, SIDE), (0, SIDE)],
        fill=_colour(chance, 40, 200),
    )


def _clutter(draw: ImageDraw.ImageDraw, chance: random.Random, count: int) -> None:
    """Draw shapes that mean nothing and stand in pictures of either class."""
    for _ in range(count):
        x, y, size = chance.randint(0, SIDE), chance.randint(0, SIDE), chance.randint(3, 14)
        shape = chance.choice((draw.ellipse, draw.rectangle, None))
        if shape is None:
            draw.line(
                (x, y, x + chance.randint(-40, 40), y + chance.randint(-40, 40)), _colour(chance, 0, 255), 2
            )
        else:
            shape((x, y, x + size, y + size), fill=_colour(chance, 0, 255))


def _house(draw: ImageDraw.ImageDraw, chance: random.Random) -> None:
    x, y, width = chance.randint(5, 70), chance.randint(45, 70), chance.randint(30, 50)
    draw.rectangle((x, y, x + width, y + 45), fill=_colour(chance, 60, 230))
    draw.polygon([(x - 4, y), (x + width // 2, y - 25), (x + width + 4, y)], fill=_colour(chance, 60, 230))
    draw.rectangle((x + 8, y + 12, x + 16, y + 22), fill=_colour(chance, 0, 255))


def _people(draw: ImageDraw.ImageDraw, chance: random.Random, count: int) -> None:
    for _ in range(count):
        x, y, size = chance.randint(8, 112), chance.randint(50, 88), chance.randint(5, 9)
        skin, coat = chance.choice(((92, 60, 40), (150, 104, 72), (224, 180, 146))), _colour(chance, 0, 255)
        draw.polygon([(x, y), (x - size, y + 3 * size), (x + size, y + 3 * size)], fill=coat)
        draw.ellipse((x - size // 2 - 1, y - size, x + size // 2 + 1, y + 2), fill=skin)


def _bunting(draw: ImageDraw.ImageDraw, chance: random.Random) -> None:
    height, step = chance.randint(8, 34), chance.randint(10, 18)
    draw.line((0, height, SIDE, height), fill=(60, 60, 60))
    for x in range(chance.randint(0, 8), SIDE, step):
        draw.polygon(
            [(x, height), (x + step - 3, height), (x + step // 2, height + 9)], fill=_colour(chance, 30, 255)
        )


def _wares(draw: ImageDraw.ImageDraw, chance: random.Random, count: int) -> None:
    for _ in range(count):
        x, y, width = chance.randint(4, 100), chance.randint(50, 92), chance.randint(12, 24)
        height = chance.randint(10, 22)
        draw.rectangle((x, y, x + width, y + height), fill=_colour(chance, 0, 255), outline=(40, 30, 20))
        for _ in range(chance.randint(0, 3)):
            left = x + chance.randint(0, width - 6)
            draw.ellipse((left, y - 5, left + 7, y + 2), fill=_colour(chance, 0, 255))


def _price(draw: ImageDraw.ImageDraw, chance: random.Random) -> None:
    x, y = chance.randint(4, 84), chance.randint(4, 34)
    draw.polygon(
        [(x, y + 7), (x + 8, y), (x + 38, y), (x + 38, y + 14), (x + 8, y + 14)], fill=(250, 236, 120)
    )
    draw.text((x + 12, y + 2), f"{chance.randint(1, 99)}.-", fill=(30, 30, 30))

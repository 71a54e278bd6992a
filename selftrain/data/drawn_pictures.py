"""The pictures of the drawn notices: a ground, a sky, and people under bunting or wares with price tags."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

SIDE = 128
Colour = tuple[int, int, int]


def draw_picture(invitation: bool, vague: bool, chance: random.Random) -> Image.Image:
    """A picture of `SIDE` x `SIDE` pixels.

    Args:
        invitation: Whether to show people who come together, or else wares for sale.
        vague: Show at most one of each, which tells nothing.
        chance: Drawn from.
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
    """Hills or a street: a few broad shapes, so that no two pictures look alike from afar."""
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
    """Shapes that mean nothing and stand in pictures of either class."""
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

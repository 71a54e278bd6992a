"""The JSON of a request to posts, and results to the JSON of the answer. Everything a client sends is data.

What is wrong with the request as a whole (its form, its limits) refuses all of it; what is wrong with one
picture is said of that post, and the others are scored. No URL is ever fetched: pictures travel as bytes.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backbones.errors import ImageError
from backbones.images import check_image
from selftrain._util.types import Json
from selftrain.data.posts import MAX_IMAGES, Post
from selftrain.models.predictor import Prediction

_SHOWN = 60


class RequestLimits(NamedTuple):
    """What one request may hold.

    Attributes:
        body: Bytes.
        posts: Posts.
        text: Characters of one text.
        image: Bytes of one image file, decoded from base64.
        pixels: Width x height that an image's header may claim.
    """

    body: int = 20_000_000
    posts: int = 256
    text: int = 20_000
    image: int = 10_000_000
    pixels: int = 50_000_000


class BadRequestError(Exception):
    """A request that is refused. Never leaves the server.

    Attributes:
        status: 400 for what is no JSON, 413 for too much, 422 for another form than expected.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class GivenPost(NamedTuple):
    """One post as it came: its images as the bytes of files, or the reason why it cannot be scored."""

    id: str
    text: str
    images: tuple[bytes, ...]
    reason: str = ""


class Placed(NamedTuple):
    """Posts with their images in files.

    Attributes:
        ids: As the client wrote them, in order.
        posts: Position -> post, of those that can be scored; their ids are the server's own.
        reasons: Position -> why not, of the others.
    """

    ids: tuple[str, ...]
    posts: dict[int, Post]
    reasons: dict[int, str]


def parse(body: bytes, limits: RequestLimits) -> list[GivenPost]:
    """Read the posts of a request: ``{"posts": [...]}``, or one post by itself.

    Raises:
        BadRequestError: See there.
    """
    try:
        given = json.loads(body.decode())
    except UnicodeDecodeError as error:
        raise BadRequestError(
            400, f"the body is not UTF-8 (byte {error.start}); expected JSON in UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadRequestError(400, f"the body is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise BadRequestError(422, f'the body is {_kind(given)}; expected an object with "posts", or a post')
    alone = "posts" not in given
    listed = given.get("posts")
    if isinstance(listed, list) and len(listed) > limits.posts:  # before any of them is looked at
        raise BadRequestError(
            413, f"{len(listed)} posts; at most {limits.posts} in one request: send several requests"
        )
    try:
        posts = [_Post.model_validate(given)] if alone else _Body.model_validate(given).posts
    except ValidationError as error:
        raise _refusal(error, alone=alone) from error
    places = ["the post"] if alone else [f"posts[{number}]" for number in range(len(posts))]
    parsed = [_read(one, place, limits) for one, place in zip(posts, places, strict=True)]
    _distinct(parsed)
    return parsed


def place(given: Iterable[GivenPost], folder: Path, max_pixels: int) -> Placed:
    """Write the images into `folder`, and judge them by their headers; nothing is decoded here."""
    ids: list[str] = []
    posts: dict[int, Post] = {}
    reasons: dict[int, str] = {}
    for number, one in enumerate(given):
        ids.append(one.id)
        paths = [folder / f"{number}-{image}" for image in range(len(one.images))]
        reason = one.reason
        for path, content in zip(paths, one.images, strict=True):
            path.write_bytes(content)
            try:
                check_image(path, max_pixels=max_pixels)
            except ImageError as error:
                reason = reason or str(error)
        post = Post(f"{folder.name}-{number}", one.text, tuple(paths))
        if reason:
            reasons[number] = without_paths(reason, post)
        else:
            posts[number] = post
    return Placed(tuple(ids), posts, reasons)


def answer(name: str, placed: Placed, results: Sequence[Prediction]) -> Json:
    """Build the answer to a request; `results` are those of `placed.posts`, in order."""
    reasons, scored = dict(placed.reasons), {}
    for (number, post), result in zip(placed.posts.items(), results, strict=True):
        if result.reason:
            reasons[number] = without_paths(result.reason, post)
        else:
            scored[number] = result.to_json()
    return {
        "model": name,
        "scores": [
            {"id": post_id} | (scored[number] if number in scored else {"error": reasons[number]})
            for number, post_id in enumerate(placed.ids)
        ],
    }


def without_paths(reason: str, post: Post) -> str:
    """Rewrite `reason` with the server's own file names as the client knows them: images by their place."""
    for number, path in enumerate(post.images):
        reason = reason.replace(str(path), f"images[{number}]")
    return reason


# ---- the form of a request ----------------------------------------------------------------------------


class _Form(BaseModel):
    """An unknown field is refused: a typing slip would be an answer about something else."""

    model_config = ConfigDict(strict=True, extra="forbid")


class _Post(_Form):
    id: str | None = None
    text: str | None = None
    images: list[str] = []


class _Body(_Form):
    posts: list[_Post] = Field(min_length=1)


_FILE = 'the file\'s bytes in base64, or "data:image/...;base64,..."'
_FIELDS = ", ".join(_Post.model_fields)


def _refusal(error: ValidationError, *, alone: bool) -> BadRequestError:
    """Say of the first fault where it is, what was found there and what was expected."""
    fault = error.errors(include_url=False)[0]
    loc, found = fault["loc"], fault["input"]
    if fault["type"] == "extra_forbidden":
        parent = _where(loc[:-1], alone=alone)
        expected = _FIELDS if alone or len(loc) > 1 else "posts"
        shown = str(loc[-1])[:_SHOWN]
        return BadRequestError(422, f"{parent} has the unknown field {shown!r}; expected {expected}")
    where = _where(loc, alone=alone)
    if fault["type"] == "string_unicode":  # the name of a field; texts are looked at later
        return BadRequestError(422, f"{where} has an unknown field that is no text; expected {_FIELDS}")
    match loc:
        case ("posts",):
            expected = "a list of at least one post"
        case (*_, "images"):
            expected = "a list of base64 texts"
        case (*_, "images", int()):
            expected = _FILE
        case (*_, str()):
            expected = "a text"
        case _:
            expected = f"an object with {_FIELDS}"
    return BadRequestError(422, f"{where} is {_kind(found)}; expected {expected}")


def _where(loc: Sequence[int | str], *, alone: bool) -> str:
    """Write a place as a client would write it: ``posts[3].images[0]``."""
    parts = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return f"the post{parts}" if alone else parts.lstrip(".") or "the body"


# ---- what a post of good form holds ---------------------------------------------------------------------


def _read(given: _Post, where: str, limits: RequestLimits) -> GivenPost:
    if not given.id:
        raise BadRequestError(422, f"{where}.id is empty or absent; expected a text, to find its score by")
    post_id = _text(given.id, f"{where}.id", 1000)
    text = _text(given.text or "", f"{where}.text", limits.text)
    if len(given.images) > MAX_IMAGES:
        raise BadRequestError(422, f"{where}.images has {len(given.images)}; at most {MAX_IMAGES}")
    if not text.strip() and not given.images:
        return GivenPost(post_id, text, (), "neither text nor image: give the post one of them, or both")
    files = tuple(_image(one, f"{where}.images[{n}]", limits.image) for n, one in enumerate(given.images))
    return GivenPost(post_id, text, files)


def _image(given: str, where: str, most: int) -> bytes:
    expected = f"expected {_FILE}"
    encoded = given
    if given[:5].lower() == "data:":
        header, _, encoded = given.partition(",")
        if not header.lower().endswith(";base64"):
            raise BadRequestError(422, f"{where} is a data: URI without ;base64; {expected}")
    elif "://" in given[:20]:
        raise BadRequestError(422, f"{where} is a URL, and none is fetched; {expected}")
    if len(encoded) * 3 // 4 > most + 2:  # before anything is decoded
        raise BadRequestError(413, f"{where} has about {len(encoded) * 3 // 4:,} bytes; at most {most:,}")
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequestError(422, f"{where} is not base64 ({error}); {expected}") from error
    if not content:
        raise BadRequestError(422, f"{where} is empty; {expected}")
    return content


def _text(given: str, where: str, most: int) -> str:
    if len(given) > most:
        raise BadRequestError(413, f"{where} has {len(given):,} characters; at most {most:,}")
    # an escaped half of a surrogate pair is legal JSON, but no text
    if "\0" in given or (not given.isascii() and any("\ud800" <= mark <= "\udfff" for mark in given)):
        raise BadRequestError(422, f"{where} holds a NUL or half a surrogate pair; expected Unicode text")
    return given


def _distinct(posts: Sequence[GivenPost]) -> None:
    met: set[str] = set()
    for post in posts:
        if post.id in met:
            raise BadRequestError(422, f"id {post.id[:_SHOWN]!r} stands twice; expected every id once")
        met.add(post.id)


def _kind(value: object) -> str:
    """Name what a JSON value is, in words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number"}
    if value in ([], {}, ""):
        return f"{names[type(value)]} without contents"
    return names[type(value)]

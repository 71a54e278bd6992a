"""The JSON of a request to posts, and results to the JSON of the answer. Everything a client sends is data.

What is wrong with the request as a whole (its form, its limits) refuses all of it; what is wrong with one
picture is said of that post, and the others are scored. No address is ever fetched: pictures travel as bytes.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from selftrain._util.types import Json
from selftrain.data.posts import MAX_IMAGES, Post
from selftrain.models.scorer import PostScore, ScoreFailure

_POST_FIELDS = ("id", "text", "images")
_DECIMALS = 6  # as `selftrain predict` writes them
_SHOWN = 60


class Limits(NamedTuple):
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


class RequestError(Exception):
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


def parse(body: bytes, limits: Limits) -> list[GivenPost]:
    """The posts of a request: ``{"posts": [...]}``, or one post by itself.

    Raises:
        RequestError: See there.
    """
    try:
        given = json.loads(body.decode())
    except UnicodeDecodeError as error:
        raise RequestError(
            400, f"the body is not UTF-8 (byte {error.start}); expected JSON in UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise RequestError(422, f'the body is {_kind(given)}; expected an object with "posts", or a post')
    if "posts" not in given:
        return [_post(given, "the post", limits)]
    _known(given, ("posts",), "the body")
    posts = given["posts"]
    if not isinstance(posts, list) or not posts:
        raise RequestError(422, f"posts is {_kind(posts)}; expected a list of at least one post")
    if len(posts) > limits.posts:
        raise RequestError(
            413, f"{len(posts)} posts; at most {limits.posts} in one request: send several requests"
        )
    parsed = [_post(one, f"posts[{number}]", limits) for number, one in enumerate(posts)]
    _distinct(parsed)
    return parsed


def place(given: Iterable[GivenPost], folder: Path, max_pixels: int) -> Placed:
    """Writes the images into `folder`, and judges them by their headers; nothing is decoded here."""
    from backbones.errors import ImageError
    from backbones.images import check_image

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


def answer(name: str, placed: Placed, results: Sequence[PostScore | ScoreFailure]) -> Json:
    """The answer to a request; `results` are those of `placed.posts`, in order."""
    reasons, scored = dict(placed.reasons), {}
    for (number, post), result in zip(placed.posts.items(), results, strict=True):
        if isinstance(result, ScoreFailure):
            reasons[number] = without_paths(result.reason, post)
        else:
            scored[number] = record(result)
    return {
        "model": name,
        "scores": [
            {"id": post_id} | (scored[number] if number in scored else {"error": reasons[number]})
            for number, post_id in enumerate(placed.ids)
        ],
    }


def record(score: PostScore) -> Json:
    """A score as JSON carries it."""
    return {
        "label": score.label,
        "probability": round(score.probability, _DECIMALS),
        "probabilities": _rounded(score.probabilities),
        "process": {question: _rounded(odds) for question, odds in score.process.items()},
    }


def without_paths(reason: str, post: Post) -> str:
    """`reason` with the server's own file names as the client knows them: images by their place."""
    for number, path in enumerate(post.images):
        reason = reason.replace(str(path), f"images[{number}]")
    return reason


def _rounded(odds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, _DECIMALS) for name, value in odds.items()}


# ---- one post ---------------------------------------------------------------------------------------


def _post(given: object, where: str, limits: Limits) -> GivenPost:
    if not isinstance(given, dict):
        raise RequestError(422, f"{where} is {_kind(given)}; expected an object with {_listed(_POST_FIELDS)}")
    _known(given, _POST_FIELDS, where)
    post_id = _text(given.get("id"), f"{where}.id", 1000)
    if not post_id:
        raise RequestError(422, f"{where}.id is empty or absent; expected a text, to find its score by")
    text = _text(given.get("text", ""), f"{where}.text", limits.text)
    images = given.get("images", [])
    if not isinstance(images, list):
        raise RequestError(422, f"{where}.images is {_kind(images)}; expected a list of base64 texts")
    if len(images) > MAX_IMAGES:
        raise RequestError(422, f"{where}.images has {len(images)}; at most {MAX_IMAGES}")
    if not text.strip() and not images:
        return GivenPost(post_id, text, (), "neither text nor image: give the post one of them, or both")
    files = tuple(_image(one, f"{where}.images[{n}]", limits.image) for n, one in enumerate(images))
    return GivenPost(post_id, text, files)


def _image(given: object, where: str, most: int) -> bytes:
    expected = 'expected the file\'s bytes in base64, or "data:image/...;base64,..."'
    if not isinstance(given, str):
        raise RequestError(422, f"{where} is {_kind(given)}; {expected}")
    encoded = given
    if given[:5].lower() == "data:":
        header, _, encoded = given.partition(",")
        if not header.lower().endswith(";base64"):
            raise RequestError(422, f"{where} is a data: URI without ;base64; {expected}")
    elif "://" in given[:20]:
        raise RequestError(422, f"{where} is an address, and none is fetched; {expected}")
    if len(encoded) * 3 // 4 > most + 2:  # before anything is decoded
        raise RequestError(413, f"{where} has about {len(encoded) * 3 // 4:,} bytes; at most {most:,}")
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(422, f"{where} is not base64 ({error}); {expected}") from error
    if not content:
        raise RequestError(422, f"{where} is empty; {expected}")
    return content


def _text(given: object, where: str, most: int) -> str:
    if given is None:
        return ""
    if not isinstance(given, str):
        raise RequestError(422, f"{where} is {_kind(given)}; expected a text")
    if len(given) > most:
        raise RequestError(413, f"{where} has {len(given):,} characters; at most {most:,}")
    if "\0" in given or (not given.isascii() and _torn(given)):
        raise RequestError(422, f"{where} holds a NUL or half a surrogate pair; expected Unicode text")
    return given


def _torn(text: str) -> bool:
    """An escaped half of a surrogate pair is legal JSON, but no text."""
    return any("\ud800" <= mark <= "\udfff" for mark in text)


def _known(given: Mapping[str, object], fields: Sequence[str], where: str) -> None:
    unknown = sorted(given.keys() - set(fields))
    if unknown:
        raise RequestError(
            422, f"{where} has the unknown field {unknown[0][:_SHOWN]!r}; expected {_listed(fields)}"
        )


def _distinct(posts: Sequence[GivenPost]) -> None:
    met: set[str] = set()
    for post in posts:
        if post.id in met:
            raise RequestError(422, f"id {post.id[:_SHOWN]!r} stands twice; expected every id once")
        met.add(post.id)


def _listed(fields: Sequence[str]) -> str:
    return ", ".join(fields)


def _kind(value: object) -> str:
    """What a JSON value is, in words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number"}
    if value in ([], {}, ""):
        return f"{names[type(value)]} without contents"
    return names[type(value)]

"""The JSON of a request to posts, predictions to that of the answer. Everything a client sends is data.

What is wrong with the request as a whole (its form, its limits) refuses all of it; what is wrong with one
picture is said of that post, and the others are scored. No URL is ever fetched: pictures travel as bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError

from backbones.errors import ImageError
from backbones.images import ImageHeader, check_image
from selftrain._util.types import Json
from selftrain.data.inline_pictures import (
    InlinePictureError,
    decode_base64,
    encoded_size,
    is_data_uri,
    split_data_uri,
)
from selftrain.data.posts import MAX_IMAGES, Post
from selftrain.models.predictor import Prediction
from selftrain.web.access import BadRequestError, each_once
from selftrain.web.pictures import without_paths

ID_CHARACTERS = 1000
_SHOWN = 60
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_FILE = 'the file\'s bytes in base64, or "data:image/...;base64,..."'


class RequestLimits(NamedTuple):
    """What one request may hold."""

    body: int = 20_000_000  # bytes
    posts: int = 256
    text: int = 20_000  # characters of one text
    image: int = 10_000_000  # bytes of one image file, decoded from base64
    pixels: int = 50_000_000  # width x height that an image's header may claim
    work: int = 200_000_000  # what decoding all its images may cost, see `backbones.images.ImageHeader`

    @property
    def values(self) -> int:
        """What stands in a request besides strings: braces, commas, colons, and the strings by number."""
        return 100 * self.posts + 100


class ValueCount:
    """Counts what a JSON text holds while it arrives, so that one of many small values is never parsed.

    Strings cost the memory that they came in; a list of `{}` costs a hundred times that. Whatever stands
    outside of strings counts by the byte, and a string as one.
    """

    def __init__(self, most: int) -> None:
        self._most, self._count = most, 0
        self._inside, self._rest = False, b""  # in a string; a backslash whose partner has not come

    def feed(self, part: bytes) -> None:
        """Count a part."""
        part, self._rest = self._rest + part if self._rest else part, b""
        if b"\\" in part:
            # of a run of backslashes the pairs stand for themselves; one left over escapes what follows
            part = part.replace(b"\\\\", b"")
            self._rest = b"\\" if part.endswith(b"\\") else b""
            part = part[: len(part) - len(self._rest)].replace(b'\\"', b"")
        quotes = part.count(b'"')
        self._count += (quotes + (not self._inside)) // 2
        if self._count <= self._most:
            outside = b"".join(part.split(b'"')[self._inside :: 2])
            self._count += len(outside.translate(None, b" \t\r\n"))
        self._inside ^= bool(quotes % 2)
        if self._count > self._most:
            raise BadRequestError(413, "the body holds more values than so many posts have: send fewer posts")


# ---- the form of a request ------------------------------------------------------------------------------
# Each validator gets the request's limits as context and says what is wrong; where, pydantic knows.


def _fault(message: str, status: int = 422) -> PydanticCustomError:
    return PydanticCustomError("request", "{message}", {"message": message, "status": status})


def _limits(info: ValidationInfo) -> RequestLimits:
    assert isinstance(info.context, RequestLimits), "`parse` gives them"
    return info.context


def _text(given: str, most: int) -> str:
    if len(given) > most:
        raise _fault(f"has {len(given):,} characters; at most {most:,}", 413)
    # an escaped half of a surrogate pair is legal JSON, but no text
    if _NO_TEXT.search(given):
        raise _fault("holds a NUL or half a surrogate pair; expected Unicode text")
    return given


def _post_id(given: str) -> str:
    if not given:
        raise _fault("is empty or absent; expected a text, to find its score by")
    return _text(given, ID_CHARACTERS)


def _image(given: object, info: ValidationInfo) -> bytes:
    if not isinstance(given, str):
        raise _fault(f"is {_kind(given)}; expected {_FILE}")
    most = _limits(info).image
    try:
        uri = split_data_uri(given) if is_data_uri(given) else None
        if uri is None and "://" in given[:20]:
            raise _fault(f"is a URL, and none is fetched; expected {_FILE}")
        size = encoded_size(given) if uri is None else uri.size
        if size > most + 2:  # before anything is decoded
            raise _fault(f"has about {size:,} bytes; at most {most:,}", 413)
        content = decode_base64(given) if uri is None else uri.decode()
    except InlinePictureError as error:
        raise _fault(f"{error}; expected {_FILE}") from error
    if not content:
        raise _fault(f"is empty; expected {_FILE}")
    return content


def _not_too_many_images(given: object) -> object:
    if isinstance(given, list) and len(given) > MAX_IMAGES:
        raise _fault(f"has {len(given)}; at most {MAX_IMAGES}")
    return given


def _not_too_many_posts(given: object, info: ValidationInfo) -> object:
    if isinstance(given, list) and len(given) > _limits(info).posts:
        most = _limits(info).posts
        raise _fault(f"holds {len(given)} posts; at most {most} in one request: send several requests", 413)
    return given


class _Form(BaseModel):
    # an unknown field is refused: a typing slip would be an answer about something else
    model_config = ConfigDict(strict=True, extra="forbid")


class GivenPost(_Form):
    """One post as it came: its images as the bytes of files."""

    id: Annotated[str, AfterValidator(_post_id)]
    text: Annotated[
        str,
        BeforeValidator(lambda given: "" if given is None else given),
        AfterValidator(lambda given, info: _text(given, _limits(info).text)),
    ] = ""
    images: Annotated[
        tuple[Annotated[bytes, BeforeValidator(_image)], ...], BeforeValidator(_not_too_many_images)
    ] = Field((), strict=False)  # JSON has lists


class _Body(_Form):
    posts: Annotated[list[GivenPost], BeforeValidator(_not_too_many_posts)] = Field(min_length=1)


_FIELDS = ", ".join(GivenPost.model_fields)


def parse(body: bytes, limits: RequestLimits) -> list[GivenPost]:
    """Read the posts of a request: ``{"posts": [...]}``, or one post by itself."""
    try:
        given = json.loads(body.decode("utf-8-sig"), object_pairs_hook=each_once)
    except UnicodeDecodeError as error:
        raise BadRequestError(
            400, f"the body is not UTF-8 (byte {error.start}); expected JSON in UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadRequestError(400, f"the body is not JSON: {error}") from error
    alone = not (isinstance(given, dict) and "posts" in given)
    try:
        if alone:
            return [GivenPost.model_validate(given, context=limits)]
        posts = _Body.model_validate(given, context=limits).posts
    except ValidationError as error:
        raise _refusal(error, alone=alone) from error
    met: set[str] = set()
    for post in posts:
        if post.id in met:
            raise BadRequestError(409, f"id {post.id[:_SHOWN]!r} stands twice; expected every id once")
        met.add(post.id)
    return posts


def _refusal(error: ValidationError, *, alone: bool) -> BadRequestError:
    """Say of the first fault where it is, what was found there and what was expected."""
    fault = error.errors(include_url=False)[0]
    loc, found = fault["loc"], fault["input"]
    where = _where(loc, alone=alone)
    match fault["type"], loc:
        case "request", _:
            return BadRequestError(fault["ctx"]["status"], f"{where} {fault['msg']}")
        case "missing", _:
            return BadRequestError(422, f"{where} is empty or absent; expected a text, to find its score by")
        case "extra_forbidden", _:
            expected = _FIELDS if alone or len(loc) > 1 else "posts"
            shown, parent = str(loc[-1])[:_SHOWN], _where(loc[:-1], alone=alone)
            return BadRequestError(422, f"{parent} has the unknown field {shown!r}; expected {expected}")
        case "string_unicode", _:  # the name of a field; texts have been looked at
            return BadRequestError(422, f"{where} has an unknown field that is no text; expected {_FIELDS}")
        case _, ("posts",):
            expected = "a list of at least one post"
        case _, (*_, "images"):
            expected = "a list of base64 texts"
        case _, (*_, str()):
            expected = "a text"
        case _, ():
            where, expected = "the body", f'an object with "posts", or with {_FIELDS}'
        case _:
            expected = f"an object with {_FIELDS}"
    return BadRequestError(422, f"{where} is {_kind(found)}; expected {expected}")


def _where(loc: Sequence[int | str], *, alone: bool) -> str:
    """Write a place as a client would write it: ``posts[3].images[0]``."""
    parts = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return f"the post{parts}" if alone else parts.lstrip(".") or "the body"


def _kind(value: Any) -> str:  # noqa: ANN401 -- any JSON value
    """Name what a JSON value is, in words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number"}
    return names[type(value)] + (" without contents" if value in ([], {}, "") else "")


# ---- posts to files, predictions to an answer -----------------------------------------------------------


class Placed(NamedTuple):
    """Posts with their images in files."""

    ids: tuple[str, ...]  # as the client wrote them, in order
    posts: dict[int, Post]  # position -> post, of those that can be scored; their ids are the server's own
    reasons: dict[int, str]  # position -> why not, of the others
    headers: dict[Path, ImageHeader]  # what the header of each image of `posts` says

    def refuse(self, number: int, reason: str) -> None:
        """Take a post out of those that can be scored."""
        self.reasons[number] = _without_paths(reason, self.posts.pop(number))


def place(given: Sequence[GivenPost], folder: Path, limits: RequestLimits) -> Placed:
    """Write the images into `folder`, made if need be, and judge them by their headers; nothing is decoded.

    Raises:
        BadRequestError: Decoding them would cost too much.
        OSError: There is no room for them.
    """
    placed = Placed(tuple(one.id for one in given), {}, {}, {})
    if any(one.images for one in given):
        folder.mkdir(exist_ok=True)
    work = 0
    for number, one in enumerate(given):
        reason = "" if one.text.strip() or one.images else _NOTHING
        paths = tuple(folder / f"{number}-{image}" for image in range(len(one.images)))
        for path, content in zip(paths, one.images, strict=True):
            path.write_bytes(content)
            try:
                placed.headers[path] = check_image(path, max_pixels=limits.pixels)
                work += placed.headers[path].work
            except ImageError as error:
                reason = reason or str(error)
        if work > limits.work:
            raise BadRequestError(
                413,
                f"the images of posts 0 to {number} cost as much to decode as {work:,} pixels of a PNG; at"
                f" most {limits.work:,} in one request: send several requests, or smaller images",
            )
        post = Post(f"{folder.name}-{number}", one.text, paths)
        if reason:
            placed.reasons[number] = _without_paths(reason, post)
        else:
            placed.posts[number] = post
    return placed


_NOTHING = "neither text nor image: give the post one of them, or both"


def answer(name: str, placed: Placed, results: Sequence[Prediction]) -> Json:
    """Build the answer to a request; `results` are those of `placed.posts`, in order."""
    scores = {number: {"error": reason} for number, reason in placed.reasons.items()}
    for (number, post), one in zip(placed.posts.items(), results, strict=True):
        scores[number] = {"error": _without_paths(one.reason, post)} if one.reason else one.to_json()
    listed = [{"id": post_id} | scores[number] for number, post_id in enumerate(placed.ids)]
    return {"model": name, "scores": listed}


def _without_paths(reason: str, post: Post) -> str:
    """Rewrite `reason` with the server's own file names as the client knows them: images by their place."""
    return without_paths(reason, {path: f"images[{number}]" for number, path in enumerate(post.images)})

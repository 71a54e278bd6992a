"""Which requests a server of ours takes: under its own name, from its own pages, with a body that arrives.

A name that was pointed at this machine ("DNS rebinding") and another site's page in the same browser are the
two ways in which a stranger's page reaches a server on loopback; a body without end, or a byte a second, is
how anybody holds one up.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

LOOPBACK = ("127.0.0.1", "localhost", "::1")
BODY_SECONDS = 60.0  # a body that takes longer to arrive is given up
CLIENT_GONE = 499  # nobody reads it; it is counted
_SHOWN = 60  # characters of what is quoted

_log = logging.getLogger(__name__)


class BadRequestError(Exception):
    """A request that is refused. Never leaves the server.

    Attributes:
        status: 400 for what is no JSON, 403 for a foreign page's, 408 for what does not arrive, 409 for two
            of one name, 413 for too much, 415 for another type, 422 for another form than expected.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)  # so that it comes back whole from a process of its own
        self.status = status

    def __str__(self) -> str:
        """Return the message alone."""
        return str(self.args[1])


def is_own_name(host: str, names: Collection[str]) -> bool:
    """Return whether a Host header names this server: one of `names`, or an address, which nobody can point
    here."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name in names:
            return True
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_foreign_page(headers: Headers) -> bool:
    """Return whether a browser says that the page of another site asked; who sends neither header is none."""
    origin = headers.get("origin")
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return True
    try:
        return origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    except ValueError:
        return True


def is_json(headers: Headers) -> bool:
    """Return whether the body is said to be JSON, which no page sends to another site unasked."""
    return headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


def each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object of JSON, as `object_pairs_hook` of `json.loads`; a key that stands twice is refused.

    The last one would win without a word otherwise.

    Raises:
        BadRequestError: A key stands twice.
    """
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise BadRequestError(409, f"the key {name[:_SHOWN]!r} stands twice; expected every key once")
        found[name] = value
    return found


async def read_body(request: Request, most: int, *, seen: Callable[[bytes], None] = lambda _: None) -> bytes:
    """Read a body of at most `most` bytes, counted as it arrives: a larger one is not read to its end.

    `seen` is given every part, and may raise.

    Raises:
        BadRequestError: More than `most`, or not there within `BODY_SECONDS`.
        starlette.requests.ClientDisconnect: The client has gone.
    """
    too_large = BadRequestError(413, f"the body is larger than {most:,} bytes: send less at once")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared[:20]) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise too_large
                seen(part)
    except TimeoutError as error:
        raise BadRequestError(408, f"the body did not arrive within {BODY_SECONDS:g} seconds") from error
    return bytes(body)


async def answered(
    request: Request,
    handler: Callable[[Request], Awaitable[Response]],
    statuses: Mapping[type[Exception], int],
) -> Response:
    """Return what a handler answers, or in JSON what it raises: of `statuses` the first that fits."""
    try:
        return await handler(request)
    except ClientDisconnect:
        return Response(status_code=CLIENT_GONE)
    except BadRequestError as error:
        # what was not read would be taken for the next request
        return error_answer(
            error.status, error, {"Connection": "close"} if error.status in (408, 413) else {}
        )
    except tuple(statuses) as error:
        status = next(status for kind, status in statuses.items() if isinstance(error, kind))
        return error_answer(status, error, {"Retry-After": "1"} if status in (429, 503) else {})
    except Exception as error:
        _log.exception("a fault of the server's own in %s", request.scope["path"])
        return error_answer(500, f"a fault of the server's own ({type(error).__name__}): see its log")


def error_answer(status: int, message: object, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error in JSON and ASCII: what is quoted from a request may hold anything."""
    shown = str(message).encode("ascii", "backslashreplace").decode()
    return JSONResponse({"error": shown}, status, headers)

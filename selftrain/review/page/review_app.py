"""The HTTP side of the review: a page, pictures, and eight requests to the `ReviewSession`."""

from __future__ import annotations

import json
import logging
import threading
import unicodedata
from collections.abc import Awaitable, Callable, Iterable

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from backbones.errors import ImageError
from selftrain._util.types import Json
from selftrain.errors import DecisionError, LedgerError, SelftrainError
from selftrain.review.page.auth import TokenAuth
from selftrain.review.page.session import ReviewSession
from selftrain.web.html import RenderedPage

BODY = 20_000
"""Bytes of a request, at most."""
NAME = 60
"""Characters of a reviewer's name, at most."""
DECODERS = 2  # pictures that are decoded at once: a large one takes hundreds of megabytes

_log = logging.getLogger(__name__)


class PageRequestError(Exception):
    """A request that is no request of the page. Never leaves the server."""


STATUS: tuple[tuple[type[Exception], int], ...] = (
    (PageRequestError, 422),
    (DecisionError, 409),  # the page goes on with what is
    (LedgerError, 503),  # the page keeps the answer and tries again
    (SelftrainError, 500),
)


def build_app(
    session: ReviewSession, page: RenderedPage, *, token: str, hosts: Iterable[str] = ()
) -> Starlette:
    """Build the application."""
    decoding = threading.Semaphore(DECODERS)

    async def index(_: Request) -> Response:
        return HTMLResponse(page.html, headers={"Content-Security-Policy": page.security_policy})

    async def picture(request: Request) -> Response:
        return await run_in_threadpool(_picture, session, **request.path_params, decoding=decoding)

    async def favicon(_: Request) -> Response:
        return Response(status_code=204)

    # what each request holds beside the reviewer
    asked: dict[str, tuple[Callable[..., Json], tuple[str, ...]]] = {
        "begin": (session.begin, ()),
        "next": (session.next, ()),
        "decide": (session.decide, ("post", "label")),
        "skip": (session.skip, ("post",)),
        "undo": (session.undo, ("post",)),
        "hold": (session.hold, ("post",)),
        "leave": (session.leave, ()),
        "estimates": (session.estimates, ()),
    }
    changes = [
        Route(f"/api/{name}", _answering(do, fields), methods=["POST"])
        for name, (do, fields) in asked.items()
    ]
    pages = [
        Route("/", index),
        Route("/favicon.ico", favicon),
        Route("/picture/{place:int}/{index:int}", picture),
    ]
    return Starlette(routes=[*pages, *changes], middleware=[Middleware(TokenAuth, token=token, hosts=hosts)])


def _answering(do: Callable[..., Json], fields: tuple[str, ...]) -> Callable[[Request], Awaitable[Response]]:
    """Return a handler that reads a request, has it done, and answers in JSON what came of it."""

    async def handler(request: Request) -> Response:
        try:
            given = await _given(request, fields)
            return JSONResponse(await run_in_threadpool(do, *given))
        except ClientDisconnect:
            return Response(status_code=499)
        except tuple(kind for kind, _ in STATUS) as error:
            return _error(next(status for kind, status in STATUS if isinstance(error, kind)), error)
        except Exception as error:
            _log.exception("a fault of the server's own in %s", request.url.path)
            return _error(500, f"a fault of the server's own ({type(error).__name__}): see its log")

    return handler


def _picture(session: ReviewSession, place: int, index: int, decoding: threading.Semaphore) -> Response:
    post_id = session.post_at(place)
    if post_id is None:
        return _error(404, f"no post of the review stands at place {place}")
    try:
        with decoding:
            content = session.material.picture(post_id, index)
    except ImageError as error:
        return _error(422, session.material.without_paths(str(error), post_id))
    if content is None:
        return _error(404, f"that post has no picture {index}")
    return Response(content, media_type="image/webp")


async def _given(request: Request, fields: tuple[str, ...]) -> list[str]:
    """Read the reviewer's name and the other fields, all of them text.

    Raises:
        PageRequestError: Another form than expected.
    """
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > BODY:
            raise PageRequestError(f"more than {BODY:,} bytes: expected a reviewer and {', '.join(fields)}")
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise PageRequestError("the body is not JSON") from error
    expected = ("reviewer", *fields)
    if not isinstance(given, dict) or not all(isinstance(given.get(name), str) for name in expected):
        raise PageRequestError(f"expected a JSON object with the texts {', '.join(expected)}")
    reviewer, *texts = (given[name] for name in expected)
    return [checked_name(reviewer), *texts]


def checked_name(name: str) -> str:
    """Return a reviewer's name as the ledger keeps it: spaces at its ends and in rows make nobody else.

    Raises:
        PageRequestError: None, one that is too long, or one with control characters.
    """
    plain = " ".join(unicodedata.normalize("NFC", name).split())
    if not plain or len(plain) > NAME or not plain.isprintable():
        raise PageRequestError(
            f"a reviewer's name of {len(plain)} characters: expected 1 to {NAME}, all visible"
        )
    return plain


def _error(status: int, message: object) -> Response:
    # what is quoted from a request may hold anything
    return JSONResponse({"error": str(message).encode("ascii", "backslashreplace").decode()}, status)

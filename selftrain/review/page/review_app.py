"""The HTTP side of the review: a page, pictures, and eight requests to the `ReviewSession`."""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from backbones.errors import ImageError
from selftrain._util.types import Json
from selftrain.errors import DecisionError, LedgerError, SelftrainError
from selftrain.review.page.auth import BROWSER, TokenAuth
from selftrain.review.page.session import ReviewSession
from selftrain.web.access import BadRequestError, read_body
from selftrain.web.html import RenderedPage

BODY = 20_000
"""Bytes of a request, at most."""
NAME = 60
"""Characters of a reviewer's name, at most."""
DECODERS = 2  # pictures that are decoded at once: a large one takes hundreds of megabytes

_NO_TEXT = re.compile("[\ud800-\udfff]")  # half a pair is legal JSON, and nothing that can be stored

_log = logging.getLogger(__name__)


STATUS: tuple[tuple[type[Exception], int], ...] = (
    (DecisionError, 409),  # the page goes on with what is
    (LedgerError, 503),  # the page keeps the answer and tries again
    (SelftrainError, 500),
)


def build_app(
    session: ReviewSession, page: RenderedPage, *, token: str, hosts: Iterable[str] = ()
) -> Starlette:
    """Build the application."""
    decoding = CapacityLimiter(DECODERS)  # who waits for it keeps no thread from those who answer

    async def index(_: Request) -> Response:
        return HTMLResponse(page.html, headers={"Content-Security-Policy": page.security_policy})

    async def picture(request: Request) -> Response:
        drawing = partial(_picture, session, **request.path_params)
        return await to_thread.run_sync(drawing, limiter=decoding)

    async def favicon(_: Request) -> Response:
        return Response(status_code=204)

    # what each request holds beside the reviewer, and whether it matters which browser asks
    asked: dict[str, tuple[Callable[..., Json], tuple[str, ...]]] = {
        "begin": (session.begin, ()),
        "next": (session.next, ()),
        "decide": (session.decide, ("post", "label", BROWSER)),
        "skip": (session.skip, ("post",)),
        "undo": (session.undo, ("post", BROWSER)),
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
        except BadRequestError as error:
            return _error(error.status, error)
        except tuple(kind for kind, _ in STATUS) as error:
            return _error(next(status for kind, status in STATUS if isinstance(error, kind)), error)
        except Exception as error:
            _log.exception("a fault of the server's own in %s", request.url.path)
            return _error(500, f"a fault of the server's own ({type(error).__name__}): see its log")

    return handler


def _picture(session: ReviewSession, place: int, index: int) -> Response:
    post_id = session.post_at(place)
    if post_id is None:
        return _error(404, f"no post of the review stands at place {place}")
    try:
        content = session.material.picture(post_id, index)
    except ImageError as error:
        return _error(422, session.material.without_paths(str(error), post_id))
    if content is None:
        return _error(404, f"that post has no picture {index}")
    return Response(content, media_type="image/webp")


async def _given(request: Request, fields: tuple[str, ...]) -> list[str]:
    """Read the reviewer's name and the other fields, all of them text; `BROWSER` is not the page's to give.

    Raises:
        BadRequestError: Another form than expected.
    """
    expected = ("reviewer", *(name for name in fields if name != BROWSER))
    try:
        given = json.loads(await read_body(request, BODY))
    except (ValueError, RecursionError) as error:
        raise BadRequestError(422, "the body is not JSON") from error
    found = [given.get(name) for name in expected] if isinstance(given, dict) else []
    texts = [one for one in found if isinstance(one, str) and not _NO_TEXT.search(one)]
    if len(texts) < len(expected):
        raise BadRequestError(422, f"expected a JSON object with the texts {', '.join(expected)}")
    reviewer, *texts = texts
    own = [str(getattr(request.state, BROWSER))] if BROWSER in fields else []
    return [checked_name(reviewer), *texts, *own]


def checked_name(name: str) -> str:
    """Return a reviewer's name as the ledger keeps it: spaces at its ends and in rows make nobody else.

    Raises:
        BadRequestError: None, one that is too long, or one with control characters.
    """
    plain = " ".join(unicodedata.normalize("NFC", name).split())
    if not plain or len(plain) > NAME or not plain.isprintable():
        raise BadRequestError(
            422, f"a reviewer's name of {len(plain)} characters: expected 1 to {NAME}, all visible"
        )
    return plain


def _error(status: int, message: object) -> Response:
    # what is quoted from a request may hold anything
    return JSONResponse({"error": str(message).encode("ascii", "backslashreplace").decode()}, status)

"""The HTTP side of the review: a page, pictures, and eight requests to the `ReviewSession`.

Who may speak to it: whoever shows the token, from the page itself, under an honest name. Three doors, each
closed to what the others let through: the Host header (a foreign name that was pointed at this machine, "DNS
rebinding"), the token (anybody else on this machine), and the origin of what changes something (another page
in the same browser).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import unicodedata
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.middleware import Middleware
from starlette.requests import Request, cookie_parser
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from backbones.errors import ImageError
from selftrain._util.types import Json
from selftrain.errors import DecisionError, LedgerError, SelftrainError
from selftrain.review.page.session import ReviewSession
from selftrain.web.access import (
    BadRequestError,
    answered,
    each_once,
    error_answer,
    is_foreign_page,
    is_json,
    is_own_name,
    read_body,
)
from selftrain.web.html import RenderedPage

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY = 20_000
"""Bytes of a request, at most."""
NAME = 60
"""Characters of a reviewer's name, at most."""
DECODERS = 2  # pictures that are decoded at once: a large one takes hundreds of megabytes

_NO_TEXT = re.compile("[\ud800-\udfff]")  # half a pair is legal JSON, and nothing that can be stored

STATUS: dict[type[Exception], int] = {
    DecisionError: 409,  # the page goes on with what is
    LedgerError: 503,  # the page keeps the answer and tries again
    SelftrainError: 500,
}

REFUSED = "no token, or another one: open the URL that `selftrain review serve` printed"
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

BROWSER = "browser"
"""In a request's state: the digest of a secret that its browser alone has. Everybody shows the same token,
and types whatever name they like."""
BROWSER_SECONDS = 90 * 24 * 3600


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

    def change(name: str, do: Callable[..., Json], fields: tuple[str, ...]) -> Route:
        async def done(request: Request) -> Response:
            return JSONResponse(await run_in_threadpool(do, *await _given(request, fields)))

        return Route(f"/api/{name}", partial(answered, handler=done, statuses=STATUS), methods=["POST"])

    pages = [
        Route("/", index),
        Route("/favicon.ico", favicon),
        Route("/picture/{place:int}/{index:int}", picture),
    ]
    changes = [change(name, do, fields) for name, (do, fields) in asked.items()]
    return Starlette(routes=[*pages, *changes], middleware=[Middleware(TokenAuth, token=token, hosts=hosts)])


def _picture(session: ReviewSession, place: int, index: int) -> Response:
    post_id = session.post_at(place)
    if post_id is None:
        return error_answer(404, f"no post of the review stands at place {place}")
    try:
        content = session.material.picture(post_id, index)
    except ImageError as error:
        return error_answer(422, session.material.without_paths(str(error), post_id))
    if content is None:
        return error_answer(404, f"that post has no picture {index}")
    return Response(content, media_type="image/webp")


async def _given(request: Request, fields: tuple[str, ...]) -> list[str]:
    """Read the reviewer's name and the other fields, all text; `BROWSER` is not the page's to give."""
    expected = ("reviewer", *(name for name in fields if name != BROWSER))
    try:
        given = json.loads(await read_body(request, BODY), object_pairs_hook=each_once)
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
    """Return a reviewer's name as the ledger keeps it: spaces at its ends and in rows make nobody else."""
    plain = " ".join(unicodedata.normalize("NFC", name).split())
    if not plain or len(plain) > NAME or not plain.isprintable():
        raise BadRequestError(
            422, f"a reviewer's name of {len(plain)} characters: expected 1 to {NAME}, all visible"
        )
    return plain


# ---- who may speak to it --------------------------------------------------------------------------------


class TokenAuth:
    """Middleware around the whole application; the token is in the URL once, then in a cookie.

    `hosts` are the names under which the server may be asked for, beside `localhost` and plain IP addresses.
    """

    def __init__(self, app: ASGIApp, *, token: str, hosts: Iterable[str] = ()) -> None:
        self._app, self._token = app, token.encode()
        self._hosts = {"localhost", *(host.lower() for host in hosts)}
        # two servers on one machine share their cookies: ports do not tell them apart
        self._cookie = f"selftrain-review-{hashlib.sha256(self._token).hexdigest()[:12]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope.get("type") != "http":
            await self._app(scope, receive, send)
            return
        headers, query = Headers(scope=scope), QueryParams(scope.get("query_string") or b"")
        shown, cookies = query.get("token", ""), cookie_parser(headers.get("cookie", ""))
        welcome = self._is_token(shown)
        kept = cookies.get(f"{self._cookie}-browser", "")
        browser = kept or secrets.token_urlsafe(32)
        scope.setdefault("state", {})[BROWSER] = hashlib.sha256(
            browser.encode("utf-8", "replace")
        ).hexdigest()

        async def closed(message: Message) -> None:
            if message.get("type") == "http.response.start":
                answered = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answered.setdefault(name, value)
                if welcome:
                    cookie = f"{self._cookie}={self._token.decode()}; Path=/; HttpOnly; SameSite=Strict"
                    answered.append("Set-Cookie", cookie)
                if refusal is None and not kept:
                    # it outlives the browser's session: an answer of yesterday is still its own
                    cookie = f"{self._cookie}-browser={browser}; Path=/; HttpOnly; SameSite=Strict"
                    answered.append("Set-Cookie", f"{cookie}; Max-Age={BROWSER_SECONDS}")
            await send(message)

        welcome_back = welcome or self._is_token(cookies.get(self._cookie, ""))
        refusal = self._refusal(str(scope.get("method")), headers, welcome=welcome_back)
        await (refusal or self._app)(scope, receive, closed)

    def _refusal(self, method: str, headers: Headers, *, welcome: bool) -> Response | None:
        if not is_own_name(headers.get("host", ""), self._hosts):
            return PlainTextResponse("this server does not go by that name\n", 400)
        if not welcome:
            if method == "GET":
                return PlainTextResponse(f"{REFUSED}\n", 403)
            return JSONResponse({"error": REFUSED}, 403)
        # a change comes from the page itself: it says so, and its body is JSON
        own = "origin" in headers and not is_foreign_page(headers) and is_json(headers)
        if method not in ("GET", "HEAD") and not own:
            return JSONResponse({"error": "a change that another page asked for"}, 403)
        return None

    def _is_token(self, shown: str) -> bool:
        return hmac.compare_digest(shown.encode("utf-8", "surrogateescape"), self._token)

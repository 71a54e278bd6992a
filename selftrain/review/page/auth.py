"""Who may speak to the review page: whoever shows the token, from the page itself, under an honest name.

Three doors, each closed to what the others let through: the Host header (a foreign name that was pointed at
this machine, "DNS rebinding"), the token (anybody else on this machine), and the origin of what changes
something (another page in the same browser).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, PlainTextResponse, Response

from selftrain.web.access import is_foreign_page, is_json, is_own_name

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

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


class TokenAuth:
    """Middleware around the whole application.

    Args:
        token: In the URL once, then in a cookie.
        hosts: Names under which the server may be asked for, beside `localhost` and plain IP addresses.
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
        if method not in ("GET", "HEAD") and not _is_own(headers):
            return JSONResponse({"error": "a change that another page asked for"}, 403)
        return None

    def _is_token(self, shown: str) -> bool:
        return hmac.compare_digest(shown.encode("utf-8", "surrogateescape"), self._token)


def _is_own(headers: Headers) -> bool:
    """Return whether a change comes from the page itself: it says so, and its body is JSON."""
    return "origin" in headers and not is_foreign_page(headers) and is_json(headers)

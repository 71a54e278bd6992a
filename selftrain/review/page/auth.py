"""Who may speak to the review page: whoever shows the token, from the page itself, under an honest name.

Three doors, each closed to what the others let through: the Host header (a foreign name that was pointed at
this machine, "DNS rebinding"), the token (anybody else on this machine), and the origin of what changes
something (another page in the same browser).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, PlainTextResponse, Response

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
        shown = query.get("token", "")
        welcome = self._is_token(shown)

        async def closed(message: Message) -> None:
            if message.get("type") == "http.response.start":
                answered = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answered.setdefault(name, value)
                if welcome:
                    cookie = f"{self._cookie}={self._token.decode()}; Path=/; HttpOnly; SameSite=Strict"
                    answered.append("Set-Cookie", cookie)
            await send(message)

        refusal = self._refusal(str(scope.get("method")), headers, welcome=welcome)
        await (refusal or self._app)(scope, receive, closed)

    def _refusal(self, method: str, headers: Headers, *, welcome: bool) -> Response | None:
        host = headers.get("host", "")
        if not self._is_host(host):
            return PlainTextResponse("this server does not go by that name\n", 400)
        kept = cookie_parser(headers.get("cookie", "")).get(self._cookie, "")
        if not (welcome or self._is_token(kept)):
            if method == "GET":
                return PlainTextResponse(f"{REFUSED}\n", 403)
            return JSONResponse({"error": REFUSED}, 403)
        if method not in ("GET", "HEAD") and not _is_own(headers, host):
            return JSONResponse({"error": "a change that another page asked for"}, 403)
        return None

    def _is_token(self, shown: str) -> bool:
        return hmac.compare_digest(shown.encode("utf-8", "surrogateescape"), self._token)

    def _is_host(self, host: str) -> bool:
        """Return whether the name asked for is ours. An IP address is: it cannot be pointed here."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in self._hosts:
                return True
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _is_own(headers: Headers, host: str) -> bool:
    """Return whether a change comes from the page itself: its origin is the host asked for, its body JSON."""
    origin, kind = headers.get("origin", ""), headers.get("content-type", "")
    return (
        urlsplit(origin).netloc.lower() == host.lower() != ""
        and headers.get("sec-fetch-site", "same-origin") == "same-origin"
        and kind.partition(";")[0].strip().lower() == "application/json"
    )

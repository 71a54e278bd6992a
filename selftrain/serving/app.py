"""The HTTP side: six routes around one `Batcher`, and the figures that Prometheus reads."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Lifespan

from selftrain.errors import DrainingError, QueueFullError, ScoringError, StorageError
from selftrain.models.predictor import Prediction
from selftrain.serving.batching import Batcher, Predictions
from selftrain.serving.intake import SMALL, Intake, Scratch
from selftrain.serving.openapi import describe
from selftrain.serving.wire import Placed, RequestLimits, ValueCount, answer
from selftrain.web.access import (
    CLIENT_GONE,
    answered,
    error_answer,
    is_foreign_page,
    is_json,
    is_own_name,
    read_body,
)

BODIES = 16  # so many bodies of the largest size may be under way at once, in memory and in files
STATUS: dict[type[Exception], int] = {
    QueueFullError: 429,
    DrainingError: 503,
    StorageError: 503,
    ScoringError: 500,
}

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_POSTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

Handler = Callable[[Request], Awaitable[Response]]

_log = logging.getLogger(__name__)


class Measures:
    """One server's counters, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter("selftrain_requests", "Requests answered.", ("path", "status"), registry=own)
        self.posts = Counter("selftrain_posts", "Posts scored.", registry=own)
        self.failures = Counter("selftrain_failures", "Posts that could not be scored.", registry=own)
        self.queue = Gauge("selftrain_queue_posts", "Posts that wait.", registry=own)
        self.ready = Gauge("selftrain_ready", "1 while the server takes posts.", registry=own)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"selftrain_{name}", text, buckets=buckets, registry=own)

        self.latency = histogram("request_seconds", "From a request for scores to its answer.", _SECONDS)
        self.batch_posts = histogram("batch_posts", "Posts of a model call.", _POSTS)
        self.scoring = histogram("scoring_seconds", "Duration of a model call.", _SECONDS)

    def batch(self, posts: int, seconds: float) -> None:
        """Count one model call."""
        self.batch_posts.observe(posts)
        self.scoring.observe(seconds)

    def text(self) -> bytes:
        """Write all of it in Prometheus' text format."""
        return generate_latest(self.registry)


class Service:
    """What the routes share; the application starts and closes its batcher.

    Args:
        key: What a client must show as ``Authorization: Bearer KEY``; empty: nothing.
        names: Under which the server may be asked for, beside `localhost` and addresses.

    Attributes:
        draining: No more posts are taken; what was taken is finished.
        on_idle: Called once draining has nothing left to finish.
    """

    def __init__(
        self,
        batcher: Batcher,
        scratch: Scratch,
        measures: Measures,
        *,
        limits: RequestLimits,
        key: str = "",
        names: Iterable[str] = (),
    ) -> None:
        self.batcher, self.scratch, self.measures, self.limits = batcher, scratch, measures, limits
        self.intake = Intake(limits)
        self.description = describe(limits, key=bool(key))
        self._names = {"localhost", *(name.lower() for name in names)}
        self.draining = False
        self.on_idle: Callable[[], None] = lambda: None
        self._key = key.encode()
        self._under_way = 0
        self._held = 0
        measures.queue.set_function(lambda: batcher.queued)
        measures.ready.set_function(lambda: float(self.ready))

    @property
    def ready(self) -> bool:
        """Whether posts are taken."""
        return self.batcher.predictor is not None and not self.draining

    def drain(self) -> None:
        """Take no more posts; `on_idle` follows when the last answer is given."""
        self.draining = True
        if not self._under_way:
            self.on_idle()

    def admits(self, request: Request) -> bool:
        """Tell whether the client shows the key, compared in constant time."""
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        # headers come as bytes read as latin-1
        known = hmac.compare_digest(shown.strip().encode("latin-1"), self._key)
        return not self._key or (known and scheme.lower() == "bearer")

    def refusal(self, request: Request, *, open_to_all: bool) -> Response | None:
        """Return why a request is not answered at all, or None."""
        headers = request.headers
        if not is_own_name(headers.get("host", ""), self._names):
            return error_answer(
                400, "this server does not go by the name in the Host header: see --allow-host"
            )
        if is_foreign_page(headers):
            message = "the page of another site asked; expected none, or one of this server's"
            return error_answer(403, message)
        if not open_to_all and not self.admits(request):
            message = "no key, or a wrong one; expected the header Authorization: Bearer KEY"
            return error_answer(401, message, {"WWW-Authenticate": "Bearer"})
        if request.method == "POST" and "content-type" in headers and not is_json(headers):
            return error_answer(415, "the body is of another type; expected Content-Type: application/json")
        return None

    def route(self, path: str, handler: Handler, method: str = "GET", *, open_to_all: bool = False) -> Route:
        """Return a route to `handler`, behind what is refused; its errors are JSON, its answers counted."""

        async def counted(request: Request) -> Response:
            refusal = self.refusal(request, open_to_all=open_to_all)
            response = refusal or await answered(request, handler, STATUS)
            self.measures.requests.labels(path, response.status_code).inc()
            return response

        return Route(path, counted, methods=[method])

    # ---- scoring ------------------------------------------------------------------------------------

    async def score(self, request: Request) -> Response:
        """Answer one request for scores, from its bytes to its answer."""
        if not self.ready:
            why = "the server is about to end" if self.draining else "the model is not loaded yet"
            raise DrainingError(f"{why}: ask again later")
        self._under_way += 1
        request.state.held = 0  # bytes that it has brought in
        try:
            return await self._score(request)
        finally:
            self._held -= request.state.held
            self._under_way -= 1
            if self.draining and not self._under_way:
                self.on_idle()

    async def _score(self, request: Request) -> Response:
        started = time.monotonic()
        body = await self._body(request)
        await asyncio.sleep(0)  # that somebody left at once is known a turn later
        if await request.is_disconnected():
            return Response(status_code=CLIENT_GONE)
        folder = self.scratch.folder()
        predictor = self.batcher.predictor
        assert predictor is not None, "posts are taken only once it is loaded"

        def release() -> None:
            self.scratch.remove(folder)

        owned = True  # until the batcher has the posts
        try:
            placed = await self.intake.read(body, folder)
            del body
            forget = await self.intake.shrink(placed, predictor.picture_side)
            results: list[Prediction] | None = []
            if placed.posts:
                scores = self._submit(placed, request, release, forget)
                owned = False
                results = await _wait(request, scores)
            else:
                forget()
        except OSError as error:
            _log.warning("pictures of a request cannot be kept: %s", error)
            raise StorageError("there is no room for pictures at the moment: ask again later") from error
        finally:
            if owned:
                release()
        if results is None:
            return Response(status_code=CLIENT_GONE)
        failed = len(placed.reasons) + sum(bool(one.reason) for one in results)
        self.measures.latency.observe(time.monotonic() - started)
        self.measures.posts.inc(len(placed.ids) - failed)
        self.measures.failures.inc(failed)
        return JSONResponse(answer(predictor.name, placed, results))

    def _submit(
        self, placed: Placed, request: Request, release: Callable[[], None], forget: Callable[[], None]
    ) -> Predictions:
        """Hand posts to the batcher, which calls `release` and `forget` once it is done with them."""
        loop, client = asyncio.get_running_loop(), request.client.host if request.client else ""

        def done() -> None:
            release()
            with suppress(RuntimeError):  # the server has ended meanwhile
                loop.call_soon_threadsafe(forget)

        return self.batcher.submit(list(placed.posts.values()), done, client=client)

    async def _body(self, request: Request) -> bytes:
        """Read the body, refused as soon as it is too much, or too much of everybody's together."""
        values = ValueCount(self.limits.values)

        def seen(part: bytes) -> None:
            request.state.held += len(part)
            self._held += len(part)
            # a small one is taken however many large ones hang on: nobody keeps the others out
            if self._held > BODIES * self.limits.body and request.state.held > SMALL:
                raise QueueFullError("requests under way fill the memory set aside for them: wait")
            values.feed(part)

        return await read_body(request, self.limits.body, seen=seen)


async def _wait(request: Request, scores: Predictions) -> list[Prediction] | None:
    """Return the results, or None when the client has gone away: then its posts are taken back."""
    results = asyncio.wrap_future(scores)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((results, gone), return_when=asyncio.FIRST_COMPLETED)
        return await results if results.done() else None
    finally:
        results.cancel()
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# ---- routes -----------------------------------------------------------------------------------------


def build_app(service: Service, lifespan: Lifespan[Starlette] | None = None) -> Starlette:
    """Build the application of a service; `lifespan` starts and ends its batcher."""

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(_: Request) -> Response:
        status = "draining" if service.draining else "ready" if service.ready else "loading"
        return JSONResponse({"status": status}, 200 if service.ready else 503)

    async def metrics(_: Request) -> Response:
        return Response(service.measures.text(), media_type=CONTENT_TYPE)

    async def model(_: Request) -> Response:
        predictor = service.batcher.predictor
        if predictor is None:
            raise DrainingError("the model is not loaded yet: ask again later")
        fields = ("kind", "name", "classes", "positive", "threshold", "fingerprint")
        return JSONResponse({field: getattr(predictor, field) for field in fields})

    async def description(_: Request) -> Response:
        return JSONResponse(service.description)

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        service.measures.requests.labels("other", error.status_code).inc()
        expected = "POST /score, GET /health, /ready, /metrics, /model, /openapi.json"
        # not `request.url`, which is made of the Host header, whatever that is
        message = f"{request.method} {request.scope['path'][:100]}: {error.detail}; expected {expected}"
        return error_answer(error.status_code, message, error.headers)

    app = Starlette(
        routes=[
            service.route("/score", service.score, "POST"),
            service.route("/health", health, open_to_all=True),
            service.route("/ready", ready, open_to_all=True),
            service.route("/metrics", metrics),
            service.route("/model", model),
            service.route("/openapi.json", description),
        ],
        exception_handlers={HTTPException: unknown},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # to a place under the name in the Host header, whatever that is
    return app

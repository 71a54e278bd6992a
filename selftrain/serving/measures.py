"""What the server tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_POSTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Measures:
    """One server's counters, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def histogram(what: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"selftrain_{what}", text, buckets=buckets, registry=self.registry)

        def counter(what: str, text: str, labels: Sequence[str] = ()) -> Counter:
            return Counter(f"selftrain_{what}", text, labels, registry=self.registry)

        def gauge(what: str, text: str) -> Gauge:
            return Gauge(f"selftrain_{what}", text, registry=self.registry)

        self._requests = counter("requests", "Requests answered.", ("path", "status"))
        self._latency = histogram("request_seconds", "From a request for scores to its answer.", _SECONDS)
        self._posts = counter("posts", "Posts scored.")
        self._failures = counter("failures", "Posts that could not be scored.")
        self._batch_posts = histogram("batch_posts", "Posts of a model call.", _POSTS)
        self._scoring = histogram("scoring_seconds", "Duration of a model call.", _SECONDS)
        self._queue = gauge("queue_posts", "Posts that wait.")
        self._ready = gauge("ready", "1 while the server takes posts.")

    def watch(self, *, queued: Callable[[], int], ready: Callable[[], bool]) -> None:
        """Where to read what is not counted but looked at."""
        self._queue.set_function(queued)
        self._ready.set_function(lambda: float(ready()))

    def request(self, path: str, status: int) -> None:
        """One answer."""
        self._requests.labels(path, str(status)).inc()

    def answered(self, seconds: float, scored: int, failed: int) -> None:
        """One request for scores, answered with them."""
        self._latency.observe(seconds)
        self._posts.inc(scored)
        self._failures.inc(failed)

    def batch(self, posts: int, seconds: float) -> None:
        """See `selftrain.serving.batching.Observer`."""
        self._batch_posts.observe(posts)
        self._scoring.observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)

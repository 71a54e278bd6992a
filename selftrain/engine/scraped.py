"""How far every stage of this process is, served to Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from backbones.progress import LATEST
from selftrain.errors import EngineError

HERE = "127.0.0.1"


class StageFigures(Collector):
    """The numbers of all progress bars, drawn or not, as they are when somebody asks."""

    def collect(self) -> Iterator[Metric]:
        """Yield what is done, what is left where that is known, and how fast it went so far."""
        done, left, speed = (
            GaugeMetricFamily(f"selftrain_stage_{name}", text, labels=("stage", "unit"))
            for name, text in {
                "done": "What a stage has done, earlier starts included.",
                "left": "What it has still to do, where that is known.",
                "per_second": "What it did in a second, on average since it began.",
            }.items()
        )
        for name, found in list(LATEST.items()):
            labels = (name, found.unit)
            done.add_metric(labels, found.done)
            speed.add_metric(labels, found.per_second)
            if found.total is not None:
                left.add_metric(labels, found.total - found.done)
        yield from (done, left, speed)


def serve_figures(address: str) -> str:
    """Serve them over HTTP until this process ends; return the URL.

    Args:
        address: ``PORT`` or ``HOST:PORT``; without a host only this machine can ask. 0: a port that is free.

    Raises:
        EngineError: No such address, or it is taken.
    """
    given, _, port = address.rpartition(":")
    host = given or HERE
    registry = CollectorRegistry()
    registry.register(StageFigures())
    try:
        server, _thread = start_http_server(int(port), host.strip("[]"), registry)
    except (OSError, ValueError, OverflowError) as error:
        raise EngineError(
            f"figures cannot be served at {address!r} ({error}): expected PORT or HOST:PORT, of this machine"
            " and free; give another --metrics"
        ) from error
    return f"http://{host}:{server.server_port}/metrics"

"""The port that a server of ours listens on."""

from __future__ import annotations

import logging
import socket

import pytest

from selftrain.errors import ServingError
from selftrain.web import http_server
from selftrain.web.http_server import endpoint_of, listen


def test_a_free_port_is_found_and_a_taken_one_named():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert endpoint_of(first) == f"http://127.0.0.1:{port}"
        with pytest.raises(ServingError, match=f"127.0.0.1:{port} cannot be listened on .*another --port"):
            listen("127.0.0.1", port)
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass


@pytest.mark.parametrize("port", [65536, -1])
def test_a_port_that_is_none_is_an_error_with_words(port):
    with pytest.raises(ServingError, match="cannot be listened on"):
        listen("127.0.0.1", port)


def test_a_line_that_anybody_can_have_logged_is_logged_a_few_times_a_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(http_server.time, "monotonic", lambda: now[0])
    sparing, written = http_server._Sparing(), []

    def log(times, line, place=1):
        for _ in range(times):
            record = logging.LogRecord("x", logging.WARNING, "file.py", place, line, (), None)
            if sparing.filter(record):
                written.append(record.getMessage())

    log(1000, "refused")
    log(1, "something else", place=2)
    assert written == ["refused"] * 5 + ["something else"]
    now[0] = 61.0
    log(2, "refused")
    assert written[6:] == ["refused (and 995 like it before)", "refused"]


def test_logging_that_a_program_has_set_up_is_left_as_it_is(monkeypatch):
    mine = logging.StreamHandler()
    monkeypatch.setattr(logging.getLogger(), "handlers", [mine])
    http_server.quiet_logs()
    assert logging.getLogger().handlers == [mine]
    assert mine.filters == []
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    http_server.quiet_logs()
    (made,) = logging.getLogger().handlers
    assert isinstance(made.filters[0], http_server._Sparing)
    for name, line, written in (
        ("asyncio", "Unknown child process pid %d, will report returncode 255", False),
        ("asyncio", "Executing took %d seconds", True),
        ("other", "Unknown child process pid %d", True),
    ):
        record = logging.LogRecord(name, logging.WARNING, "file.py", 1, line, (7,), None)
        assert bool(made.filter(record)) is written

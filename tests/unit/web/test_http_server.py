"""The port that a server of ours listens on."""

from __future__ import annotations

import socket

import pytest

from selftrain.errors import ServingError
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

"""One request to a server on this machine, over a connection of its own."""

from __future__ import annotations

import http.client


def ask(port, method, path, body=None, headers=None, *, timeout):
    """The status and the body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()

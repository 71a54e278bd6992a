"""What a server answers when it is asked plainly: is it well, what does it serve, can agents use its answers.

Only the standard library and what the agents themselves use to write a request and to read an answer.
"""

from __future__ import annotations

import contextlib
import json
import struct
import time
import urllib.error
import urllib.request
import zlib
from http.client import HTTPException, HTTPMessage
from typing import IO, NamedTuple
from urllib.parse import urlsplit

from agents.client.base import ChatRequest, Completion, Message, Part, Picture, Sampling, picture
from agents.client.translate import BrokenAnswerError, chat_body, read_completion
from agents.errors import ServerRefusedError

LABELS = ("acceptable", "unacceptable")
SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": list(LABELS)}, "sure": {"enum": ["yes", "no"]}},
    "required": ["label", "sure"],
    "additionalProperties": False,
}
"""Two keys: between them a server that allows white space shows it."""

_SIDE = 64  # pixels; some models refuse pictures that are smaller than their patches


class Reply(NamedTuple):
    """An answer over HTTP; status 0: there was none, and `body` says why."""

    status: int
    body: bytes

    @property
    def words(self) -> str:
        """The body for a message: the server's own words where it is an error in JSON."""
        text = self.body.decode("utf-8", "replace").strip()
        # what is no such JSON is told as it stands
        with contextlib.suppress(ValueError, KeyError, AttributeError):
            found = json.loads(text)
            error = found.get("error", found)
            text = error["message"] if isinstance(error, dict) else str(error)
        text = text if len(text) <= 300 else text[:297] + "..."
        return text if self.status == 0 else f"HTTP {self.status}, {text}"


class Trial(NamedTuple):
    """How a server took the question.

    Attributes:
        completion: Its answer; None: it did not answer as agents need it.
        fault: Then why.
        status: The HTTP status behind it; 0: nothing came.
        compact: Whether its JSON stood without white space between keys.
        detailed: Whether it told cached and image tokens apart.
    """

    completion: Completion | None
    fault: str = ""
    status: int = 200
    compact: bool = True
    detailed: bool = True


def fetch(url: str, key: str = "", body: object = None, seconds: float = 10.0) -> Reply:
    """GET, or POST of a JSON body; follows no redirect, and asks no proxy for this machine's own servers."""
    request = urllib.request.Request(url, headers={"Content-Type": "application/json"})
    if body is not None:
        request.data = json.dumps(body).encode()
    if key:
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if _is_own(urlsplit(url).hostname or ""):
        handlers.append(urllib.request.ProxyHandler({}))
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=seconds) as reply:
            return Reply(reply.status, reply.read())
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, error.read())
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        return Reply(0, str(reason or type(error).__name__).encode())


def ask(address: str, model: str, key: str, *, image: bool, seconds: float) -> Trial:
    """One question whose answer is constrained to two labels, about a small drawn picture or a text."""
    body, began = chat_body(question(image=image), model), time.monotonic()
    reply = fetch(f"{address}/v1/chat/completions", key, body, seconds)
    if reply.status != 200:
        return Trial(None, reply.words, reply.status)
    try:
        completion = read_completion(reply.body, logprobs=True, seconds=time.monotonic() - began)
        answer = json.loads(completion.text)
    except (BrokenAnswerError, ServerRefusedError) as error:
        return Trial(None, str(error))
    except ValueError:
        return Trial(None, f"the answer is not constrained to JSON: {completion.text[:100]!r}")
    if not isinstance(answer, dict) or answer.get("label") not in LABELS or completion.finish != "stop":
        return Trial(
            None,
            f"the answer breaks its schema: {completion.text[:100]!r}, ended by {completion.finish!r};"
            f" expected a label of {', '.join(LABELS)}",
        )
    return Trial(
        completion,
        compact=not any(mark.isspace() for mark in completion.text),
        detailed=json.loads(reply.body)["usage"].get("prompt_tokens_details") is not None,
    )


def question(*, image: bool) -> ChatRequest:
    """What is asked to see whether a server can serve."""
    shown: tuple[Part, ...] = (drawn_picture(),) if image else ("A cat sits on a chair.",)
    text = "Is this post acceptable? Answer in JSON with a label, and whether you are sure."
    return ChatRequest((Message("user", (*shown, text)),), SCHEMA, Sampling(max_tokens=64))


def drawn_picture(seed: int = 0) -> Picture:
    """A small PNG of coloured bands; another for each seed 0-255."""
    rows = b"".join(
        b"\0" + b"".join(bytes((x * 4 % 256, y * 4 % 256, (x + y + seed) % 256)) for x in range(_SIDE))
        for y in range(_SIDE)
    )
    header = struct.pack(">IIBBBBB", _SIDE, _SIDE, 8, 2, 0, 0, 0)  # eight bits of red, green and blue
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return picture(data, "image/png")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would send the key to a server that nobody named."""

    def redirect_request(  # noqa: PLR0917 -- as the standard library calls it
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> None:
        return None


def _is_own(host: str) -> bool:
    return host in {"localhost", "::1"} or host.startswith("127.")

"""Whether a server, ours or anybody's, can do what the agents need of it."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from agents.client.base import (
    ChatRequest,
    Completion,
    Message,
    Part,
    Picture,
    Sampling,
    check_environment,
    is_loopback,
    picture,
    proxy_words,
)
from agents.client.endpoints import server_words
from agents.client.fleet import Served, read_served
from agents.client.messages import BrokenAnswerError, ChatAnswer, chat_body, read_body
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


class Check(NamedTuple):
    """One thing looked at."""

    what: str  # "alive", "model" or "answer"
    passed: bool  # whether agents can go on
    detail: str  # what was found; after a failure also what to do


class HttpReply(NamedTuple):
    """An answer over HTTP; status 0: there was none, and `body` says why."""

    status: int
    body: bytes

    @property
    def words(self) -> str:
        """The body for a message: the server's own words where it is an error in JSON."""
        text = server_words(self.body.decode("utf-8", "replace").strip())
        text = text if len(text) <= 300 else text[:297] + "..."
        return text if self.status == 0 else f"HTTP {self.status}, {text}"


class Trial(NamedTuple):
    """How a server took the question."""

    completion: Completion | None  # its answer; None: it did not answer as agents need it
    fault: str = ""  # then why
    status: int = 200  # the HTTP status behind it; 0: nothing came
    compact: bool = True  # whether its JSON stood without white space between keys
    detailed: bool = True  # whether it counted cached and image tokens apart


def check_server(
    endpoint: str, *, model: str = "", key: str = "", image: bool = True, seconds: float = 120.0
) -> Iterator[Check]:
    """Look at a server step by step; the first failure is the last step.

    Args:
        endpoint: ``http://127.0.0.1:8000``, without /v1.
        model: The name that must be served; empty: the only one that is.
        key: What the server wants to be shown; empty: nothing.
        image: Ask about a picture, not about a text.
        seconds: That its answer may take; the first constrained one takes longest.
    """
    health = fetch(f"{endpoint}/health", key)
    if health.status == 0 or health.status >= 500:
        yield Check("alive", False, f"{health.words}: is a server running at this endpoint, and well?")
        return
    path = "" if health.status == 200 else f"; it has no /health (HTTP {health.status})"
    yield Check("alive", True, f"it answers{path}")
    try:
        served = fetch_served(endpoint, model, key)
    except ServerRefusedError as error:
        yield Check("model", False, str(error))
        return
    yield Check("model", True, str(served))
    yield _judge(ask(endpoint, served.model, key, image=image, seconds=seconds), image=image)


def fetch(url: str, key: str = "", body: object = None, seconds: float = 10.0) -> HttpReply:
    """GET, or POST a JSON body; follows no redirect, which would send the key to a server nobody named."""
    import httpx2

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    check_environment(url)
    # a proxy named in the environment cannot reach this machine's own servers
    trust_env = not is_loopback(urlsplit(url).hostname or "")
    with httpx2.Client(trust_env=trust_env, timeout=seconds, headers=headers) as client:
        try:
            reply = client.get(url) if body is None else client.post(url, json=body)
        except httpx2.HTTPError as error:
            return HttpReply(0, ((str(error) or type(error).__name__) + proxy_words(url)).encode())
    return HttpReply(reply.status_code, reply.content)


def fetch_served(endpoint: str, model: str, key: str) -> Served:
    """Return what a server serves as `model`; as its only one where that is empty.

    Raises:
        ServerRefusedError: It does not, or does not say what it serves.
    """
    models, version = fetch(f"{endpoint}/v1/models", key), fetch(f"{endpoint}/version", key)
    if models.status != 200:
        advice = ": set the key in the environment" if models.status in {401, 403} else ""
        raise ServerRefusedError(f"/v1/models: {models.words}{advice}")
    try:
        return read_served(endpoint, models.body, version.body if version.status == 200 else None, model)
    except BrokenAnswerError as error:
        raise ServerRefusedError(str(error)) from error


def ask(endpoint: str, model: str, key: str, *, image: bool, seconds: float) -> Trial:
    """Ask one question whose answer is constrained to two labels, about a small drawn picture or a text."""
    asked, began = chat_body(question(image=image), model), time.monotonic()
    reply = fetch(f"{endpoint}/v1/chat/completions", key, asked, seconds)
    if reply.status != 200:
        return Trial(None, reply.words, reply.status)
    try:
        body = read_body(reply.body, ChatAnswer)
        completion = body.completion(logprobs=True, seconds=time.monotonic() - began)
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
    compact = not any(mark.isspace() for mark in completion.text)
    return Trial(completion, compact=compact, detailed=body.details is not None)


def question(*, image: bool) -> ChatRequest:
    """Return what is asked to see whether a server can serve."""
    shown: tuple[Part, ...] = (drawn_picture(),) if image else ("A cat sits on a chair.",)
    text = "Is this post acceptable? Answer in JSON with a label, and whether you are sure."
    return ChatRequest((Message("user", (*shown, text)),), SCHEMA, Sampling(max_tokens=64))


def drawn_picture(seed: int = 0) -> Picture:
    """Draw a small PNG of coloured bands; another for each seed 0-255."""
    y, x = np.indices((_SIDE, _SIDE))
    bands = np.stack([x * 4, y * 4, x + y + seed], axis=-1) % 256
    file = io.BytesIO()
    Image.fromarray(bands.astype(np.uint8)).save(file, "PNG")
    return picture(file.getvalue(), "image/png")


def _judge(trial: Trial, *, image: bool) -> Check:
    about = "an image" if image else "a text"
    if trial.completion is None:
        return Check("answer", False, f"to a question about {about}: {trial.fault}")
    usage = trial.completion.usage
    notes = [
        f"constrained, about {about}, after {trial.completion.seconds:.1f} s; {usage.prompt} prompt tokens,"
        f" {usage.image} of them of images, {usage.cached} cached"
    ]
    if not trial.compact:
        notes.append(
            "it allows white space in JSON, in which a small model may lose itself; vLLM forbids it with"
            ' --structured-outputs-config \'{"backend": "xgrammar", "disable_any_whitespace": true}\''
        )
    if not trial.detailed:
        notes.append(
            "it does not count cached and image tokens; vLLM does with --enable-prompt-tokens-details"
        )
    return Check("answer", True, "; ".join(notes))

"""Whether a server, ours or anybody's, can do what the agents need of it."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from anyio.from_thread import start_blocking_portal
from PIL import Image

from agents.ask.answer_schema import AnswerSchema, ParsedAnswer, guard_hint, parse_answer, thinks
from agents.client.base import (
    ChatRequest,
    Completion,
    Identity,
    Message,
    Part,
    Picture,
    Sampling,
    picture,
)
from agents.client.client import most_answer_bytes
from agents.client.dialect import EVERYTHING, Dialect
from agents.client.endpoints import (
    LONGEST_REASON,
    MOST_BYTES,
    Endpoint,
    Failure,
    HttpReply,
    Key,
    server_words,
)
from agents.client.fleet import UNLISTED, read_served, unlisted
from agents.client.messages import BrokenAnswerError, ChatAnswer, chat_body, encode, read_body
from agents.errors import ServerRefusedError

SCHEMA = AnswerSchema(("acceptable", "unacceptable"), "unsure", "label_first", rationale_chars=80)
"""Two keys: between them a server that allows white space shows it."""

THINKING_TOKENS = 4000
"""For a model that turns out to think: enough for a small question."""

_SIDE = 64  # pixels; some models refuse pictures that are smaller than their patches


class Check(NamedTuple):
    """One thing looked at."""

    what: str  # "alive", "model" or "answer"
    passed: bool  # whether agents can go on
    detail: str  # what was found; after a failure also what to do


class Trial(NamedTuple):
    """How a server took the question."""

    completion: Completion | None  # its answer; None: it did not answer as agents need it
    fault: str = ""  # then why
    status: int = 200  # the HTTP status behind it; 0: nothing came
    compact: bool = True  # whether its JSON stood without white space between keys
    detailed: bool = True  # whether it counted cached and image tokens apart
    answer: ParsedAnswer = ParsedAnswer.failed("")  # what was read out of it
    dialect: Dialect = EVERYTHING  # what the server understood of the question
    thinks: bool = False  # whether it wrote thoughts before


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
    # not /health: a gateway's calls every model behind it
    listed = fetch(f"{endpoint}/v1/models", key)
    if listed.status == 0 or listed.status >= 500:
        yield Check("alive", False, f"{listed.words}: is a server running at this endpoint, and well?")
        return
    yield Check("alive", True, "it answers")
    try:
        served = fetch_served(endpoint, model, key)
    except ServerRefusedError as error:
        yield Check("model", False, str(error))
        return
    yield Check("model", True, str(served))
    yield _judge(ask(endpoint, served.model, key, image=image, seconds=seconds), image=image)


def fetch(
    url: str, key: str = "", body: object = None, seconds: float = 10.0, most_bytes: int = MOST_BYTES
) -> HttpReply:
    """GET, or POST a JSON body; follows no redirect, which would send the key to a server nobody named.

    Args:
        url: Whom to ask.
        key: What to show; whatever comes back is shown without it.
        body: JSON values; None: GET.
        seconds: That it may take as a whole.
        most_bytes: That may come back.

    Returns:
        The answer; with the status 0 there is none, and the body says why.
    """
    data = None if body is None else encode(body)

    async def fetched() -> HttpReply | Failure:
        endpoint = Endpoint(url, Key("key", key), 1, seconds)
        try:
            return await endpoint.send("", data, most_bytes, seconds)
        finally:
            await endpoint.close()

    with start_blocking_portal() as portal:  # a notebook has a loop already
        reply = portal.call(fetched)
    return reply if isinstance(reply, HttpReply) else HttpReply(0, reply.reason.encode())


def fetch_served(endpoint: str, model: str, key: str) -> Identity:
    """Return what a server serves as `model`; as its only one where that is empty.

    Raises:
        ServerRefusedError: It does not, or does not say what it serves.
    """
    models, version = fetch(f"{endpoint}/v1/models", key), fetch(f"{endpoint}/version", key)
    if models.status in UNLISTED and model:
        return unlisted(model)
    if models.status != 200:
        advice = ": set the key in the environment" if models.status in {401, 403} else ""
        raise ServerRefusedError(f"/v1/models: {models.words}{advice}")
    try:
        return read_served(endpoint, models.body, version.body if version.status == 200 else None, model)
    except BrokenAnswerError as error:
        raise ServerRefusedError(str(error)) from error


def ask(endpoint: str, model: str, key: str, *, image: bool, seconds: float) -> Trial:
    """Ask one question as agents ask theirs, about a small drawn picture or a text.

    What the server refuses by name is left away; a model that thinks gets room for it.
    """
    trial = _asked(endpoint, model, key, question(image=image), seconds)
    if trial.completion is None and trial.thinks:
        trial = _asked(endpoint, model, key, question(image=image, thinking=THINKING_TOKENS), seconds)
    return trial


def _asked(endpoint: str, model: str, key: str, asked: ChatRequest, seconds: float) -> Trial:
    dialect: Dialect | None = EVERYTHING
    began, most = time.monotonic(), most_answer_bytes(asked.sampling)
    while dialect is not None:
        body, used, left = chat_body(asked, model, dialect), dialect, began + seconds - time.monotonic()
        reply = fetch(f"{endpoint}/v1/chat/completions", key, body, max(left, 1.0), most)
        refused = 400 <= reply.status < 500
        words = server_words(reply.body.decode("utf-8", "replace"))[:LONGEST_REASON] if refused else ""
        dialect = used.after(words, asked.sampling.top_logprobs)
    if reply.status != 200:
        return Trial(None, reply.words, reply.status, dialect=used)
    try:
        came = read_body(reply.body, ChatAnswer)
        completion = came.completion(seconds=time.monotonic() - began)
    except BrokenAnswerError as error:
        return Trial(None, str(error), dialect=used)
    answer, thought = parse_answer(completion, SCHEMA), thinks(completion)
    if answer.fault:
        fault = f"{answer.fault}: {completion.text[:100]!r}, ended by {completion.finish!r}"
        return Trial(None, fault, dialect=used, thinks=thought)
    compact = re.search(r'[{,:]\s|\s[}"]\w', completion.text.partition('"rationale"')[0]) is None
    return Trial(completion, "", 200, compact, came.detailed, answer, used, thought)


def question(*, image: bool, thinking: int = 0) -> ChatRequest:
    """Return what is asked to see whether a server can serve."""
    shown: tuple[Part, ...] = (drawn_picture(),) if image else ("A cat sits on a chair.",)
    labels = ", ".join(f'"{label}"' for label in SCHEMA.spelt.values())
    text = (
        'Is this post acceptable? Answer with one JSON object: first "label", one of'
        f' {labels}; then "rationale", what you see, in a few words.'
    )
    sampling = Sampling(SCHEMA.max_tokens + thinking, top_logprobs=SCHEMA.top_logprobs)
    return ChatRequest((Message("user", (*shown, text)),), SCHEMA.to_json(), sampling)


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
        hint = guard_hint(trial.fault)
        guard = hint and f"{hint}, where it is not checked"
        return Check("answer", False, f"to a question about {about}: {trial.fault}{guard}")
    usage = trial.completion.usage
    notes = [
        f"about {about}, after {trial.completion.seconds:.1f} s; {usage.prompt} prompt tokens,"
        f" {usage.image} of them of images, {usage.cached} cached",
        *trial.dialect.lacks(),
    ]
    if trial.thinks:
        notes.append(
            f"it thinks before it answers: set vlm.thinking_tokens = {THINKING_TOKENS}; or, where its"
            " template can do without,"
            " vlm.extra_body = { chat_template_kwargs = { enable_thinking = false } }"
        )
    if trial.answer.probabilities is None and trial.dialect.most_logprobs:
        notes.append("no probability of the label can be read: verdicts go on without")
    if not trial.completion.counted:
        notes.append("it does not say what a call costs: vlm.token_cap cannot be kept")
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

"""What a merged model's server is asked again for, and what ends the scoring; on a stub that fails."""

from __future__ import annotations

import asyncio
import json

import pytest
from chat_stub import ChatStub, refuses, resets, run, says

from selftrain.agentps import served
from selftrain.errors import ServingError


def asked(*script, monkeypatch, usual=None):
    """What comes of one question to a stub that behaves so, and how often it was asked."""
    monkeypatch.setattr(served, "_PAUSES", (0.0, 0.0))
    found = []

    async def scenario():
        stub = await ChatStub(*script, usual=usual or says({"data": [7]})).start()
        try:
            answer = await asyncio.to_thread(served.ask, f"{stub.url}/pooling", {"input": []}, 30.0)
            found.append(json.loads(answer))
        except ServingError as error:
            found.append(str(error))
        found.append(len(stub.received))
        await stub.stop()

    run(scenario())
    return found


@pytest.mark.parametrize("failure", [refuses(503), refuses(429), refuses(500), refuses(408), resets])
@pytest.mark.parametrize("times", [1, 2])
def test_what_may_pass_is_asked_twice_again(failure, times, monkeypatch):
    assert asked(*[failure] * times, monkeypatch=monkeypatch) == [{"data": [7]}, times + 1]


@pytest.mark.parametrize(
    ("failure", "told"),
    [(refuses(503, "starting"), "HTTP 503, starting"), (resets, "does not answer as a vLLM")],
)
def test_what_does_not_pass_ends_after_three(failure, told, monkeypatch):
    message, count = asked(*[failure] * 3, monkeypatch=monkeypatch)
    assert told in message
    assert count == 3


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (
            refuses(400, "task token_embed is not supported"),
            "task token_embed is not supported. Expected a vLLM",
        ),
        (refuses(401), "HTTP 401"),
    ],
)
def test_what_another_question_would_meet_again_is_told_at_once(answer, told, monkeypatch):
    message, count = asked(answer, monkeypatch=monkeypatch)
    assert told in message
    assert count == 1

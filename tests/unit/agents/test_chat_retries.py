"""What failures cost: retries, the limit of an endpoint, or nothing."""

from __future__ import annotations

import asyncio

import pytest
from chat_stub import (
    ChatStub,
    answers,
    ask,
    completion,
    connected,
    is_silent,
    preferred,
    raw,
    refuses,
    resets,
    response,
    run,
    says,
    stalls,
    waits,
)

from agents.client.limiter import Limiter
from agents.errors import CallFailedError, ServerLostError

pytestmark = pytest.mark.filterwarnings("error")
HALF = response(200, completion())[:-30]


def test_the_limit_starts_at_the_maximum_and_halves_to_one():
    limiter = Limiter(10)
    limits = []
    for now in range(5):
        limiter.overloaded(sent=now, now=now)
        limits.append(limiter.limit)
    assert limits == [5, 2, 1, 1, 1]


def test_a_round_of_refusals_halves_the_limit_once():
    limiter = Limiter(64)
    assert limiter.overloaded(sent=1.0, now=2.0)
    assert not any(limiter.overloaded(sent=1.0 + i / 100, now=2.0 + i / 100) for i in range(64))
    assert limiter.limit == 32
    assert limiter.overloaded(sent=2.0, now=3.0)
    assert limiter.limit == 16


def test_a_round_of_successes_adds_one():
    limiter = Limiter(64)
    for now in range(3):
        limiter.overloaded(sent=now, now=now)
    assert limiter.limit == 8
    for _ in range(9):  # a little more than a round, since the limit grows within it
        limiter.succeeded()
    assert limiter.limit == 9
    for _ in range(5000):
        limiter.succeeded()
    assert limiter.limit == 64


def test_a_limit_below_one():
    with pytest.raises(ValueError, match="a limit of 0"):
        Limiter(0)


@pytest.mark.parametrize("status", [408, 429, 503])
async def test_an_overloaded_endpoint_gets_half_and_the_call_is_repeated(status):
    stub = ChatStub(refuses(status, "slow down"))
    async with connected(stub, maximum=8) as (client, events):
        assert (await client.complete(ask())).text == "to hello"
        (retry,) = events.of("retry")
        assert (retry["retry"], retry["of"]) == (1, 4)
        assert f"HTTP {status}: slow down" in retry["reason"]
        assert [limit["limit"] for limit in events.of("limit")] == [4]
        assert events.of("down") == []


async def test_refusals_of_one_round_halve_once_and_successes_grow_back():
    stub = ChatStub(*[refuses(429)] * 8)
    async with connected(stub, maximum=8) as (client, events):
        answers = await asyncio.gather(*(client.complete(ask(str(n))) for n in range(40)))
        assert [answer.text for answer in answers] == [f"to {n}" for n in range(40)]
        assert [limit["limit"] for limit in events.of("limit")] == [4, 5, 6, 7, 8]
        assert len(events.of("retry")) == 8


async def test_retry_after_is_waited_for():
    stub = ChatStub(refuses(429, retry_after="0.05"), refuses(503, retry_after="3600"))
    async with connected(stub, patience=0.07) as (client, events):
        assert (await client.complete(ask())).text == "to hello"
        first, second = events.of("retry")
        assert 0.05 <= first["wait"] <= 0.051
        assert 0.07 <= second["wait"] <= 0.072  # not longer than we are patient


async def test_retries_end():
    stub = ChatStub(*[refuses(429, "slow down")] * 3)
    async with connected(stub, retries=2, patience=0) as (client, events):
        with pytest.raises(CallFailedError, match=r"no answer in 3 tries; .*HTTP 429: slow down"):
            await client.complete(ask())
        assert len(events.of("retry")) == 2
    assert len({str(sent.body) for sent in stub.received[:3]}) == 1
    assert [sent.text for sent in stub.received[3:]] == ["Say yes."]


@pytest.mark.parametrize("behave", [refuses(429, "slow down"), refuses(500, "boom"), resets])
async def test_a_burst_that_is_over_within_the_patience_loses_no_answer(behave):
    stub = ChatStub(*[behave] * 9)  # more than the retries, within a moment
    async with connected(stub, retries=2, backoff=0.0001) as (client, _):
        assert (await client.complete(ask())).text == "to hello"


@pytest.mark.parametrize(
    ("behave", "reason"),
    [
        (refuses(429, "quota"), "HTTP 429: quota"),
        (refuses(500, "boom"), "HTTP 500: boom"),
        (says(b"<html>back soon</html>"), "no JSON: '<html>back soon"),
        (is_silent, "no answer within 0.5 s"),
    ],
)
async def test_a_server_that_answers_nobody_any_more_is_lost(behave, reason):
    """Its probes are well; a call would count as the fault of its post, and so would all that follow."""

    stub = ChatStub()
    async with connected(stub, retries=1, timeout=0.5) as (client, _):
        client.patience = 0.1  # that of `open` is longer: the machine may be busy
        await client.complete(ask())
        stub.usual = behave
        with pytest.raises(ServerLostError, match=rf"no answer in \d+ tries; .*{reason}.*Nor was"):
            await client.complete(ask())
        stub.usual = answers
        await client.complete(ask())


async def test_the_small_question_waits_for_no_hour(monkeypatch):
    monkeypatch.setattr("agents.client.client._SMALL_SECONDS", 0.02)

    stub = ChatStub()
    async with connected(stub, retries=1) as (client, _):
        stub.usual = refuses(429, retry_after="3600")
        async with asyncio.timeout(10):  # the patience is twice that
            assert not await client._answers_anybody()


@pytest.mark.parametrize("behave", [refuses(500), says(b"no JSON"), is_silent, raw(b"")])
async def test_a_call_that_nobody_can_answer_is_no_lost_server(behave):
    async def poisoned(stub, received, writer):
        return await (behave if received.text == "poison" else answers)(stub, received, writer)

    async with connected(ChatStub(usual=poisoned), retries=1, timeout=0.5) as (client, _):
        client.patience = 0.1
        with pytest.raises(CallFailedError):
            await client.complete(ask("poison"))
        await client.complete(ask())


def waits_of(seed):
    waited = []

    async def scenario():
        async with connected(ChatStub(*[refuses(503)] * 4), seed=seed) as (client, events):
            await client.complete(ask())
            waited.extend(retry["wait"] for retry in events.of("retry"))

    run(scenario())
    return waited


def test_back_off_doubles_with_full_jitter_from_the_seed():
    first, again, other = waits_of(3), waits_of(3), waits_of(4)
    assert first == again
    assert first != other
    assert all(0 <= wait <= 0.001 * 2**n for waited in (first, other) for n, wait in enumerate(waited))


@pytest.mark.parametrize("behave", [is_silent, stalls])
async def test_a_try_that_takes_too_long(behave):
    stub = ChatStub(behave)
    async with connected(stub, timeout=0.3, maximum=8) as (client, events):
        assert (await client.complete(ask())).text == "to hello"
        assert "no answer within 0.3 s" in events.of("retry")[0]["reason"]
        assert events.of("limit")[0]["limit"] == 4


async def test_calls_that_always_take_too_long():
    async with connected(ChatStub(is_silent, is_silent), timeout=0.1, retries=1) as (client, _):
        with pytest.raises(CallFailedError, match=r"no answer in 2 tries; .*no answer within 0.1 s"):
            await client.complete(ask())
        assert client.endpoints[0].limiter.in_flight == 0


LOSSES = {
    "500": refuses(500),
    "502": says(b"<html>bad gateway</html>", 502),
    "reset": resets,
    "garbage": raw(b"\0\1\2 no HTTP at all\r\n\r\n"),
    "half": raw(HALF),
    "nothing": raw(b""),
}


@pytest.mark.parametrize("behave", LOSSES.values(), ids=LOSSES)
async def test_a_failed_connection_sends_the_call_on_without_a_retry(behave):
    bad, good = ChatStub(behave), ChatStub(waits)
    async with connected(bad, good, retries=0) as (client, events):
        call = asyncio.create_task(client.complete(ask()))
        await good.arrived(1)
        assert events.of("down")[0]["endpoint"] == bad.url
        await events.until("up", 3)  # the probe found it well; two came up at the start
        good.release.set()
        assert (await call).text == "to hello"
        assert events.of("retry") == []
        assert [one.limiter.limit for one in client.endpoints] == [64, 64]


async def test_a_call_that_fails_every_server_ends():
    """One that crashes whoever it is sent to must not keep all servers down for ever."""

    async def crashes(stub, received, writer):
        await (refuses(500, "boom") if received.text == "hello" else answers)(stub, received, writer)

    first, second = ChatStub(usual=crashes), ChatStub(usual=crashes)
    async with connected(first, second, retries=2, patience=0.2) as (client, events):
        with pytest.raises(CallFailedError, match=r"no answer in \d+ tries; .*HTTP 500: boom"):
            await client.complete(ask())
        retries = len(events.of("retry"))
        assert retries >= 2
    # each endpoint once for nothing, then the first try and the retries, then the small question
    assert len(first.received) + len(second.received) == 3 + retries + 1


async def test_a_retry_goes_to_another_endpoint():
    busy, idle = await preferred("post", ChatStub(), ChatStub())
    busy.usual = refuses(503)
    async with connected(busy, idle, retries=1) as (client, _):
        assert (await client.complete(ask(affinity="post"))).text == "to hello"
    assert (len(busy.received), len(idle.received)) == (1, 1)


async def test_a_server_whose_health_says_no_stays_down():
    stub = ChatStub(refuses(500))
    stub.health.extend([503, 500, 200])
    async with connected(stub) as (client, events):
        assert (await client.complete(ask())).text == "to hello"
        assert len(events.of("up")) == 2
    assert stub.gets["/health"] == 3


async def test_a_server_without_health_is_judged_by_its_models():
    stub = ChatStub(refuses(500))
    stub.health.extend([404] * 1000)
    async with connected(stub) as (client, _):
        assert (await client.complete(ask())).text == "to hello"
    assert stub.gets["/v1/models"] == 2

"""Several endpoints and many calls: order, affinity, servers that die and come back, letting go."""

from __future__ import annotations

import asyncio
import re

import pytest
from chat_stub import ChatStub, answers, ask, connected, is_silent, preferred, refuses, resets, waits

from agents.client.endpoints import Endpoint, Key
from agents.client.fleet import Fleet, rendezvous
from agents.errors import CallFailedError, ServerLostError

pytestmark = pytest.mark.filterwarnings("error")


def texts(stub):
    return [sent.text for sent in stub.received]


def calls(client, count, **arguments):
    return [asyncio.create_task(client.complete(ask(str(n), **arguments))) for n in range(count)]


async def stand_still():
    """Let everything that can go on without news from outside go on."""
    for _ in range(20):
        await asyncio.sleep(0)


async def results(tasks):
    return [answer.text for answer in await asyncio.gather(*tasks)]


async def test_calls_in_flight_are_bounded():
    stub = ChatStub(usual=waits)
    async with connected(stub, maximum=3) as (client, _):
        tasks = calls(client, 10)
        await stub.arrived(3)
        await stand_still()
        assert (client.endpoints[0].limiter.waiting, client.endpoints[0].limiter.in_flight) == (7, 3)
        stub.release.set()
        assert await results(tasks) == [f"to {n}" for n in range(10)]
        assert client.endpoints[0].limiter.in_flight == 0
    assert stub.most == 3


async def test_waiting_calls_go_in_the_order_in_which_they_came():
    stub = ChatStub()
    async with connected(stub, maximum=1) as (client, _):
        await results(calls(client, 12))
    assert texts(stub) == [str(n) for n in range(12)]


async def test_calls_go_to_the_least_busy_endpoint():
    first, second = ChatStub(usual=waits), ChatStub(usual=waits)
    async with connected(first, second) as (client, _):
        tasks = calls(client, 7)
        await asyncio.gather(first.arrived(4), second.arrived(3))
        first.release.set()
        await asyncio.wait([tasks[n] for n in (0, 2, 4, 6)])
        tasks += calls(client, 2)
        await first.arrived(6)
        second.release.set()
        await results(tasks)


async def test_calls_of_one_affinity_go_to_one_endpoint():
    first, second = ChatStub(), ChatStub()
    async with connected(first, second, maximum=2) as (client, _):
        posts = [str(n % 24) for n in range(120)]
        tasks = [asyncio.create_task(client.complete(ask(post, affinity=post))) for post in posts]
        assert await results(tasks) == [f"to {post}" for post in posts]
    assert set(texts(first)) & set(texts(second)) == set()
    assert set(texts(first)) | set(texts(second)) == {str(n) for n in range(24)}
    assert len(set(texts(first))) > 0 < len(set(texts(second)))


async def test_calls_of_one_affinity_go_to_one_copy_of_the_model():
    stub = ChatStub()
    stub.ranks = 4
    async with connected(stub) as (client, _):
        posts = [f"post {n}" for n in range(40)]
        await asyncio.gather(*(client.complete(ask(post, affinity=post)) for post in posts * 3))
        await client.complete(ask("whatever"))
    ranks = {post: [] for post in [*posts, "whatever"]}
    for sent in stub.received:
        ranks[sent.text].append(sent.headers.get("x-data-parallel-rank"))
    assert ranks.pop("whatever") == [None]
    assert all(len(set(taken)) == 1 and len(taken) == 3 for taken in ranks.values())
    assert {taken[0] for taken in ranks.values()} == {"0", "1", "2", "3"}


async def test_calls_of_one_affinity_carry_one_session_and_no_id():
    stub = ChatStub(version=None)
    async with connected(stub) as (client, _):
        posts = ["post\r\n1", "p\u00f6st"]
        await asyncio.gather(*(client.complete(ask(post, affinity=post)) for post in posts * 3))
        await client.complete(ask("whatever"))
    sessions = {sent.text: set() for sent in stub.received}
    for sent in stub.received:
        sessions[sent.text].add(sent.headers.get("x-session-id"))
    assert sessions.pop("whatever") == {None}
    assert all(len(one) == 1 for one in sessions.values())
    assert len(set().union(*sessions.values())) == 2
    assert all(re.fullmatch("[0-9a-f]{16}", *one) for one in sessions.values())


@pytest.mark.parametrize(("ranks", "version"), [(1, "0.32.0"), (0, "0.32.0"), (4, None)])
async def test_of_one_copy_or_another_server_none_is_named(ranks, version):
    stub = ChatStub(version=version)
    stub.ranks = ranks
    async with connected(stub) as (client, _):
        await client.complete(ask(affinity="a post"))
    assert "x-data-parallel-rank" not in stub.received[0].headers


async def test_a_full_endpoint_holds_only_its_own_calls_up():
    full, free = await preferred("post", ChatStub(), ChatStub())
    full.usual = waits
    async with connected(full, free, maximum=1) as (client, _):
        held = calls(client, 3, affinity="post")
        await full.arrived(1)
        assert await results(calls(client, 3)) == [f"to {n}" for n in range(3)]
        assert sum(one.limiter.waiting for one in client.endpoints) == 2
        full.release.set()
        await results(held)
    assert texts(full) == ["0", "1", "2"]


async def test_an_affinity_moves_while_its_endpoint_is_lost_and_returns_with_it():
    first, second = await preferred("post", ChatStub(), ChatStub())
    first.script.extend([answers, resets])
    second.usual = waits
    async with connected(first, second, maximum=1) as (client, events):
        first.health.extend([503] * 3)
        tasks = calls(client, 4, affinity="post")
        await second.arrived(1)
        await events.until("up", 3)
        second.release.set()
        assert await results(tasks) == [f"to {n}" for n in range(4)]
        await results(calls(client, 2, affinity="post"))
    assert texts(first) == ["0", "1", "0", "1"]
    assert sorted(texts(second)) == ["1", "2", "3"]


def test_only_the_affinities_of_a_lost_endpoint_move():
    urls = [f"http://127.0.0.1:{port}" for port in (8101, 8102, 8103)]

    def owner(post, left):
        return max(left, key=lambda url: rendezvous(post, url))

    posts = [f"post {n}" for n in range(300)]
    before = {post: owner(post, urls) for post in posts}
    after = {post: owner(post, urls[1:]) for post in posts}
    assert all(before[post] == after[post] for post in posts if before[post] != urls[0])
    assert all(70 < sum(one == url for one in before.values()) < 130 for url in urls)


async def test_a_server_that_is_killed_and_started_again_costs_nothing():
    stub = ChatStub(usual=waits)
    async with connected(stub, maximum=4, retries=0) as (client, events):
        tasks = calls(client, 10)
        await stub.arrived(4)
        await stub.stop()
        await events.until("down")
        await stand_still()
        assert not any(task.done() for task in tasks)
        stub.release.set()
        await stub.start()
        assert await results(tasks) == [f"to {n}" for n in range(10)]
        assert events.of("retry") == []
        assert [event for event, _ in events] == ["up", "down", "up"]
    assert len(stub.received) == 14


async def test_what_is_under_way_at_an_endpoint_that_vanished_moves():
    """A machine that lost its network resets nothing: the failed probe is what tells."""

    vanishing, other = await preferred("post", ChatStub(), ChatStub())
    vanishing.script.extend([is_silent, is_silent])
    other.script.append(waits)
    async with connected(vanishing, other, retries=0) as (client, events):
        tasks = calls(client, 2, affinity="post")
        await vanishing.arrived(2)
        steady = asyncio.create_task(client.complete(ask("steady")))
        await other.arrived(1)
        await vanishing.stop_listening()
        tasks += calls(client, 1, affinity="post")
        assert await results(tasks) == ["to 0", "to 1", "to 0"]
        assert [down["endpoint"] for down in events.of("down")] == [vanishing.url]
        other.release.set()
        assert (await steady).text == "to steady"
    assert sorted(texts(other)) == ["0", "0", "1", "steady"]


async def test_all_endpoints_lost_for_longer_than_the_patience():
    first, second = ChatStub(usual=waits), ChatStub(usual=waits)
    async with connected(first, second, maximum=1, patience=0.1) as (client, events):
        tasks = calls(client, 5)
        await asyncio.gather(first.arrived(1), second.arrived(1))
        await first.stop()
        await second.stop()
        for error in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(error, ServerLostError)
            assert all(part in str(error) for part in (first.url, second.url, "0.1 s", "is kept"))
            assert "Connection refused" in str(error)
        with pytest.raises(ServerLostError):  # at once: nobody is waited for again and again
            await client.complete(ask())
        second.release.set()
        await second.start()
        await events.until("up", 3)
        assert (await client.complete(ask())).text == "to hello"


async def test_a_cancelled_call_leaves_its_place_to_the_next():
    stub = ChatStub(is_silent)
    async with connected(stub, maximum=1) as (client, _):
        flying, waiting, last = calls(client, 3)
        await stub.arrived(1)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert sum(one.limiter.waiting for one in client.endpoints) == 1
        flying.cancel()
        assert (await last).text == "to 2"
        assert flying.cancelled()
        assert client.endpoints[0].limiter.in_flight == 0


async def test_a_call_cancelled_during_its_back_off():
    async with connected(ChatStub(refuses(429)), backoff=1e6) as (client, events):
        (task,) = calls(client, 1)
        await events.until("retry")
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert client.endpoints[0].limiter.in_flight == 0


async def test_closing_ends_calls_in_flight_in_line_and_in_back_off():
    stub = ChatStub(refuses(503), is_silent)
    async with connected(stub, maximum=2, backoff=1e6, timeout=1e6) as (client, events):
        tasks = calls(client, 1)
        await events.until("retry")
        tasks += calls(client, 3)
        await stub.arrived(2)
        await client.close()
        assert client.endpoints[0].limiter.in_flight == 0
        for error in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(error, CallFailedError)
            assert "closed before" in str(error)
        with pytest.raises(CallFailedError):
            await client.complete(ask())
        assert events.of("down") == []


async def test_closing_while_everything_is_down():
    stub = ChatStub(resets)
    async with connected(stub) as (client, events):
        stub.health.extend([500] * 1000)
        (task,) = calls(client, 1)
        await events.until("down")
        await stub.asked("/health", 2)
        await client.close()
        with pytest.raises(CallFailedError):
            await task


async def test_a_try_of_before_says_nothing_about_an_endpoint_that_came_back():
    async def resets_later(stub, received, writer):
        await stub.release.wait()
        writer.transport.abort()
        return False

    stub = ChatStub(resets_later, refuses(500))
    async with connected(stub) as (client, events):
        (early,) = calls(client, 1)
        await stub.arrived(1)
        assert (await client.complete(ask("late"))).text == "to late"  # down and up in between
        stub.release.set()
        assert (await early).text == "to 0"
        assert [event for event, _ in events] == ["up", "down", "up"]


async def test_busy_is_relative_to_the_limit():
    key = Key("NO_SUCH_VARIABLE")
    both = [Endpoint("http://127.0.0.1:1", key, 8, 1.0), Endpoint("http://127.0.0.1:2", key, 2, 1.0)]
    fleet = Fleet(tuple(both), lambda name, figures: None)
    for one in both:
        fleet.mark_up(one)
    taken = []
    for _ in range(5):
        taken.append(await fleet.choose(""))
        await taken[-1].limiter.__aenter__()
    assert [both.index(one) for one in taken] == [0, 1, 0, 0, 0]
    for one in both:
        await one.close()

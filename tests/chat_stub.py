"""A model server that misbehaves on demand, over real sockets, on the event loop of the test."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter, deque
from contextlib import asynccontextmanager
from dataclasses import dataclass

from agents.client.base import ChatRequest, Message, Sampling
from agents.client.client import ChatClient
from agents.client.fleet import rendezvous

REASONS = {200: "OK", 307: "Temporary Redirect", 404: "Not Found", 429: "Too Many Requests"}


@dataclass(frozen=True)
class Received:
    """A POST that arrived."""

    path: str
    headers: dict[str, str]
    body: dict

    @property
    def text(self):
        return self.body["messages"][-1]["content"]


def response(status, body, **headers):
    """A whole HTTP response; `body` is bytes or JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}", f"content-length: {len(data)}"]
    head += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + data


def completion(text="ok", *, finish="stop", usage=None, logprobs=None, **message):
    """The body of a chat completion as vLLM sends it."""
    return {
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None, **message},
                "logprobs": logprobs,
                "finish_reason": finish,
            }
        ],
        "usage": usage or {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": None},
    }


# a behaviour is a coroutine function of (stub, received, writer); False closes the connection


def says(body, status=200, **headers):
    async def behave(stub, received, writer):
        writer.write(response(status, body, **headers))

    return behave


def refuses(status, message="no", **headers):
    return says({"error": {"message": message, "code": status}}, status, **headers)


def raw(data):
    """Bytes as they are, then the connection closes."""

    async def behave(stub, received, writer):
        writer.write(data)
        return False

    return behave


async def resets(stub, received, writer):
    writer.transport.abort()
    return False


async def is_silent(stub, received, writer):
    await asyncio.Event().wait()


async def stalls(stub, received, writer):
    """Begins to answer, and never ends."""
    writer.write(response(200, completion())[:-20])
    await asyncio.Event().wait()


async def waits(stub, received, writer):
    """Answers once the test says `stub.release.set()`."""
    await stub.release.wait()
    writer.write(response(200, completion(f"to {received.text}")))


async def answers(stub, received, writer):
    if received.path == "/tokenize":
        parts = [m["content"] for m in received.body["messages"]]
        flat = [p for content in parts for p in (content if isinstance(content, list) else [content])]
        pictures = sum(isinstance(p, dict) and p["type"] == "image_url" for p in flat)
        writer.write(response(200, {"count": 10 + 64 * pictures, "max_model_len": 4096}))
    else:
        writer.write(response(200, completion(f"to {received.text}")))


class ChatStub:
    """One server.

    Attributes:
        script: What happens to the next POSTs, one behaviour each; then `usual`.
        received: POSTs in order of arrival.
        gets: How often each path was asked for.
        health: Statuses of the next /health; then 200.
        guarded: Whether every GET is refused for want of a key.
        most: Most POSTs that were under way at once.
        ranks: Copies of the model that /metrics tells of; 0: there is no such path.
    """

    def __init__(self, *script, usual=answers, cards=None, version="1.2"):
        self.script, self.usual = deque(script), usual
        self.cards = cards or [card()]
        self.version = version
        self.health, self.guarded = deque(), False
        self.received, self.gets = [], Counter()
        self.release = asyncio.Event()
        self.most = self.port = self._now = self.ranks = 0
        self._server = None
        self._tasks, self._changed = {}, asyncio.Condition()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    async def start(self):
        """Listen; after the first time on the same port again."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self):
        """Die: nobody listens, every connection is reset."""
        await self.stop_listening()
        tasks, self._tasks = self._tasks, {}
        for task, writer in tasks.items():
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def stop_listening(self):
        """Vanish for whoever comes new; connections stay open, and silent ones silent."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def arrived(self, count):
        """Wait until `count` POSTs have arrived in all."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.received) >= count)

    async def asked(self, path, count):
        """Wait until `path` was asked for `count` times in all."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.gets[path] >= count)

    def _connected(self, reader, writer):
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks[task] = writer
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    async def _serve(self, reader, writer):
        try:
            while await self._one(reader, writer):
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client went away
        finally:
            writer.close()

    async def _one(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = first.split()
        if method == "GET":
            writer.write(self._get(path))
            await self._notify(path)
            return True
        received = Received(path, headers, json.loads(body))
        self.received.append(received)
        self._now += 1
        self.most = max(self.most, self._now)
        await self._notify()
        try:
            behave = self.script.popleft() if self.script else self.usual
            return await behave(self, received, writer) is not False
        finally:
            self._now -= 1

    def _get(self, path):
        if self.guarded:
            return response(401, {"error": "Unauthorized"})
        if path == "/v1/models":
            return response(200, {"object": "list", "data": self.cards})
        if path == "/version" and self.version is not None:
            return response(200, {"version": self.version})
        if path == "/health":
            return response(self.health.popleft() if self.health else 200, b"")
        if path == "/metrics" and self.ranks:
            lines = [
                f'vllm:num_requests_{what}{{engine="{rank}",model_name="tiny"}} 0.0'
                for what in ("running", "waiting")
                for rank in range(self.ranks)
            ]
            return response(200, "\n".join(["# TYPE vllm:num_requests_running gauge", *lines]).encode())
        return response(404, {"detail": "Not Found"})

    async def _notify(self, path=None):
        async with self._changed:
            if path is not None:
                self.gets[path] += 1
            self._changed.notify_all()


def card(name="tiny", root="/models/tiny", parent=None, context=4096):
    """A model card as vLLM lists it."""
    return {"id": name, "root": root, "parent": parent, "max_model_len": context}


class Events(list):
    """A hook that keeps what it is told, and wakes whoever waits for it."""

    def __init__(self):
        super().__init__()
        self._changed = asyncio.Event()

    def __call__(self, name, figures):
        self.append((name, dict(figures)))
        self._changed.set()

    def of(self, name):
        return [figures for told, figures in self if told == name]

    async def until(self, name, count=1):
        """Wait until `name` was told `count` times; the figures of that time."""
        while len(self.of(name)) < count:
            self._changed.clear()
            await self._changed.wait()
        return self.of(name)[count - 1]


def ask(text="hello", *parts, affinity="", schema=None, top_logprobs=0):
    """A request of one user turn."""
    sampling = Sampling(8, top_logprobs=top_logprobs)
    return ChatRequest((Message("user", (text, *parts)),), schema, sampling, affinity)


async def preferred(affinity, *stubs):
    """The stubs, started, with the one first that takes the calls of `affinity`."""
    for stub in stubs:
        await stub.start()
    return sorted(stubs, key=lambda stub: rendezvous(affinity, stub.url), reverse=True)


@asynccontextmanager
async def connected(*stubs, **arguments):
    """(client, events) over `stubs`, started here unless they run; delays are short, patience is not."""
    for stub in stubs:
        if not stub.port:
            await stub.start()
    events = Events()
    quick = {"backoff": 0.001, "probe_delays": (0.01, 0.02), "patience": 20.0, "timeout": 20.0}
    client = ChatClient([stub.url for stub in stubs], on_event=events, **{**quick, **arguments})
    try:
        await client.open()
        yield client, events
    finally:
        await client.close()
        for stub in stubs:
            await stub.stop()


def run(scenario):
    """Run a coroutine; nothing may be left behind: no task, and nothing that the loop complains about."""
    complaints = []

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with asyncio.timeout(30):
            await scenario
        return asyncio.all_tasks() - {asyncio.current_task()}

    gc.freeze()  # what there was before is not searched: torch alone would take longer than the scenario
    left = asyncio.run(main())
    gc.collect()  # whatever was dropped unclosed warns now, in this test
    gc.unfreeze()
    assert (left, complaints) == (set(), [])

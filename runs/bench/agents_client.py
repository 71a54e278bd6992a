"""Requests a second of one client process, over those of a bare aiohttp client with the same bodies.

Both ask the same stub, a process of its own that answers at once, in turns: what is compared is the work of
the client alone. Ours is the whole way of a post: prompts, keys, pictures, the calls, reading labels and
log-probabilities, the store on the disk. The bare one posts bodies that were made before, reads the answers
and parses their JSON. Seconds of the processor that each takes a request are counted too: they do not depend
on what else the machine does.

The knee: a stub that serves `CAPACITY` calls at once, each in a second, and takes longer for each when it is
sent more: how many the client sends it in the end, and what that brings over what it begins with.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from agents.ask.runner import Runner
from agents.client.base import ChatRequest
from agents.client.client import ChatClient
from runs.bench.agents_speed import Recording
from selftrain.data.posts import Post

WIDTH = 64
CAPACITY, SEARCHED = 300, 2_500
"""Calls that the stub of the knee serves at once, and posts that are judged to find it."""
_SIDE, _QUALITY = 768, 90
_BYTES = 150_000
KINDS = ("text", "picture")


class Pace(NamedTuple):
    """How fast requests were answered."""

    second: float  # requests a second
    cpu: float  # milliseconds of this process a request


def speed(posts: int, repeats: int) -> dict[str, float]:
    """Return requests a second and their ratios, for posts of text and for posts with one 150 kB picture.

    The first pass over the pictures decodes them; those that are compared find them decoded.
    """
    values: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as folder, _stub() as url:
        for kind in KINDS:
            made = _posts(kind, posts, Path(folder))
            runner, recording = _runner(ChatClient([url], maximum=WIDTH), Path(folder) / f"{kind}.sqlite")
            first = _ours(runner, recording, made, 0)
            bodies = _bodies(recording.requests)
            pairs = []
            for repeat in range(1, repeats + 1):
                if repeat % 2:  # whoever comes first changes
                    one, other = _ours(runner, recording, made, repeat), _bare(url, bodies)
                else:
                    other, one = _bare(url, bodies), _ours(runner, recording, made, repeat)
                pairs.append((one, other))
            runner.close()
            runner.cache.close()
            ratios = [ours.second / bare.second for ours, bare in pairs]
            ours, bare = ([pair[side] for pair in pairs] for side in (0, 1))
            values |= {
                f"ours, {kind}": fmean(one.second for one in ours),
                f"bare, {kind}": fmean(one.second for one in bare),
                f"ratio, {kind}": fmean(ratios),
                f"sd of ratio, {kind}": stdev(ratios) if len(ratios) > 1 else 0.0,
                f"ratio of processor time, {kind}": fmean(b.cpu / o.cpu for o, b in pairs),
                f"ms of processor, ours, {kind}": fmean(one.cpu for one in ours),
                f"ms of processor, bare, {kind}": fmean(one.cpu for one in bare),
                f"ours at first sight, {kind}": first.second,
            }
    return values


def knee() -> dict[str, float]:
    """Return calls in flight and answers a second, where the search for more is off and after it."""
    values = {"calls that the stub serves at once": float(CAPACITY)}
    with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as folder, _stub(CAPACITY) as url:
        posts = _posts("text", SEARCHED, Path(folder))
        for name, most, searched in (("as it begins", WIDTH, 0), ("as it is found", 1024, SEARCHED)):
            client = ChatClient([url], maximum=most)
            runner, recording = _runner(client, Path(folder) / f"{most}.sqlite")
            if searched:
                _ours(runner, recording, posts, 0)
            pace = _ours(runner, recording, posts[: SEARCHED // 5], 1)
            values[f"calls in flight, {name}"] = float(client.endpoints[0].limiter.limit)
            values[f"answers a second, {name}"] = pace.second
            runner.close()
            runner.cache.close()
    return values


def _posts(kind: str, count: int, folder: Path) -> list[Post]:
    """Return posts, each with a picture of its own where pictures are meant."""
    if kind == "text":
        return [Post(f"t{i}", f"post number {i} says nothing much of anything") for i in range(count)]
    return [Post(f"p{i}", f"post number {i}", (_picture(folder / f"{i}.jpg", i),)) for i in range(count)]


def _picture(path: Path, seed: int) -> Path:
    """A picture as large as is sent, whose JPEG has some 150 kB: blurred noise."""
    from PIL import Image, ImageFilter

    noise = Image.frombytes("RGB", (_SIDE, _SIDE), random.Random(seed).randbytes(_SIDE * _SIDE * 3))
    radius = 0.8
    while True:
        noise.filter(ImageFilter.GaussianBlur(radius)).save(path, "JPEG", quality=_QUALITY)
        if path.stat().st_size <= _BYTES:
            return path
        radius *= 1.1


def _runner(client: ChatClient, store: Path) -> tuple[Runner, Recording]:
    """Return what asks the stub, with a store of its own, and the requests that pass."""
    from agents.ask.cache import ResponseCache
    from backbones.images import open_image

    recording = Recording(client)
    runner = Runner(
        recording, ResponseCache(store), run="speed", width=2048, worth=client.width, image_side=_SIDE,
        opener=lambda path, side: open_image(path, target_size=side),
    )  # fmt: skip
    runner.identity()
    return runner, recording


def _ours(runner: Runner, recording: Recording, posts: Sequence[Post], number: int) -> Pace:
    """Return the pace of a panel that judges posts alone; of each number, other answers."""
    from agents.ask.judge import JudgePanel, JudgePrompts, VLMAgent
    from agents.ask.prompt_files import Brief
    from agents.ask.protocols import PROTOCOLS
    from agents.judgment import Candidate

    brief = Brief(f"speed {number}", "Rude posts insult somebody.", {"rude": "an insult", "kind": "all else"})
    panel = JudgePanel(runner, VLMAgent(JudgePrompts(brief), PROTOCOLS["cross_review"]))
    recording.requests.clear()
    candidates = [Candidate(post, "kind", 0.9) for post in posts]
    clock = _Clock()
    panel.verify(candidates)
    return clock.pace(len(recording.requests))


def _bodies(requests: Sequence[ChatRequest]) -> list[bytes]:
    from agents.client.messages import chat_body, encode

    return [encode(chat_body(request, "stub")) for request in requests]


def _bare(url: str, bodies: Sequence[bytes]) -> Pace:
    """Return the pace of aiohttp alone: post, read, parse."""
    import aiohttp

    async def post_all() -> Pace:
        waiting = iter(bodies)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=WIDTH)) as session:

            async def worker() -> None:
                for body in waiting:
                    headers = {"Content-Type": "application/json"}
                    async with session.post(f"{url}/v1/chat/completions", data=body, headers=headers) as came:
                        json.loads(await came.read())

            clock = _Clock()
            await asyncio.gather(*(worker() for _ in range(WIDTH)))
            return clock.pace(len(bodies))

    return asyncio.run(post_all())


class _Clock:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self._began, self._used = time.perf_counter(), time.process_time()

    def pace(self, requests: int) -> Pace:
        """Return the pace of so many requests since."""
        seconds, used = time.perf_counter() - self._began, time.process_time() - self._used
        return Pace(requests / seconds, 1000.0 * used / requests)


# ---- the stub -------------------------------------------------------------------------------------------


@contextmanager
def _stub(capacity: int = 0) -> Iterator[str]:
    """The address of a stub in a process of its own, for as long as the block runs.

    It answers at once, or, where it has a capacity, so many calls in a second each.
    """
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(theirs, capacity), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


def _answer() -> bytes:
    """An answer as vLLM sends it: 24 tokens with 12 alternatives each, and the bytes of all."""
    text = '{"rationale":"it says nothing that would insult anybody","label":"kind"}'
    at = text.index('"kind"')
    cuts = [text[i : i + 4] for i in range(0, at, 4)]
    cuts = [*cuts[:-1], text[4 * (len(cuts) - 1) : at + 1], "kind", '"}']
    draw = random.Random(0)

    def token(written: str, logprob: float) -> dict[str, Any]:
        return {"token": written, "logprob": logprob, "bytes": list(written.encode())}

    content = [
        token(cut, -0.01 * draw.random())
        | {"top_logprobs": [token(cut, -0.01), *(token(f"<{n}>", -9.0 - draw.random()) for n in range(11))]}
        for cut in cuts
    ]
    message: dict[str, Any] = {
        "role": "assistant", "content": text, "refusal": None, "annotations": None, "audio": None,
        "function_call": None, "tool_calls": [], "reasoning": None,
    }  # fmt: skip
    choice = {
        "index": 0, "message": message, "logprobs": {"content": content}, "finish_reason": "stop",
        "stop_reason": None, "token_ids": None,
    }  # fmt: skip
    usage = {
        "prompt_tokens": 500, "total_tokens": 500 + len(cuts), "completion_tokens": len(cuts),
        "prompt_tokens_details": {"cached_tokens": 448},
    }  # fmt: skip
    body = {
        "id": "chatcmpl-0123456789abcdef", "object": "chat.completion", "created": 1760000000,
        "model": "stub", "choices": [choice], "usage": usage,
    }  # fmt: skip
    return json.dumps(body, separators=(",", ":")).encode()


def _serve(ready: Connection, capacity: int) -> None:
    """Answer every POST with the same completion, as fast as a socket takes it or as the capacity allows."""
    asyncio.run(_serving(ready, _Places(capacity) if capacity else None))


class _Places:
    """So many calls are served at once, the others wait; what is short makes each a little slower."""

    def __init__(self, capacity: int) -> None:
        self._free = [0.0] * capacity  # when each place is free

    def seconds(self, now: float) -> float:
        """Return how long a call that came `now` takes."""
        begins = max(now, self._free[0])
        slower: float = (1.0 + max(0.0, begins - now)) ** 0.25
        heapq.heapreplace(self._free, begins + slower)
        return begins + slower - now


async def _serving(ready: Connection, places: _Places | None) -> None:
    answer, models = _answer(), b'{"object":"list","data":[{"id":"stub","max_model_len":32768}]}'

    class Answering(asyncio.Protocol):
        """Counts what comes in and keeps none of it: the stub takes as little of the machine as it can."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self._transport, self._head, self._left = transport, b"", 0

        def data_received(self, data: bytes) -> None:
            if not self._left:
                self._head += data
                head, blank, body = self._head.partition(b"\r\n\r\n")
                if not blank:
                    return
                self._head, length = head, head.lower().partition(b"content-length: ")[2]
                self._left = int(length.partition(b"\r\n")[0] or 0) - len(body)
            else:
                self._left -= len(data)
            if self._left <= 0:
                self._answer(self._head.split(b"\r\n")[0])
                self._head, self._left = b"", 0

        def _answer(self, line: bytes) -> None:
            status = b"404 Not Found" if b"/version" in line else b"200 OK"
            found = answer if line.startswith(b"POST") else models
            head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            whole = head % (status, len(found)) + found
            if places is None or found is models:
                self._transport.write(whole)
            else:
                loop = asyncio.get_running_loop()
                loop.call_later(places.seconds(loop.time()), self._transport.write, whole)

    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0)
    ready.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()

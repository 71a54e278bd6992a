"""Requests a second of one client process, over those of a bare aiohttp client with the same bodies.

Both ask the same stub, a process of its own that answers at once, in turns: what is compared is the work of
the client alone. Ours is the whole way of a post: prompts, keys, pictures, the client library, reading the
log-probabilities, the store on the disk. The bare one sends bodies that were made before and reads nothing.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean

from agents.client.base import ChatRequest
from runs.bench.agents_speed import Recording
from selftrain.data.posts import Post

WIDTH = 64
_SIDE, _QUALITY = 768, 90
_BYTES = 150_000
KINDS = ("text", "picture")


def speed(posts: int, repeats: int) -> dict[str, float]:
    """Return requests a second and their ratios, for posts of text and for posts with one 150 kB picture."""
    values: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as folder, _stub() as url:
        for kind in KINDS:
            made = _posts(kind, posts, Path(folder))
            requests = _ours(url, made[:4], Path(folder) / f"warm {kind}")[1]
            ratios = []
            for repeat in range(repeats):
                ours, requests = _ours(url, made, Path(folder) / f"{kind} {repeat}")
                bare = _bare(url, requests)
                ratios.append(ours / bare)
            values |= {
                f"ours, {kind}": ours, f"bare, {kind}": bare, f"ratio, {kind}": fmean(ratios),
                f"least ratio, {kind}": min(ratios),
            }  # fmt: skip
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


def _ours(url: str, posts: Sequence[Post], folder: Path) -> tuple[float, list[ChatRequest]]:
    """Return answers a second of a panel that judges posts alone, and its requests."""
    from agents.ask.cache import ResponseCache
    from agents.ask.judge import JudgePanel, JudgePrompts, VLMAgent
    from agents.ask.prompt_files import Brief
    from agents.ask.protocols import PROTOCOLS
    from agents.ask.runner import Runner
    from agents.client.client import ChatClient
    from agents.judgment import Candidate
    from backbones.images import open_image

    folder.mkdir()
    brief = Brief("speed", "Rude posts insult somebody.", {"rude": "an insult", "kind": "all else"})
    recording = Recording(ChatClient([url], maximum=WIDTH))
    runner = Runner(
        recording, ResponseCache(folder / "answers.sqlite"), run="speed", width=WIDTH, image_side=_SIDE,
        opener=lambda path, side: open_image(path, target_size=side),
    )  # fmt: skip
    panel = JudgePanel(runner, VLMAgent(JudgePrompts(brief), PROTOCOLS["cross_review"]))
    panel.identity()
    began = time.perf_counter()
    panel.verify([Candidate(post, "kind", 0.9) for post in posts])
    seconds = time.perf_counter() - began
    panel.close()
    return len(recording.requests) / seconds, recording.requests


def _bare(url: str, requests: Sequence[ChatRequest]) -> float:
    """Return answers a second of aiohttp alone, its bodies encoded before the clock starts."""
    import aiohttp

    from agents.client.messages import chat_body

    bodies = [json.dumps(chat_body(request, "stub")).encode() for request in requests]

    async def post_all() -> float:
        waiting = iter(bodies)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=WIDTH)) as session:

            async def worker() -> None:
                for body in waiting:
                    headers = {"Content-Type": "application/json"}
                    async with session.post(f"{url}/v1/chat/completions", data=body, headers=headers) as came:
                        await came.read()

            began = time.perf_counter()
            await asyncio.gather(*(worker() for _ in range(WIDTH)))
            return len(bodies) / (time.perf_counter() - began)

    return asyncio.run(post_all())


# ---- the stub -------------------------------------------------------------------------------------------


@contextmanager
def _stub() -> Iterator[str]:
    """The address of a stub in a process of its own, for as long as the block runs."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


def _answer() -> bytes:
    """An answer as vLLM sends it: 24 tokens with 12 alternatives each."""
    text = '{"rationale":"it says nothing that would insult anybody","label":"kind"}'
    at = text.index('"kind"')
    cuts = [text[i : i + 4] for i in range(0, at, 4)]
    cuts = [*cuts[:-1], text[4 * (len(cuts) - 1) : at + 1], "kind", '"}']
    others = [{"token": f"<{n}>", "logprob": -9.0 - n} for n in range(11)]
    content = [
        {
            "token": cut,
            "logprob": -0.01,
            "top_logprobs": [{"token": cut, "logprob": -0.01}, *others],
        }
        for cut in cuts
    ]
    choice = {
        "index": 0, "finish_reason": "stop", "logprobs": {"content": content},
        "message": {"role": "assistant", "content": text},
    }  # fmt: skip
    usage = {"prompt_tokens": 500, "completion_tokens": len(cuts), "total_tokens": 500 + len(cuts)}
    return json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def _serve(ready: Connection) -> None:
    """Answer every POST with the same completion, as fast as a socket takes it."""
    asyncio.run(_serving(ready))


async def _serving(ready: Connection) -> None:
    answer, models = _answer(), b'{"object":"list","data":[{"id":"stub","max_model_len":32768}]}'

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                fields = head.lower().split(b"content-length: ")
                if len(fields) > 1:
                    await reader.readexactly(int(fields[1].split(b"\r\n")[0]))
                found = answer if head.startswith(b"POST") else models
                status = b"404 Not Found" if b"/version" in head.split(b"\r\n")[0] else b"200 OK"
                writer.write(
                    b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
                    % (status, len(found))
                )
                writer.write(found)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client went away
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=1 << 22)
    ready.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()

"""Speed, cache and cost of the agents on one server; see `runs.bench.agents`."""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from agents.client.base import ChatRequest, Completion, Identity, PromptSize
from agents.judgment import Candidate
from runs.bench.agents_data import drawn_posts
from selftrain.data.posts import Post

if TYPE_CHECKING:
    from agents.ask.judge import JudgePanel
    from agents.client.base import Backend
    from selftrain.data.task import Task

CONCURRENCY = (16, 32, 64)
"""Tried by the bare client, which then takes the best."""
CLASSIFIER_RIGHT = 0.8
"""Of the classifier's labels that candidates carry: HSOL's candidates measured .799 (`bench hsol`)."""
REFERENCE_GENERATIONS = 8
"""Of the published flow, for each post."""


def _white_png() -> bytes:
    """A white picture of 32 x 32 pixels."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "white").save(buffer, "PNG")
    return buffer.getvalue()


class Recording:
    """A backend that keeps the requests that pass through it, in their order."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.requests: list[ChatRequest] = []

    async def open(self) -> Identity:
        return await self._backend.open()

    async def complete(self, request: ChatRequest) -> Completion:
        self.requests.append(request)
        return await self._backend.complete(request)

    def width(self) -> int:
        return self._backend.width()

    async def measure(self, request: ChatRequest) -> PromptSize:
        return await self._backend.measure(request)

    async def close(self) -> None:
        await self._backend.close()


def throughput(address: str, data: Path, posts: int, repeats: int, seed: int) -> dict[str, float]:
    """Our panel's answers a second over the bare client's, pair by pair on the same bodies.

    In each pair both sides ask about the same posts under a task name of their own, so that neither finds the
    other's prompts in the server's cache.
    """
    task, tweets = drawn_posts("hsol", data, posts, seed)
    # the first constrained answer of a server takes its time; nobody is to pay for it
    ours_pass(address, task, tweets[:4], "warm-up")
    _, bodies = ours_pass(address, task, tweets, "bodies")
    # each concurrency once on fresh prompts, to find the best
    speeds = {c: bare_pass(address, bodies, "bodies", f"sweep {c}", c) for c in CONCURRENCY}
    best = max(speeds, key=lambda c: speeds[c])
    ratios = []
    for pair in range(repeats):
        sides = [lambda name: ours_pass(address, task, tweets, name)[0],
                 lambda name: bare_pass(address, bodies, "bodies", name, best)]  # fmt: skip
        speed = {}
        for side in (0, 1) if pair % 2 == 0 else (1, 0):
            speed[side] = sides[side](f"pair {pair} side {side}")
        ratios.append(speed[0] / speed[1])
    spread = stdev(ratios) if len(ratios) > 1 else 0.0
    return {
        "ratio": fmean(ratios), "ratio_sd": spread, "best_concurrency": float(best),
        "ours_per_second": speed[0], "bare_per_second": speed[1],
    }  # fmt: skip


def ours_pass(address: str, task: Task, posts: Sequence[Post], name: str) -> tuple[float, list[ChatRequest]]:
    """Answers a second of the panel judging posts alone, store and reading included; and its requests."""
    with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as folder:
        panel, recording = recorded_panel(address, task, Path(folder), name)
        panel.identity()  # connected before the clock starts, as the bare client is
        began = time.perf_counter()
        panel.fit(posts)
        seconds = time.perf_counter() - began
        panel.close()
    return len(recording.requests) / seconds, recording.requests


def bare_pass(address: str, requests: Sequence[ChatRequest], old: str, new: str, concurrency: int) -> float:
    """Answers a second of aiohttp and a semaphore alone, for the same bodies."""
    from agents.client.messages import chat_body, encode

    model = model_of(address)
    bodies = [_renamed(encode(chat_body(request, model)), old, new) for request in requests]

    async def post_all() -> float:
        import aiohttp

        headers = {"Content-Type": "application/json"}
        async with aiohttp.ClientSession(headers=headers) as session:
            places = asyncio.Semaphore(concurrency)
            async with session.get(f"{address}/v1/models") as came:  # connected before the clock starts
                await came.read()

            async def one(body: bytes) -> None:
                url = f"{address}/v1/chat/completions"
                async with places, session.post(url, data=body, raise_for_status=True) as came:
                    json.loads(await came.read())

            began = time.perf_counter()
            await asyncio.gather(*map(one, bodies))
            return len(bodies) / (time.perf_counter() - began)

    return asyncio.run(post_all())


def cache(address: str, data: Path, posts: int, seed: int) -> dict[str, float]:
    """A cross-review of memes: share of prompt tokens from the cache, and generations a candidate."""
    task, memes = drawn_posts("harmeme", data, posts, seed)
    with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as folder:
        panel, _ = recorded_panel(address, task, Path(folder), "cache")
        panel.verify(guessed(task, memes, seed))
        spent = panel.usage()
        panel.close()
    return {
        "cached_share": spent.usage.cached / spent.usage.prompt,
        "generations_per_candidate": spent.calls / len(memes),
        "image_share": spent.usage.image / spent.usage.prompt,
        "failed": float(spent.failed),
    }


def reference(address: str, model: Path, data: Path, seed: int, posts: int = 32) -> dict[str, float]:
    """Candidates a second of the panel, over those of transformers' generate on the same prompts.

    The reference takes one prompt at a time and eight generations a post, each as long as ours were.
    """
    task, tweets = drawn_posts("hsol", data, posts, seed)
    with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as folder:
        panel, recording = recorded_panel(address, task, Path(folder), "reference")
        panel.identity()
        began = time.perf_counter()
        panel.verify(guessed(task, tweets, seed))
        ours = posts / (time.perf_counter() - began)
        spent = panel.usage()
        panel.close()
    tokens = round(spent.usage.completion / spent.calls)
    one = _seconds_of_generate(model, recording.requests[:6], tokens)
    theirs = 1 / (one * REFERENCE_GENERATIONS)
    return {
        "ratio": ours / theirs, "ours_candidates_per_second": ours, "theirs_candidates_per_second": theirs,
        "seconds_of_one_generate": one, "generations_per_candidate": spent.calls / posts,
        "answer_tokens": float(tokens),
    }  # fmt: skip


def _seconds_of_generate(model: Path, requests: Sequence[ChatRequest], tokens: int) -> float:
    """Mean seconds of one generation of `tokens` tokens, the first, which warms up, apart."""
    import torch

    from agents.vllm.command import cpu_dtype
    from backbones.torchvision_compat import ensure_torchvision

    ensure_torchvision()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    # in the dtype in which our server runs it
    network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, cpu_dtype()))
    network.eval()
    seconds = []
    for request in requests:
        turns = [
            {"role": m.role, "content": "\n".join(p for p in m.parts if isinstance(p, str))}
            for m in request.messages
        ]
        prompt: Any = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        began = time.perf_counter()
        with torch.inference_mode():
            network.generate(**prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        seconds.append(time.perf_counter() - began)
    return fmean(seconds[1:])


def recorded_panel(address: str, task: Task, folder: Path, name: str) -> tuple[JudgePanel, Recording]:
    """A panel with a store of its own; `name` goes into its prompts."""
    from dataclasses import replace

    from agents.ask.cache import ResponseCache
    from agents.ask.judge import JudgePanel, JudgePrompts, VLMAgent
    from agents.ask.metering import Manner
    from agents.ask.protocols import PROTOCOLS
    from agents.ask.runner import Runner
    from agents.client.client import ChatClient
    from backbones.images import open_image
    from selftrain.panels import brief_of

    brief = replace(brief_of(task), task=f"{task.name} ({name})")
    agent = VLMAgent(JudgePrompts(brief), PROTOCOLS["cross_review"], rationale_chars=60)
    recording = Recording(ChatClient([address], timeout=600.0))
    runner = Runner(
        recording, ResponseCache(folder / "answers.sqlite"), run=name, manner=Manner(attempts=1),
        image_side=336,
        opener=lambda path, side: open_image(path, target_size=side),
    )  # fmt: skip
    return JudgePanel(runner, agent), recording


def guessed(task: Task, posts: Sequence[Post], seed: int) -> list[Candidate]:
    """Posts as candidates of a classifier that is right eight times in ten, drawn by the seed."""
    draw = random.Random(seed)
    rows = []
    for post in posts:
        wrong = next(name for name in task.names if name != post.label)
        rows.append(Candidate(post, str(post.label) if draw.random() < CLASSIFIER_RIGHT else wrong, 0.9))
    return rows


def takes_pictures(address: str) -> bool:
    """Whether the model behind a server is one of images: it is asked for the size of a prompt with one."""
    from agents.client.base import Message, Sampling, picture
    from agents.client.client import ChatClient
    from agents.errors import RequestRefusedError

    async def tried() -> bool:
        client = ChatClient([address])
        await client.open()
        white = picture(_white_png(), "image/png")
        request = ChatRequest((Message("user", ("what is it?", white)),), None, Sampling(1, top_logprobs=0))
        try:
            return (await client.measure(request)).image > 0
        except RequestRefusedError:
            return False
        finally:
            await client.close()

    return asyncio.run(tried())


def model_of(address: str) -> str:
    """The model that a server serves."""
    from agents.vllm.check import fetch_served

    return fetch_served(address, "", "").model


def _renamed(body: bytes, old: str, new: str) -> bytes:
    """The body under another task name: as long, but no beginning of it is in the server's cache."""
    if f"({old})".encode() not in body:
        raise AssertionError(f"the task name ({old}) is not in the request")
    return body.replace(f"({old})".encode(), f"({new})".encode(), 1)

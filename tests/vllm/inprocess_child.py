"""Run by vLLM's own Python: six constrained questions at once, a prompt that is too long, a second look.

    inprocess_child.py MODEL_FOLDER

Prints one JSON object of what came back.
"""

from __future__ import annotations

import asyncio
import json
import sys

from agents.client.base import ChatRequest, Message, Sampling
from agents.client.inprocess import InProcessBackend
from agents.errors import RequestRefusedError
from agents.vllm.probe import SCHEMA, drawn_picture

POLICY = "Posts that insult others are unacceptable. " * 20  # beyond one block of the prefix cache


def asked(number: int, images: int) -> ChatRequest:
    """A question of its own for each number, about so many pictures."""
    parts = (POLICY, *(drawn_picture(number * 16 + one) for one in range(images)), f"Post {number}: fine?")
    return ChatRequest((Message("user", parts),), SCHEMA, Sampling(max_tokens=64))


async def main(model: str) -> None:
    """Ask, and print."""
    backend = InProcessBackend(model, context=2048)
    identity = await backend.open()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    requests = [asked(number, images) for number, images in enumerate((0, 1, 2, 0, 1, 3))]
    too_long = ChatRequest((Message("user", ("word " * 4000,)),), SCHEMA, Sampling(max_tokens=64))
    answers = await asyncio.gather(
        *(backend.complete(request) for request in [*requests, too_long]), return_exceptions=True
    )
    refused = answers.pop()
    sizes = [await backend.measure(request) for request in requests]
    again = await backend.complete(requests[1])
    ticking.cancel()
    await backend.close()
    report = {
        "identity": identity._asdict(),
        "answers": [
            {"text": one.text, "finish": one.finish, "usage": one.usage._asdict(), "tokens": one.tokens}
            for one in answers
        ],
        "refused": [isinstance(refused, RequestRefusedError), str(refused)],
        "sizes": [size._asdict() for size in sizes],
        "again": {"text": again.text, "usage": again.usage._asdict()},
        "ticks": ticks,
    }
    print("REPORT " + json.dumps(report))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
